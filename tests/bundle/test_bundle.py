"""Bundles: built or not at all, loaded only where intact, and answering as the candidate did, here and in plain
transformers."""

from __future__ import annotations

import getpass
import io
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import read
from conftest import TINY_RECIPE, refused, write_parquet_source, write_recipe
from PIL import Image

import natix_hf
from natix_hf.bundle import build
from natix_hf.bundle.contents import bundle_problems
from natix_hf.bundle.load import Prediction, find_bundle, load_bundle
from natix_hf.bundle.policy import Policy
from natix_hf.calibration import Calibration
from natix_hf.errors import DataError, HubError, RunError, UsageError, VerificationError
from natix_hf.provenance.files import file_sha256, list_files
from natix_hf.results.card_figures import hub_figures
from natix_hf.results.evaluation import Evaluation
from natix_hf.results.logits import LogitTable, read_logits

HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an official test split large enough for slices, a target prior, and a hotkey."""
    from natix_hf.pipeline import run_recipe

    folder = tmp_path_factory.mktemp("rich")
    source = write_parquet_source(folder / "source", groups=40, official_test=20, positive_share=0.4, seed=3)
    content = {
        **TINY_RECIPE,
        "data": {**TINY_RECIPE["data"], "source": str(source), "target_prior": 0.5},
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1, "learning_rate": 3e-5},
        "phase6": {"n_resamples": 100, "submitted_by": HOTKEY, "version": "1.2.3", "model_name": "Rich: \"one\""},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(folder / "cache"))
        return run_recipe(str(write_recipe(folder / "rich.yaml", content)), run_dir=folder / "run")


@pytest.fixture(scope="session")
def rich_table(rich_run: Path) -> LogitTable:
    sha256 = file_sha256(rich_run / "phase1_baseline" / "model" / "model.safetensors")
    return read_logits(rich_run / "phase6_export" / "logits" / "test.parquet", sha256)


@pytest.fixture(scope="session")
def rich_images(rich_run: Path, rich_table: LogitTable) -> list[Image.Image]:
    """The original pictures of the test rows, read without this package."""
    import pyarrow.parquet as pq

    file = next((rich_run.parent / "source" / "data").glob("test-*.parquet"))
    cells = pq.read_table(file)["image"].to_pylist()
    return [Image.open(io.BytesIO(cells[int(row_id.split("/")[1])]["bytes"])) for row_id in rich_table.ids]


# What it answers.


def test_logits_are_those_stored(rich_run: Path, rich_table: LogitTable, rich_images: list[Any]) -> None:
    assert len(rich_images) >= 50
    z = load_bundle(rich_run).logits(rich_images, batch_size=7)
    np.testing.assert_allclose(z, rich_table.logits, atol=1e-5, rtol=0)
    assert z.dtype == np.float64


def _rebuilt(rich_run: Path, table: LogitTable, images: list[Any], target: Path, **changed: Any) -> Policy:
    """A bundle of the run's candidate with another policy; the threshold amid the test logits, so that it matters."""
    order = np.sort(table.logits)
    start = int(0.7 * len(order))  # among the positives, far from 0
    widest = int(np.argmax(np.diff(order)[start:-8])) + start
    given = {
        "threshold_logit": float(order[widest : widest + 2].mean()), "candidate_sha256": table.candidate_sha256,
        "model_sha256": "",
    } | changed  # fmt: skip
    return build.build_bundle(
        target, rich_run / "phase1_baseline" / "model", Policy(**given), evaluation={"rows": 0}, card="# card\n",
        model_card=None, plots=[], lineage={"champion": "x"}, images=images, expected_logits=table.logits,
    )  # fmt: skip


COOL, WARM = Calibration("temperature", 2.5), Calibration("temperature", 0.4)
PLATT = Calibration("platt", 1.7, -0.6)


