"""A checkout of the official miner: its keys as they were stored, one value edited, and everything else refused."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from facts import tells
from refusals import refused

from natix_hf.bundle import streetvision
from natix_hf.errors import UsageError, VerificationError
from natix_hf.subnet import official
from natix_hf.subnet.checkout import Edit, checkout_checks, detector_checks, find_file, register_arguments

REPO = "lab/roadwork-2"
FACTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "miner" / "official_keys.json").read_text(encoding="utf-8")
)
YAML = FACTS["ViT_roadwork.yaml"]
GOOD = {
    "IMAGE_DETECTOR": "ViT", "IMAGE_DETECTOR_CONFIG": "ViT_roadwork.yaml", "IMAGE_DETECTOR_DEVICE": "cpu",
    "NETUID": "72", "SUBTENSOR_NETWORK": "finney", "SUBTENSOR_CHAIN_ENDPOINT": "wss://a.b:443", "WALLET_NAME": "w",
    "WALLET_HOTKEY": "h", "MINER_AXON_PORT": "8091", "BLACKLIST_FORCE_VALIDATOR_PERMIT": "True",
    "MODEL_URL": f"https://huggingface.co/{REPO}",
}  # fmt: skip


def yaml_of(repo: str, **changed: str) -> str:
    values = {"hf_repo": repo} | YAML["values"] | changed
    return "".join(f"{key}: '{value}'  # what it is, it's so\n" for key, value in values.items())


def make_checkout(
    folder: Path, text: str | bytes | None = None, place: str = YAML["place"][0], **env: str | None
) -> Path:
    """A checkout with the keys of the official one; none of its code."""
    configs = folder / place
    configs.mkdir(parents=True)
    content = yaml_of("natix/other") if text is None else text
    (configs / "ViT_roadwork.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    facts = FACTS["detector"]
    code = f"{facts['registered_as']} {facts['label_read']} AutoModelForImageClassification AutoImageProcessor "
    (configs.parent / "vit_detector.py").write_text(code + facts["processor"], encoding="utf-8")
    lines = [f"{key}={value}  # said\n" for key, value in (GOOD | env).items() if value is not None]
    (folder / "miner.env").write_text("# settings\nSECRET=hunter2\n" + "".join(lines), encoding="utf-8")
    (folder / "register.sh").write_text('if [ "$#" -lt 4 ]; then\nif [ "$#" -ne 6 ]; then\n', encoding="utf-8")
    return folder


def wrong(folder: Path) -> list[str]:
    checks, _, _ = checkout_checks(folder, REPO)
    return [f"{check.what}: {check.line}" for check in checks if check.state in ("wrong", "unknown")]


def test_what_the_code_knows_is_what_was_stored() -> None:
    assert set(official.DETECTOR_KEYS) == set(YAML["keys"])
    assert {key: value for key, value in official.DETECTOR_KEYS.items() if value is not None} == YAML["values"]
    env = FACTS["miner.env"]
    assert set(official.ENVIRONMENT_KEYS) == set(env["read_by_start_miner"])
    for key, value in env["values"].items():
        assert official.ENVIRONMENT_KEYS[key] == (value,)
    assert env["networks"] == official.NETUIDS and FACTS["timeout_s"] == official.TIMEOUT_S
    assert list(streetvision._FIELDS) == FACTS["model_card.json"]
    register = FACTS["register.sh"]
    assert official.SERVER == register["sixth_in_later_versions"]
    for count in (5, 6):
        assert len(official.register_call(REPO, count).split()) == 1 + count == len(register["arguments"]) + count - 4


@pytest.mark.parametrize("place", YAML["place"])
def test_one_value_is_changed_and_nothing_else(place: str, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "miner", place=place)
    [problem] = wrong(checkout)
    assert tells(problem, "hf_repo", "natix/other", REPO)
    _, edit, arguments = checkout_checks(checkout, REPO)
    assert edit is not None and arguments == 6
    changed = [line for line in edit.diff() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == ["-hf_repo: 'natix/other'  # what it is, it's so", f"+hf_repo: '{REPO}'  # what it is, it's so"]
    path = find_file(checkout, "ViT_roadwork.yaml")
    assert path.read_bytes() == edit.before  # nothing is written until somebody says so
    kept = edit.write()
    assert kept is not None and kept.read_bytes() == edit.before and kept.parent == path.parent
    assert path.read_text(encoding="utf-8") == yaml_of(REPO)
    assert wrong(checkout) == []
    again = checkout_checks(checkout, REPO)[1]
    assert again is not None and not again.is_needed and again.write() is None
    other = detector_checks(path, "lab/third")[1]
    assert other is not None and other.write() not in (None, kept)  # an older copy is never lost
    assert kept.read_bytes() == edit.before


def test_the_edit_of_any_such_file_is_read_by_yaml(tmp_path: Path) -> None:
    """Comments, order, quotes, line ends and spaces are as they were; YAML reads the new value and the old others."""
    rng = random.Random(0)
    for n in range(300):
        keys = rng.sample(YAML["keys"], 3)
        end = rng.choice(["\n", "\r\n"])
        lines = []
        for key in keys:
            value = YAML["values"].get(key, rng.choice(["a/b", REPO, "x-y/z.1"]))
            quote = rng.choice(["'", '"', ""])
            comment = rng.choice(["", "  # ä hf_repo: 'a/b'", " #: {x}", "   "])
            lines += [rng.choice(["", "# über: 'x'", "   "])] * rng.randint(0, 1)
            lines.append(f"{key}{rng.choice(['', ' '])}:{' ' * rng.randint(1, 3)}{quote}{value}{quote}{comment}")
        raw = (end.join(lines) + rng.choice(["", end])).encode()
        path = tmp_path / f"{n}.yaml"
        path.write_bytes(raw)
        _, edit = detector_checks(path, REPO)
        assert edit is not None, raw
        assert yaml.safe_load(edit.after) == yaml.safe_load(raw) | {"hf_repo": REPO}
        mended = re.sub(rb"(?m)^(hf_repo ?: +)(['\"]?)[\w./-]+\2", rb"\1'" + REPO.encode() + rb"'", raw, count=1)
        assert edit.after == (raw if yaml.safe_load(raw)["hf_repo"] == REPO else mended)


NOT_UNDERSTOOD = {
    "twice": yaml_of("a/b") + "hf_repo: 'c/d'\n",
    "missing": "config_name: 'config.yaml'\nweights: 'model.safetensors'\n",
    "nested": yaml_of("a/b") + "model:\n  hf_repo: 'c/d'\n",
    "flow": "{hf_repo: 'a/b', config_name: 'config.yaml', weights: 'model.safetensors'}\n",
    "block": yaml_of("a/b").replace("'a/b'", ">-\n  a/b"),
    "anchor": yaml_of("a/b").replace("'a/b'", "&x 'a/b'"),
    "indented": "  " + yaml_of("a/b").replace("\n", "\n  ").rstrip(" "),
    "two documents": yaml_of("a/b") + "---\n" + "hf_repo: 'c/d'\n",
    "a null": yaml_of("a/b").replace("'model.safetensors'", "null"),
    "a line end that only YAML knows": yaml_of("a/b") + "# comment\u2028hf_repo: 'c/d'\n",
    "a lone return": yaml_of("a/b") + "# comment\rhf_repo: 'c/d'\n",
    "quotes in quotes": yaml_of("a/b").replace("'a/b'", "'it''s'"),
    "no text": b"\xff\xfe\x00",
    "empty": "",
    "a list": "- hf_repo\n",
    "another weights": yaml_of("a/b", weights="pytorch_model.bin"),
    "another config": yaml_of("a/b", config_name="camo.yaml"),
    "a key that would be set on the detector": yaml_of("a/b") + "load_model: 'x'\n",
    "huge": "# " + "x" * 100_000 + "\n" + yaml_of("a/b"),
}


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_not_edited(name: str, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "miner", NOT_UNDERSTOOD[name])
    if name == "huge":
        refused(UsageError, lambda: checkout_checks(checkout, REPO), "ViT_roadwork.yaml")
        return
    checks, edit, _ = checkout_checks(checkout, REPO)
    assert edit is None and any(check.state == "wrong" and check.what == "ViT_roadwork.yaml" for check in checks)


WRONG = {
    "IMAGE_DETECTOR": ["ROADWORK", "None", "vit", ""], "IMAGE_DETECTOR_CONFIG": ["roadwork.yaml", "camo.yaml"],
    "IMAGE_DETECTOR_DEVICE": ["gpu", "cuda:0"], "NETUID": ["34", "168", "073"], "SUBTENSOR_NETWORK": ["test", ""],
    "SUBTENSOR_CHAIN_ENDPOINT": [""], "WALLET_NAME": ["", "'my wallet'", '"a*"'], "WALLET_HOTKEY": ["", "''"],
    "MINER_AXON_PORT": ["", "x", "0", "65536", "8091.0", "9" * 5000],
    "BLACKLIST_FORCE_VALIDATOR_PERMIT": [""],
    "MODEL_URL": ["", "natix/roadwork", "https://huggingface.co/lab/roadwork-22", "$REPO", "a b", "x;y", "`id`"],
}  # fmt: skip


def test_every_key_has_a_wrong_setting() -> None:
    assert set(WRONG) == set(GOOD) == set(official.ENVIRONMENT_KEYS)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in [*values, None]]
)
def test_every_wrong_setting_is_named(key: str, value: str | None, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "miner", yaml_of(REPO), **{key: value})
    problems = wrong(checkout)
    assert problems and all(key in problem or key == "NETUID" for problem in problems)
    assert all("hunter2" not in problem for problem in problems)


@pytest.mark.parametrize(
    "line",
    ["NETUID=72", "FOO=1 NETUID=323", "unset NETUID", "NETUID = 72", "source other.env; NETUID=323", "NETUID+=3"],
)
def test_a_second_word_about_a_key_is_named(line: str, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "miner", yaml_of(REPO))
    assert wrong(checkout) == []
    with (checkout / "miner.env").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    [problem] = wrong(checkout)
    assert tells(problem, "NETUID")


def test_windows_line_ends_are_part_of_every_value_in_a_shell(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "miner", yaml_of(REPO).replace("\n", "\r\n"))
    path = checkout / "miner.env"
    assert wrong(checkout) == []
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    [problem] = wrong(checkout)
    assert tells(problem, "miner.env", "line ends")


def test_other_forms_of_a_right_setting(tmp_path: Path) -> None:
    env = {"MODEL_URL": f'"{REPO}"', "WALLET_NAME": "'mine'", "IMAGE_DETECTOR_DEVICE": "cuda"}
    assert wrong(make_checkout(tmp_path / "a", yaml_of(REPO), **env)) == []
    testnet = make_checkout(tmp_path / "b", yaml_of(REPO), NETUID="323", SUBTENSOR_NETWORK="test")
    [warned] = [check for check in checkout_checks(testnet, REPO)[0] if check.state == "warning"]
    assert wrong(testnet) == [] and tells(warned.line, "323", "test")
    (testnet / "miner.env").unlink()
    [problem] = wrong(testnet)
    assert tells(problem, "miner.env", "setup_env.sh", "MODEL_URL")


def test_a_detector_that_does_something_else_is_named(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "miner", yaml_of(REPO))
    code = find_file(checkout, "vit_detector.py")
    text = code.read_text(encoding="utf-8")
    for fact in ("use_fast=True", "Roadwork", "AutoModelForImageClassification"):
        code.write_text(text.replace(fact, ""), encoding="utf-8")
        [problem] = wrong(checkout)
        assert tells(problem, "vit_detector.py", fact)
    code.unlink()
    assert len(wrong(checkout)) == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [('"$#" -ne 5', 5), ('"$#" -ne 6', 6), ("", None), ('"$#" -ne 5 "$#" -ne 6', None), ('"$#" -ne 4', None)],
)
def test_how_many_arguments_register_takes(text: str, count: int | None, tmp_path: Path) -> None:
    assert register_arguments(tmp_path) is None
    (tmp_path / "register.sh").write_text(text, encoding="utf-8")
    assert register_arguments(tmp_path) == count


def test_one_checkout_is_wanted(tmp_path: Path) -> None:
    refused(UsageError, lambda: find_file(tmp_path / "gone", "ViT_roadwork.yaml"), "gone", "--miner-repo")
    refused(UsageError, lambda: find_file(tmp_path, "ViT_roadwork.yaml"), "no ViT_roadwork.yaml")
    one = make_checkout(tmp_path / "one")
    for hidden in (".git/x", "venv/lib/x", "lib/site-packages/x"):
        folder = one / hidden
        folder.mkdir(parents=True)
        (folder / "ViT_roadwork.yaml").write_text(yaml_of("a/b"), encoding="utf-8")
    (one / "venv" / "pyvenv.cfg").write_text("", encoding="utf-8")
    assert find_file(one, "ViT_roadwork.yaml").parent == one / YAML["place"][0]
    make_checkout(tmp_path / "two")
    refused(UsageError, lambda: find_file(tmp_path, "ViT_roadwork.yaml"), "2 times")


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    one = make_checkout(tmp_path / "one")
    path = find_file(one, "ViT_roadwork.yaml")
    path.rename(tmp_path / "elsewhere.yaml")
    path.symlink_to(tmp_path / "elsewhere.yaml")
    refused(UsageError, lambda: checkout_checks(one, REPO), "link")


def test_a_file_that_changes_meanwhile_is_not_written(tmp_path: Path) -> None:
    path = find_file(make_checkout(tmp_path / "one"), "ViT_roadwork.yaml")
    edit: Edit | None = detector_checks(path, REPO)[1]
    assert edit is not None
    path.write_text(yaml_of("some/body"), encoding="utf-8")
    refused(VerificationError, edit.write, "changed meanwhile")
    assert path.read_text(encoding="utf-8") == yaml_of("some/body") and len(list(path.parent.iterdir())) == 1
