"""`natix-hf reward`: a bundle in the exam, against the same exam done by hand with `predict`."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bundles import describe, read
from conftest import Command, striped_image, write_parquet_source
from facts import tells
from PIL import Image
from refusals import refused
from sklearn.metrics import matthews_corrcoef

from natix_hf.bundle.examine import data_keys, examine
from natix_hf.bundle.load import load_bundle
from natix_hf.data.config import DataConfig
from natix_hf.errors import DataError
from natix_hf.subnet.challenge import challenge_image
from natix_hf.subnet.payout import wait_until
from natix_hf.subnet.rewards import expected_reward


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet_source(tmp_path_factory.mktemp("exam"), groups=10, frames=1, official_test=12, seed=4)


def by_hand(run: Path, source: Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decisions [rows, 4] of `predict`, logits, and labels, of the test rows in the file."""
    table = pq.read_table(next((source / "data").glob("test-*.parquet")))
    bundle, decided, z = load_bundle(run), [], []
    for row, cell in enumerate(table["image"].to_pylist()):
        image = Image.open(io.BytesIO(cell["bytes"]))
        drawn = hashlib.sha256(f"{seed}/0/test/{row}".encode()).digest()[:8]
        views = [challenge_image(image, level, int.from_bytes(drawn, "big")) for level in range(4)]
        decided.append([answer.label == "Roadwork" for answer in bundle.predict(views)])
        z.append(bundle.logits(views))
    return np.array(decided), np.array(z), table["label"].to_numpy()


@pytest.mark.parametrize("seed", [0, 3])
def test_against_predict(seed: int, finished_run: Path, source: Path) -> None:
    decided, z, labels = by_hand(finished_run, source, seed)
    found = examine(load_bundle(finished_run), DataConfig(source=str(source), seed=seed))
    assert (found.rows, found.positives) == (12, labels.sum())
    for level in range(4):
        rates = found.levels[str(level)]
        assert rates.tpr == pytest.approx(decided[labels == 1, level].mean())
        assert rates.tnr == pytest.approx(1 - decided[labels == 0, level].mean())
    whole = found.levels["all"]
    weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    every = np.repeat(labels, 4)
    mcc = matthews_corrcoef(every, decided.ravel(), sample_weight=np.repeat(weights, 4))
    assert whole.mcc == pytest.approx(mcc)
    paid = found.rewards
    assert (paid["fitted"].expected, *paid["fitted"].range) == expected_reward(whole.tpr, whole.tnr)
    assert paid["half"].tpr == pytest.approx((z[labels == 1] > 0).mean())
    best = max(  # over every threshold there is
        (z[labels == 1] > t).mean() + (z[labels == 0] <= t).mean() for t in np.append(np.unique(z), -np.inf)
    )
    assert paid["best"].tpr + paid["best"].tnr >= best - 0.1
    assert paid["best"].expected >= paid["fitted"].expected - 0.02


def test_one_class_is_no_exam(finished_run: Path, tmp_path: Path) -> None:
    bundle = load_bundle(finished_run)
    one, both = (write_parquet_source(tmp_path / str(n), groups=4, positive_share=n) for n in (0.0, 0.5))
    refused(DataError, lambda: examine(bundle, DataConfig(source=str(one))), one, "class", 12)
    assert examine(bundle, DataConfig(source=str(both))).rows == 12  # all of them without a test split


@pytest.mark.parametrize("labels", [(0, 1), (1,)])
def test_a_synthetic_half(
    labels: tuple[int, ...], finished_run: Path, source: Path, tmp_path: Path, command: Command
) -> None:
    """Generated pictures beside the real ones; a copy of a real one does not count."""
    generated = class_folders(tmp_path / "sdxl", **{("none", "roadwork")[label]: label for label in labels})
    table = pq.read_table(next((source / "data").glob("train-*.parquet")))
    copied = table["image"][0]["bytes"].as_py()
    (generated / "roadwork" / "copy.png").write_bytes(copied)
    code, out, err = command("reward", finished_run, "--data", source, "--synthetic-half", generated)
    if labels == (1,):
        assert code == 2 and tells(err.strip(), "data.synthetic_half", "both")
        return
    assert code == 0 and "the real half only" not in out and out.count("reward ") == 9
    facts = "12 real pictures, 6 ", "4 generated pictures, 2 ", "16 pictures of both halves", "copy.png", "row train/0"
    assert lacking(out, *facts) == []
    config = DataConfig(source=str(source), exam=True, synthetic_half=str(generated))
    found = examine(load_bundle(finished_run), config)
    assert (found.halves["synthetic"].rows, found.halves["both"].rows) == (4, 16)
    rates = [found.halves[half].levels["all"].tpr for half in ("real", "synthetic", "both")]
    assert rates[2] == pytest.approx(np.mean(rates[:2]))
    assert f"reward {found.halves['both'].rewards['fitted'].expected:.3f}" in out