@pytest.mark.parametrize(
    ("fold", "calibration"),
    [
        ("decision", Calibration("none")), ("decision", COOL), ("decision", PLATT), ("calibration", PLATT),
        ("calibration", WARM), ("none", PLATT),
    ],
    ids=lambda value: getattr(value, "method", value),
)  # fmt: skip
def test_a_stock_pipeline_decides_as_the_policy_does(
    fold: Any, calibration: Calibration, rich_run: Path, rich_table: LogitTable, rich_images: list[Any], tmp_path: Path
) -> None:
    """What the official miner does: the score of the label "Roadwork", cut at .5 where the decision is folded."""
    from transformers import pipeline

    policy = _rebuilt(rich_run, rich_table, rich_images, tmp_path / "b", fold=fold, calibration=calibration)
    # As the subnet sends them: square. A stock pipeline would squeeze any other shape where `predict` crops.
    squares = [image.crop((3, 0, 33, 30)) for image in rich_images]
    answers = pipeline("image-classification", model=str(tmp_path / "b"))(squares)
    scores = np.array([next(a["score"] for a in answer if a["label"] == "Roadwork") for answer in answers])
    assert {a["label"] for a in answers[0]} == {"Roadwork", "None"}
    decided = policy.decide(rich_table.logits)
    assert 5 < decided.sum() < len(decided) - 5
    if fold == "decision":
        np.testing.assert_array_equal(scores > 0.5, decided)
        assert ((rich_table.logits > 0) != decided).any()  # else folding would have nothing to do here
        z = policy.unfold(np.log(scores / (1 - scores)))
        np.testing.assert_allclose(policy.probability(z), policy.probability(rich_table.logits), atol=1e-5)
    else:
        applied = calibration if fold == "calibration" else Calibration("none")
        expected = applied.slope * rich_table.logits + applied.intercept
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected)), atol=1e-5)
        np.testing.assert_array_equal(np.log(scores / (1 - scores)) > policy.folded_threshold, decided)
    predictions = load_bundle(tmp_path / "b").predict(rich_images)
    np.testing.assert_allclose([p.probability for p in predictions], policy.probability(rich_table.logits), atol=1e-5)
    assert [p.label == "Roadwork" for p in predictions] == decided.tolist()
    assert all(p.accepted and p.decision == p.label for p in predictions)


def test_every_kind_of_input(rich_run: Path, rich_images: list[Any], tmp_path: Path) -> None:
    import datasets

    loaded = load_bundle(rich_run)
    some = rich_images[:3]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, some, strict=True):
        image.save(path)
    arrays = [np.asarray(image) for image in some]
    expected = loaded.predict(some)
    column = datasets.Dataset.from_dict({"image": [str(p) for p in paths]}).cast_column("image", datasets.Image())
    undecoded = column.cast_column("image", datasets.Image(decode=False))
    for images in (
        paths, [str(p) for p in paths], arrays, np.stack(arrays), column["image"], undecoded["image"], iter(some),
        [p.read_bytes() for p in paths],
    ):  # fmt: skip
        assert loaded.predict(images) == expected
    for single in (paths[0], str(paths[0]), some[0], arrays[0], undecoded[0]["image"], paths[0].read_bytes()):
        (answer,) = loaded.predict(single)
        assert answer.label == expected[0].label
        assert answer.probability == pytest.approx(expected[0].probability, abs=1e-6)
    assert loaded.predict(arrays[0][..., 0])[0].decision in ("Roadwork", "None")  # grey
    assert loaded.predict([]) == []
    assert isinstance(expected[0], Prediction)
    assert loaded.predict(some, batch_size=1)[1].probability == pytest.approx(expected[1].probability, abs=1e-6)


