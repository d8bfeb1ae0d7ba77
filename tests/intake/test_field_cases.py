"""The inputs that people report in public are read with the right value, or refused in a line with a way out."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, Command
from facts import tells
from refusals import refused

from natix_hf.data.config import DataConfig, GroupPattern
from natix_hf.data.reading import Reading, reading_of
from natix_hf.data.rows import load_image_data
from natix_hf.errors import DataError
from natix_hf.intake.formats import readable_endings

pytestmark = pytest.mark.shared

CASES = SHARED / "data" / "field_cases"
THE_SOURCE, DIVIDED = "the source", "divided by row"
NONE_ROADWORK = {"0": {"none": 24}, "1": {"roadwork": 24}}
NUMBERS = {"0": {"0": 24}, "1": {"1": 24}}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("field_cases")

    def unpack(name: str) -> Path:
        """The folder `NAME` of an archive `NAME`, or where its archive holds several things, what holds them."""
        if not (folder / name).exists():
            with tarfile.open(CASES / f"{name}.tar.gz") as archive:
                archive.extractall(folder / name, filter="data")
        inner = folder / name / name
        return inner if inner.exists() else folder / name

    return unpack


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_datasets"))
        yield


@dataclass
class Right:
    """What the reading of an input must say: files found and used, rows by class, and the reasons of what is left
    out with their counts, the facts of its warnings, and the splits that are the source's own with their rows."""

    found: int
    used: int
    labels: dict[str, dict[str, int]]
    left_out: dict[str, int] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    contradictions: int = 0
    without: dict[str, int] = field(default_factory=dict)


READ: dict[str, tuple[dict[str, Any], Right]] = {
    "keyword_names": ({}, Right(104, 104, {"0": {"none": 52}, "1": {"roadwork": 52}})),
    "heic_mix": ({}, Right(72, 48, NONE_ROADWORK, {".heic cannot be read here": 24})),
    "avif_mix": ({}, Right(72, 72, {"0": {"none": 36}, "1": {"roadwork": 36}})),
    "exif_negative": ({}, Right(49, 49, {"0": {"none": 24}, "1": {"roadwork": 25}})),
    "avif_damaged": ({"on_bad_image": "skip"}, Right(1, 1, {"0": {"0": 24}, "1": {"1": 25}}, without={"0": 1})),
    "frames_by_name_part": ({}, Right(120, 120, {"0": {"none": 50}, "1": {"roadwork": 70}},
                                      told=("114 rows", "frames of videos", "data.group_by"))),
    "csv_string": ({}, Right(49, 49, {"0": {"no": 24}, "1": {"yes": 24}})),
    "csv_classname": ({}, Right(49, 49, NONE_ROADWORK)),
    "csv_labels_csv": ({}, Right(49, 49, NUMBERS)),
    "csv_semicolon_bom": ({}, Right(49, 49, NUMBERS, told=("';'",))),
    "csv_cp1252": ({}, Right(49, 49, NUMBERS, told=("Windows-1252", "line 2"))),
    "pq_float": ({}, Right(1, 1, NUMBERS)),
    "yesnomaybe": ({"positive_class": "yes"}, Right(50, 50, {"0": {"maybe": 10, "no": 20}, "1": {"yes": 20}})),
    "yesnomaybe without": ({"exclude_classes": ["Maybe"]},
                           Right(50, 40, {"0": {"no": 20}, "1": {"yes": 20}}, {"class maybe is in data.exclude": 10},
                                 without={"maybe": 10})),
    "three": ({"positive_class": "roadwork"}, Right(60, 60, {"0": {"none": 20, "unsure": 20}, "1": {"roadwork": 20}})),
    "test_unlabelled": ({}, Right(60, 48, NONE_ROADWORK, {"unlabelled: the test split": 12},
                                  told=("test split has no labels", "12 rows"), without={"(no label)": 12})),
    "pq_validation": ({}, Right(2, 2, {"0": {"none": 30}, "1": {"roadwork": 30}}, own={"val_select": 12})),
    "train_val_folders": ({}, Right(68, 68, {"0": {"none": 34}, "1": {"roadwork": 34}}, own={"val_select": 20})),
    "roboflow": ({}, Right(51, 51, NONE_ROADWORK, own={"val_select": 8, "test": 8})),
    "yolo": ({}, Right(97, 97, {"0": {"no roadwork": 24}, "1": {"roadwork": 24}}, own={"val_select": 12})),
    "kaggle": ({}, Right(49, 49, NUMBERS, told=("images/000.jpg",))),
    "sidecar_json": ({}, Right(96, 48, NONE_ROADWORK, {"not a picture (.json)": 48})),
    "sidecar_txt": ({}, Right(96, 48, NONE_ROADWORK, {"not a picture (.txt)": 48})),
    "nested_date": ({}, Right(48, 48, NONE_ROADWORK)),
    "nested_partly": ({}, Right(72, 72, {"0": {"none": 24}, "1": {"roadwork": 48}})),
    "macos": ({}, Right(110, 48, NONE_ROADWORK, {"a macOS resource fork": 48, "a thumbnail": 12, "a hidden file": 1,
                                                 "a file of the operating system": 1})),
    "zip": ({}, Right(48, 48, NONE_ROADWORK)),
    "conflict": ({}, Right(100, 60, {"0": {"none": 40}, "1": {"roadwork": 20}}, {"the same picture has both": 40},
                           told=("20 pictures have both labels", "neither"), contradictions=20,
                           without={"none": 20, "roadwork": 20})),
    "webdataset": ({}, Right(96, 96, NUMBERS)),
    "webdataset named": ({"image_column": "jpg", "label_column": "cls"}, Right(96, 96, NUMBERS)),
    "webdataset_json": ({}, Right(96, 96, NUMBERS)),
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # Its 120 frames are of twelve tracks only: too few to divide, which nobody would know without the groups.
    "frames_by_name_part": ({"group_by": GroupPattern(pattern=r"(\d+_\d+)_f\d+")},
                            ("9 with label 0", "3 with label 1")),
    "avif_damaged": ({}, ("train/48", "data.on_bad_image=skip")),
    "yesnomaybe": ({}, ("maybe (10), no (20), yes (20)", "data.positive_class", "data.exclude_classes")),
    "yesnomaybe typo": ({"positive_class": "yess"}, ("'yess'", "maybe, no, yes")),
    "three": ({}, ("none (20), roadwork (20), unsure (20)", "data.positive_class", "data.exclude_classes")),
    "only_positive": ({}, ("one class only", "roadwork (40)", "both")),
    "lfs_pointer": ({}, ("train-00000-of-00001.parquet", "git lfs pull")),
    "backbone_timm": ({}, ("no picture",)),
    "webdataset": ({"label_column": "answer"}, ("'answer'", "cls", "data.label_column")),
    "pq_float": ({"label_column": "answer"}, ("'answer'", "image, label", "data.label_column")),
}  # fmt: skip