def test_slices_and_the_wait(finished_run: Path, source: Path, tmp_path: Path, command: Command) -> None:
    """Values with too few rows are named with their number; a value of one label has no TNR."""
    column = "data.slices=[scene_level_tags.weather]"
    code, out, _ = command("reward", finished_run, "--data", source, column)
    assert code == 0 and lacking(out, "too few rows", "rain (8)", "clear (4)") == []
    large = write_parquet_source(tmp_path / "large", groups=31, frames=2, positive_share=0.5, seed=6)
    code, out, _ = command("reward", finished_run, "--data", large, column, "data.group_by=video_info.vid_id")
    assert code == 0 and any(line.startswith("rain ") and f" {40 * 4} " in line for line in out.splitlines())
    paid = examine(load_bundle(finished_run), DataConfig(source=str(large))).rewards["fitted"]
    for share in (0.5, 0.95):
        wait = wait_until(share, paid.tpr, paid.tnr)
        fast, slow = wait.hours
        after = f"{share:.0%} of its final score after {wait.questions} questions, in {fast:.0f} to {slow:.0f} hours"
        assert lacking(out, after) == []


def test_the_command(finished_run: Path, source: Path, command: Command) -> None:
    code, out, _ = command("reward", finished_run, "--data", source, "--label-rule", "scene_description")
    assert code == 0 and out.count("reward ") == 3
    assert lacking(out, "12 real pictures, 6 ", "the real half only", "as if they were independent") == []
    found = examine(load_bundle(finished_run), DataConfig(source=str(source)))
    assert f"reward {found.rewards['fitted'].expected:.3f}" in out
    assert command("reward", finished_run, "--data", source, "--label-rule", "mine")[0] == 2
    assert command("reward", finished_run, "--data", "absent")[0] == 2


def lacking(out: str, *facts: str) -> list[str]:
    return [fact for fact in facts if fact not in out]


def class_folders(folder: Path, **classes: int) -> Path:
    """Two pictures a class; its number says what they look like."""
    rng = np.random.default_rng(0)
    for name, label in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(2):
            striped_image(label, rng).save(folder / name / f"{number}.png")
    return folder


def with_keys(run: Path, **keys: object) -> Path:
    """The run's bundle, as if its own data had been read by these keys."""
    bundle = run / "phase6_export" / "bundle"
    lineage = read(bundle / "bundle_manifest.json")["lineage"]
    describe(bundle, lineage=lineage | {"data": lineage["data"] | keys})
    return bundle


def labels_told(out: str) -> list[str]:
    return [line.partition("  ")[2] for line in out.splitlines() if line.startswith("label ")]


def test_a_bundle_carries_how_its_labels_are_written(finished_run: Path) -> None:
    carried = data_keys(load_bundle(finished_run))
    assert carried == {"image_column": "image", "label_column": "label", "positive_class": None,
                       "exclude_classes": [], "label_rule": "none"}  # fmt: skip


def test_labels_are_read_as_the_bundle_does(finished_run: Path, tmp_path: Path, command: Command) -> None:
    limits = class_folders(tmp_path / "limits", limit=1, other=0, unsure=0)
    bundle = with_keys(finished_run, positive_class="Limit", exclude_classes=["unsure", "blurred"])
    code, out, _ = command("reward", bundle, "--data", limits)
    assert code == 0 and labels_told(out) == ["other (2)", "limit (2)"] and "4 real pictures, 2 " in out
    code, out, _ = command("reward", bundle, "--data", limits, "data.positive_class=other", "data.exclude_classes=[]")
    assert code == 0 and labels_told(out) == ["limit (2), unsure (2)", "other (2)"]
    plain = class_folders(tmp_path / "plain", none=0, roadwork=1)  # these say themselves which one means yes
    code, out, _ = command("reward", bundle, "--data", plain)
    assert code == 0 and labels_told(out) == ["none (2)", "roadwork (2)"]


def test_what_the_bundle_says_and_the_source_lacks_is_told(
    finished_run: Path, tmp_path: Path, command: Command
) -> None:
    bundle = with_keys(finished_run, positive_class="limit", label_rule="scene_description")
    source = class_folders(tmp_path / "x", cat=0, dog=1)
    code, _, err = command("reward", bundle, "--data", source)
    assert code == 2 and tells(err.strip(), "cat", "dog", "data.positive_class=limit")
    code, _, err = command("reward", bundle, "--data", source, "data.positive_class=dog")
    assert code == 2 and tells(err.strip(), "scene_description", "data.label_rule=none")
    code, _, err = command("reward", bundle, "--data", source, "data.positive_class=bird", "--label-rule", "none")
    assert code == 2 and tells(err.strip(), "bird", "cat, dog") and "from the bundle" not in err


def test_keys_of_a_foreign_or_older_bundle(finished_run: Path, tmp_path: Path, command: Command) -> None:
    source = class_folders(tmp_path / "x", no=0, yes=1)
    bundle = with_keys(finished_run, source="/etc", revision="x", group_by="y")
    code, out, _ = command("reward", bundle, "--data", source)
    assert code == 0 and labels_told(out) == ["no (2)", "yes (2)"]
    bundle = with_keys(finished_run, positive_class=["yes"])
    code, _, err = command("reward", bundle, "--data", source)
    assert code == 2 and tells(err.strip(), "data.positive_class", "yes")
    lineage = read(bundle / "bundle_manifest.json")["lineage"]
    describe(bundle, lineage={key: value for key, value in lineage.items() if key != "data"})
    assert data_keys(load_bundle(bundle)) == {} and command("reward", bundle, "--data", source)[0] == 0
