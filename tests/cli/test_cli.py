"""The command line: exit codes, one line for an error, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, refused
from facts import tells
from PIL import Image

import natix_hf
from natix_hf import cli
from natix_hf.errors import NatixError
from natix_hf.recipe import packaged_recipes


def _one_line(errors: str) -> str:
    """The error, after whatever libraries said."""
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("natix-hf: ")]
    assert len(lines) == 1 and errors.endswith(lines[0] + "\n")
    return lines[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (200, 90, 20)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


# Exit code 0.


def manifests(run: Path) -> dict[str, int]:
    """When each phase was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("phase*/manifest.json")}


def test_run_that_is_current(command: Command, finished_run: Path, tiny_recipe_file: Path) -> None:
    before = manifests(finished_run)
    code, out, err = command("run", tiny_recipe_file, "--run-dir", finished_run)
    assert (code, err) == (0, "") and manifests(finished_run) == before
    evaluation = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["groups"]["few"] and f"{evaluation['as_found']['metrics']['mcc']:.3f}" in out and "few" in out
    assert f"natix-hf predict {finished_run / 'phase6_export' / 'bundle'} image.jpg" in out
    assert str(finished_run / "report.html") in out


def test_run_of_some_phases(command: Command, finished_run: Path, tiny_recipe_file: Path) -> None:
    """Options after overrides, phases in any order; the old bundle's figures are not those of a new threshold."""
    before = manifests(finished_run)
    code, out, _ = command(
        "run", tiny_recipe_file, "phase2.objective=f1", "--phases", "2,1", "--run-dir", finished_run
    )
    assert code == 0
    changed = {name for name, finished in manifests(finished_run).items() if finished != before[name]}
    assert changed == {"phase2_threshold"}
    assert str(finished_run) in out and "natix-hf predict" not in out


def test_recipes(command: Command) -> None:
    code, out, err = command("recipes")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in packaged_recipes()]
    assert all(len(line.split()) > 3 for line in lines)


def test_verify(command: Command, finished_run: Path) -> None:
    for reference in (finished_run, finished_run / "phase6_export" / "bundle"):
        code, out, err = command("verify", reference)
        assert (code, err) == (0, "") and tells(out.strip(), reference)


def test_predict(command: Command, finished_run: Path, picture: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(picture, tmp_path / "other one.png"))
    code, out, err = command("predict", finished_run, picture, other)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    for line, path in zip(out.splitlines(), (picture, other), strict=True):
        answer = natix_hf.load_bundle(finished_run).predict(path)[0]
        assert line.startswith(str(path)) and f"{answer.probability:.3f}" in line
        assert answer.decision in line.removeprefix(str(path)).split()


def test_predict_json(command: Command, finished_run: Path, picture: Path) -> None:
    code, out, _ = command("predict", finished_run, picture, picture, "--json", "--batch-size", 1)
    assert code == 0
    for line in out.splitlines():
        answer = json.loads(line)
        assert set(answer) == {"image", "probability", "label", "accepted", "decision", "threshold"}
        assert 0 <= answer["probability"] <= 1 and answer["image"] == str(picture)


def test_doctor(command: Command) -> None:
    import torch
    import transformers

    code, out, err = command("doctor")
    assert (code, err) == (0, "")
    for part in (
        f"torch {torch.__version__.partition('+')[0]}", f"transformers {transformers.__version__}", "python 3.",
        "cores", "memory", "disk", str(Path.cwd()), os.environ["NATIX_HF_CACHE"], "HF_HUB_OFFLINE", "GB",
    ):  # fmt: skip
        assert part in out
    assert "warning" not in out


def test_doctor_warns(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from natix_hf.cli import doctor

    nearly_full = shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: nearly_full)
    monkeypatch.setattr(doctor, "package_versions", lambda: {"python": "3.11.0", "peft": "not installed"})
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path / "not" / "there" / "yet"))
    code, out, _ = command("doctor")
    warnings = [line for line in out.splitlines() if "warning" in line]
    assert code == 0 and len(warnings) == 3
    for facts in (("peft",), ("1.0 GB", str(Path.cwd())), ("1.0 GB", str(tmp_path / "not"))):
        assert any(all(fact in line for fact in facts) for line in warnings), facts


def test_help_of_every_command(command: Command) -> None:
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    known = {"run", "recipes", "verify", "report", "predict", "push", "pull", "reward", "certify", "plan", "doctor"}
    assert known <= set(names)
    for name in names:
        code, out, _ = command(name, "--help")
        assert code == 0 and name in out