@pytest.mark.parametrize("make", [lambda p: p / "absent.png", lambda p: p / "text.png", lambda p: np.zeros((3, 3, 3))])
def test_what_is_no_image_is_named(make: Callable[[Path], Any], rich_run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    image = make(tmp_path)
    with refused(DataError, "image 1" if isinstance(image, np.ndarray) else image.name):
        load_bundle(rich_run).predict([np.zeros((4, 4, 3), dtype=np.uint8), image])


def test_load_by_run_or_bundle(rich_run: Path) -> None:
    bundle = rich_run / "phase6_export" / "bundle"
    assert find_bundle(rich_run) == find_bundle(bundle) == natix_hf.load_bundle(rich_run).folder == bundle


@pytest.mark.parametrize("reference", ["no/such/folder", "org/name"])
def test_no_such_bundle(reference: str, tmp_path: Path) -> None:
    with refused((UsageError, HubError), reference):
        find_bundle(reference)
    with refused(UsageError, tmp_path, "policy.json"):
        find_bundle(tmp_path)


# What it holds.


def test_only_what_is_allowed(rich_run: Path, _finished_run: Path) -> None:
    common = {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "policy.json", "evaluation.json",
        "read_policy.py",
        "plots/test_scores.png", "plots/threshold.png", "bundle_manifest.json",
    }  # fmt: skip
    assert set(list_files(_finished_run / "phase6_export" / "bundle")) == common
    bundle = rich_run / "phase6_export" / "bundle"
    assert set(list_files(bundle)) == common | {"model_card.json"}
    assert set(read(bundle / "bundle_manifest.json")["files"]) == (common | {"model_card.json"}) - {
        "bundle_manifest.json"
    }


def test_nothing_names_a_person_or_a_machine(rich_run: Path) -> None:
    secrets = [str(Path.home()), str(rich_run.parent), "/tmp", "/home/", "C:\\", socket.gethostname(), str(Path.cwd())]
    if len(getpass.getuser()) > 4:
        secrets.append(getpass.getuser())
    bundle = rich_run / "phase6_export" / "bundle"
    for name in list_files(bundle):
        content = (bundle / name).read_bytes()
        for secret in secrets:
            if name.endswith((".json", ".md")) or len(secret) > 5:
                assert secret.encode() not in content, (name, secret)


def test_five_fields_for_the_subnet(rich_run: Path) -> None:
    five = read(rich_run / "phase6_export" / "bundle" / "model_card.json")
    assert set(five) == {"model_name", "description", "version", "submitted_by", "submission_time"}
    assert (five["version"], five["submitted_by"], type(five["submission_time"])) == ("1.2.3", HOTKEY, int)


# The card.


@pytest.fixture(scope="session")
def card(rich_run: Path) -> str:
    return (rich_run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")


def test_the_metadata_is_what_the_hub_reads(rich_run: Path) -> None:
    from huggingface_hub import ModelCard

    folder = rich_run / "phase6_export" / "bundle"
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.model_name) == (
        "transformers", "image-classification", 'Rich: "one"',
    )  # fmt: skip
    evaluation = Evaluation.read(folder)
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    wanted = ("mcc", "balanced_accuracy", "auroc")
    assert results == {name: round(float(evaluation.as_found.metrics[name] or 0), 4) for name in wanted}
    planted = dict(zip(wanted, (0.1, 0.2, 0.3), strict=True))  # the run's own may be equal
    found = replace(evaluation.as_found, metrics=evaluation.as_found.metrics | planted)
    assert hub_figures(replace(evaluation, as_found=found)) == planted
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_no_empty_section_and_no_torn_table(card: str) -> None:
    body = card.split("---\n", 2)[2]
    sections = re.split(r"^#+ .*$", body, flags=re.MULTILINE)[1:]
    assert len(sections) >= 7
    assert all(section.strip() for section in sections)
    for word in ("{{", "{%", "Undefined", "None:", "nan", " inf"):
        assert word not in body
    lines = body.splitlines()
    heads = [i for i, line in enumerate(lines) if re.fullmatch(r"(\|-+)+\|", line)]
    assert len(heads) == 4  # metrics, one slice, training, splits
    for i in heads:  # a blank line ends a Markdown table, and one must come before it
        assert lines[i - 1].startswith("|") and lines[i + 1].startswith("|") and not lines[i - 2].strip()
        columns = {lines[j].count("|") for j in range(i - 1, next(k for k in range(i, 999) if not lines[k].strip()))}
        assert len(columns) == 1


def test_the_card_tells_the_figures(card: str, rich_run: Path) -> None:
    evaluation = read(rich_run / "phase6_export" / "bundle" / "evaluation.json")
    columns = [evaluation[name] for name in ("as_found", "at_target_prior")]
    told = {}
    for line in card.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 3:
            told[cells[0].replace(" ", "_")] = cells[1:]
    for name, cells in told.items():
        if name in columns[0]["metrics"]:
            for cell, column in zip(cells, columns, strict=True):
                value = column["metrics"][name]
                assert cell.startswith("undefined" if value is None else f"{value:.3f}"), name
    assert {"mcc", "recall", "specificity", "ece"} <= set(told)
    assert evaluation["groups"]["few"] and "few groups" in card.lower()  # 20 groups of test
    assert "scene_level_tags.weather" in card.replace("\\", "") and "| rain |" in card
    rows = read(rich_run / "phase0_data" / "manifest.json")["metrics"]["counts"]
    for role, count in rows.items():
        cells = " | ".join(str(count[k]) for k in ("rows", "positive_rows", "groups", "positive_groups"))
        assert f"| {role} | {cells} |" in card


def test_both_code_blocks_run(
    card: str, rich_run: Path, rich_images: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 2
    rich_images[0].convert("RGB").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    for block, printed in zip(blocks, ("Prediction(", "'label': 'Roadwork'"), strict=True):
        assert "PATH_OR_REPO_ID" in block
        bundle = str(rich_run / "phase6_export" / "bundle")
        exec(block.replace('"PATH_OR_REPO_ID"', repr(bundle)), {})
        assert printed in capsys.readouterr().out


# All or nothing.


@pytest.mark.parametrize(
    "fault",
    ["scaled head", "swapped labels", "scaled logits", "one logit", "nan", "infinity"],
)
def test_a_bundle_that_answers_otherwise_is_not_written(
    fault: str, rich_run: Path, rich_table: LogitTable, rich_images: list[Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    logits, real = rich_table.logits.copy(), build.fold_into

    def planted(head: Any, policy: Policy) -> None:
        real(head, policy)
        if fault == "scaled head":
            head.weight.data *= 1.01
        if fault == "swapped labels":
            head.weight.data = head.weight.data.flip(0)

    monkeypatch.setattr(build, "fold_into", planted)
    if fault == "scaled logits":
        logits *= 1.01
    elif fault in ("one logit", "nan", "infinity"):
        low = int(np.argmin(logits))  # decided "None" whatever stands there, as NaN is: only the comparison can tell
        logits[low] = {"one logit": logits[low] - 1e-3, "nan": np.nan, "infinity": -np.inf}[fault]
    with pytest.raises(RunError):
        _rebuilt(rich_run, replace(rich_table, logits=logits), rich_images, tmp_path / "b", threshold_logit=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_decides_otherwise_is_not_written(
    rich_run: Path, rich_table: LogitTable, rich_images: list[Any], tmp_path: Path
) -> None:
    """Within the tolerance of a logit, and on the other side of the threshold."""
    low = float(rich_table.logits.min())
    moved = replace(rich_table, logits=rich_table.logits + 5e-5)
    with refused(RunError, 1, len(rich_images)):
        _rebuilt(rich_run, moved, rich_images, tmp_path / "b", threshold_logit=low + 2.5e-5, fold="none")
    _rebuilt(rich_run, moved, rich_images, tmp_path / "b", threshold_logit=low - 1, fold="none")


def test_a_plot_of_a_strange_name_is_refused(rich_run: Path, rich_table: LogitTable, tmp_path: Path) -> None:
    (tmp_path / "Bad name.png").write_bytes(b"")
    policy = Policy(0.0, rich_table.candidate_sha256, "")
    with refused(RunError, "Bad name"):
        build.build_bundle(
            tmp_path / "b", rich_run / "phase1_baseline" / "model", policy, evaluation={}, card="", model_card=None,
            plots=[tmp_path / "Bad name.png"], lineage={}, images=[], expected_logits=np.zeros(0),
        )  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_a_failed_rebuild_leaves_the_old_bundle(
    rich_run: Path, rich_table: LogitTable, rich_images: list[Any], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(rich_run / "phase6_export" / "bundle", tmp_path / "bundle"))
    wrong = replace(rich_table, logits=rich_table.logits + 1)
    with pytest.raises(RunError):
        _rebuilt(rich_run, wrong, rich_images, bundle)
    assert bundle_problems(bundle) == []


def test_stored_logits_of_other_weights_are_refused(rich_run: Path) -> None:
    with refused(VerificationError, "test.parquet", "0" * 12):
        read_logits(rich_run / "phase6_export" / "logits" / "test.parquet", "0" * 64)