def _check(reading: Reading, right: Right) -> None:
    files = reading["files"]
    names = [entry["file"] for entry in files["left_out"]]
    assert (files["found"], files["used"]) == (right.found, right.used)
    assert files["found"] == files["used"] + len(names) and len(set(names)) == len(names)
    for reason, count in right.left_out.items():
        assert sum(entry["reason"].startswith(reason) for entry in files["left_out"]) == count, files["left_out"]
    assert len(names) == sum(right.left_out.values())
    assert reading["labels"] == right.labels | {"left_out": right.without}
    assert reading["rows"] == sum(sum(counts.values()) for counts in right.labels.values())
    assert reading["rows"] == sum(split["0"] + split["1"] for split in reading["splits"].values())
    own = {name: split["0"] + split["1"] for name, split in reading["splits"].items() if split["from"] == THE_SOURCE}
    assert own == right.own
    assert {split["from"] for split in reading["splits"].values()} <= {THE_SOURCE, DIVIDED}
    assert reading["contradictions"] == right.contradictions and reading["groups"]["from"] == "none"
    tells(" ".join(reading["warnings"]), *right.told)


@pytest.mark.parametrize("case", READ)
def test_an_input_is_read_with_the_right_value(case: str, unpacked: Callable[[str], Path]) -> None:
    settings, right = READ[case]
    if case.startswith("avif") and ".avif" not in readable_endings():
        pytest.skip("Pillow before 11.3 reads no AVIF")
    _check(reading_of(load_image_data(DataConfig(source=str(unpacked(case.split()[0])), **settings))), right)


def test_paths_beside_the_folder_and_the_table_itself(unpacked: Callable[[str], Path]) -> None:
    folder = unpacked("csv_paths")
    for source in (folder, folder / "train.csv"):
        _check(reading_of(load_image_data(DataConfig(source=str(source)))), Right(49, 49, NUMBERS))


@pytest.mark.parametrize("case", REFUSED)
def test_an_input_is_refused_in_a_line_with_a_way_out(case: str, unpacked: Callable[[str], Path]) -> None:
    settings, facts = REFUSED[case]
    config = DataConfig(source=str(unpacked(case.split()[0])), **settings)
    refused(DataError, lambda: load_image_data(config), *facts)


def test_the_archives_themselves_are_sources(unpacked: Callable[[str], Path]) -> None:
    """Each archive holds a folder around everything: it is read as that folder is."""
    for case in ("keyword_names", "nested_date", "roboflow", "yolo", "csv_string", "sidecar_json", "macos"):
        of_folder = reading_of(load_image_data(DataConfig(source=str(unpacked(case)))))
        of_archive = reading_of(load_image_data(DataConfig(source=str(CASES / f"{case}.tar.gz"))))
        assert of_archive["labels"] == of_folder["labels"] and of_archive["rows"] == of_folder["rows"], case
        own = [{name: split for name, split in of["splits"].items() if split["from"] == THE_SOURCE}
               for of in (of_folder, of_archive)]  # fmt: skip
        assert own[0] == own[1], case


def test_inspect_says_it_in_the_terminal(unpacked: Callable[[str], Path], command: Command) -> None:
    code, output, _ = command("inspect", unpacked("keyword_names"), "--json")
    assert code == 0
    _check(json.loads(output), READ["keyword_names"][1])
    code, output, _ = command("inspect", unpacked("heic_mix"))
    assert code == 0 and all(fact in output for fact in ("72 found, 48 used", "24 x .heic", "none (24)", "val_calib"))
    code, output, errors = command("inspect", unpacked("three"), "--json")
    assert (code, output) == (2, "") and tells(errors.strip(), "none (20)", "data.positive_class")
    code, output, errors = command("inspect", unpacked("lfs_pointer"), "--json")
    assert (code, output) == (2, "") and tells(errors.strip(), "git lfs pull")