# Exit code 1: a check or a run failed.


def test_verify_of_damage(command: Command, finished_run: Path) -> None:
    damaged = finished_run / "phase1_baseline" / "model" / "config.json"
    damaged.write_text("{}", encoding="utf-8")
    code, out, err = command("verify", finished_run)
    assert (code, err) == (1, "")
    assert str(damaged) in out and "1 " in out.splitlines()[-1] and str(finished_run) in out.splitlines()[-1]


def test_predict_with_a_damaged_bundle(command: Command, finished_run: Path, picture: Path) -> None:
    weights = finished_run / "phase6_export" / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, out, err = command("predict", finished_run, picture)
    assert (code, out) == (1, "")
    assert str(weights) in _one_line(err)


def test_a_failed_run_leaves_no_manifest(
    command: Command, finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf.bundle import build

    monkeypatch.setattr(build, "RELOAD_TOLERANCE", -1.0)
    code, _, err = command("run", tiny_recipe_file, "phase6.version=0.2.0", "--run-dir", finished_run)
    assert code == 1 and _one_line(err)
    assert not (finished_run / "phase6_export" / "manifest.json").exists()
    assert not (finished_run / "phase6_export" / "bundle").exists()


@pytest.mark.parametrize(
    ("error", "ends", "fact"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/some/file"), 1, "/some/file"),
    ],
    ids=["Ctrl-C", "the system refuses"],
)
def test_an_end_from_outside(
    error: BaseException, ends: int, fact: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end() -> None:
        raise error

    monkeypatch.setattr("natix_hf.recipe.packaged_recipes", end)
    code, _, err = command("recipes")
    assert code == ends and fact in _one_line(err)


# Exit code 2: bad usage, recipe or input.


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "gtsrb_roadwrk"), "gtsrb_roadwork"),
        (("run", "nowhere.yaml"), "nowhere.yaml"),
        (("run", "RECIPE", "data.sede=1"), "seed"),
        (("run", "RECIPE", "phase1.hub_token=secret"), "phase1.hub_token"),
        (("run", "RECIPE", "phase1.lr_scheduler_type=nonsense"), "phase1.lr_scheduler_type"),
        (("run", "RECIPE", "--phases", "9"), "9"),
        (("run", "RECIPE", "--phases", "one"), "all"),
        (("run", "RECIPE", "phases=[9]"), "9"),
        (("run", "RECIPE", "--accelerate-config", "none.yaml"), "none.yaml"),
        (("run", "RECIPE", "data.source=./nowhere"), "nowhere"),
        (("run", "RECIPE", "data.slices=[nope]"), "nope"),
        (("run", "RECIPE", "--phases", "6"), "--phases 2 --run-dir"),
        (("verify", "nothing"), "nothing"),
        (("verify", "."), "policy.json"),
        (("predict", "nothing", "PICTURE"), "nothing"),
        (("predict", "nothing", "absent.png"), "absent.png"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], part: str, command: Command, tiny_recipe_file: Path, picture: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = {"RECIPE": tiny_recipe_file, "PICTURE": picture}
    code, _, err = command(*[given.get(argument, argument) for argument in arguments])
    assert code == 2
    assert part in _one_line(err)


@pytest.mark.parametrize("options", [(), ("--json",), ("--bf16",), ("--bf16", "--json")])
def test_predict_reports_a_bad_image_in_its_place(
    options: tuple[str, ...], command: Command, finished_run: Path, picture: Path
) -> None:
    bad = picture.parent / "text.png"
    bad.write_text("no image", encoding="utf-8")
    code, out, err = command("predict", finished_run, picture, bad, picture, "--batch-size", 1, *options)
    assert code == 1
    if "--bf16" in options:
        flips, err = err.split("\n", 1)
        assert tells(flips, 0, 2, "float32")
    assert tells(_one_line(err), 1, 3)
    first, second, third = out.splitlines()
    assert first == third and str(picture) in first
    if "--json" in options:
        told = json.loads(second)
        assert set(told) == {"image", "error"} and told["image"] == str(bad) and tells(told["error"], bad)
        assert ("float32_decision" in json.loads(first)) == ("--bf16" in options)
    else:
        assert second.startswith(str(bad)) and "Roadwork" not in second.removeprefix(str(bad))


def test_predict_answers_beside_what_is_not_there(command: Command, finished_run: Path, picture: Path) -> None:
    bad, empty = picture.parent / "nowhere.jpg", picture.parent / "empty"
    code, out, err = command("predict", finished_run, bad, picture)
    first, second = out.splitlines()
    assert code == 1 and tells(_one_line(err), 1, 2) and tells(first, bad, "error") and str(picture) in second
    empty.mkdir()
    code, out, err = command("predict", finished_run, empty)
    assert (code, out) == (2, "") and tells(_one_line(err), empty, "folder")


def test_predict_reads_names_as_they_come(
    command: Command, finished_run: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """An answer is out before the names have ended, and no more than two batches of them are read ahead."""
    given, answered = [], []

    def names() -> Any:
        for _ in range(50):
            answered.append(capsys.readouterr().out.count(str(picture)) + (answered[-1] if answered else 0))
            given.append(1)
            yield f"{picture}\n"
        yield "\n"
        yield f"{picture.parent / 'absent.png'}\r\n"

    monkeypatch.setattr("sys.stdin", names())
    code, out, _ = command("predict", finished_run, "-", "--batch-size", 4)
    assert code == 1 and "absent.png" in out
    assert max(i - done for i, done in enumerate(answered)) <= 8 and answered[-1] >= 40


def test_predict_names_what_bfloat16_flips(
    command: Command, finished_run: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf.bundle import inference

    real = inference.torch_forward

    def planted(model: Any, device: Any, precision: Any = "float32") -> Any:
        forward = real(model, device, precision)

        def moved(pixels: Any) -> Any:
            logits, features = forward(pixels)
            return (-logits, features) if precision == "bfloat16" else (logits, features)

        return moved

    code, before, _ = command("predict", finished_run, picture)
    monkeypatch.setattr(inference, "torch_forward", planted)
    code, out, err = command("predict", finished_run, picture, "--bf16")
    assert code == 0 and tells(err.strip(), 1, "float32")
    decision = before.removeprefix(str(picture)).split()[0]
    told, _, exact = out.partition("float32")
    assert decision in exact and decision not in told.split()


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("run",), ("predict",), ("predict", "bundle"), ("run", "x", "--nonsense"), ("verify",)],
)
def test_usage(arguments: tuple[str, ...], command: Command) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert "Usage: natix-hf" in err and "Traceback" not in err


def test_run_dir_of_something_else(command: Command, tiny_recipe_file: Path, picture: Path) -> None:
    for folder in (picture, picture.parent):
        code, _, err = command("run", tiny_recipe_file, "--run-dir", folder)
        assert code == 2 and str(folder) in _one_line(err)


def test_inside_a_launch(command: Command, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command("run", tiny_recipe_file)
    assert code == 2 and "accelerate launch" in _one_line(err)


@pytest.mark.parametrize("arguments", [("--debug", "verify", "nothing"), ("verify", "nothing", "--debug")])
def test_debug_lets_the_error_out(arguments: tuple[str, ...]) -> None:
    with pytest.raises(NatixError):
        cli.main(list(arguments))


# Nothing heavy.


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=dict(os.environ))


_HEAVY = ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "accelerate", "peft", "matplotlib")
# In their order in one process: what each adds to the modules that are loaded.
_AT_ONCE = """
import sys
def answer(*arguments):
    from natix_hf.cli import main
    try: main(list(arguments))
    except SystemExit: pass
heavy = set({heavy!r})
for name, step in {{
    "the package": lambda: __import__("natix_hf"),
    "the command": lambda: __import__("natix_hf.cli"),
    "help": lambda: answer("--help"),
    "light, so far": lambda: heavy.update(("numpy", "yaml")),
    "metrics": lambda: (heavy.difference_update(("numpy", "yaml")), sys.modules["natix_hf"].metrics),
    "recipes": lambda: answer("recipes"),
    "keys": lambda: answer("keys", "phase1"),
    "no such recipe": lambda: answer("run", "nonsense"),
    "a recipe": lambda: __import__("natix_hf.recipe").recipe.load_recipe("gtsrb_roadwork"),
}}.items():
    step()
    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))
print("all at once")
"""


def test_what_answers_at_once_imports_nothing_heavy() -> None:
    done = _python("-W", "error", "-c", _AT_ONCE.format(heavy=_HEAVY))
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "all at once", done.stderr
    assert "Usage: natix-hf" in done.stdout


def test_the_module_is_the_command() -> None:
    done = _python("-m", "natix_hf", "run", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "nonsense" in done.stderr


def test_lazy_names() -> None:
    for name in natix_hf.__all__:
        assert getattr(natix_hf, name) is not None
    with refused(AttributeError, "nonsense"):
        natix_hf.nonsense  # noqa: B018
