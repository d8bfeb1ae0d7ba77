"""Bad input through the command line: one clear line, the right exit code, nothing damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from conftest import TINY_RECIPE, Command, png_bytes, refused, striped_image, write_parquet_source, write_recipe
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from natix_hf import cli
from natix_hf.bundle.build import write_bundle_manifest
from natix_hf.data.config import DataConfig
from natix_hf.data.rows import load_image_data
from natix_hf.errors import DataError
from natix_hf.launch import phase_script
from natix_hf.models.device import runs_on_cpu
from natix_hf.runs.graph import ORDER, PHASES
from natix_hf.runs.verify import find_problems
from natix_hf.trainers.checkpoints import mark_complete


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf_datasets")


def snapshot(folder: Path) -> dict[str, str]:
    """Digests of the files of a folder, but for the log and the marks of owners, which every command leaves, and the
    page, which says how the last one ended."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and not {p.name, p.parent.name} & {"run.log", "owner", "report.html"}
    }


def kept(folder: Path) -> dict[str, str]:
    """What a run holds, a result that was set aside counted where it stood."""
    found = snapshot(folder)
    return found | {name.replace(".set_aside", ""): digest for name, digest in found.items() if ".set_aside" in name}


@dataclass
class Place:
    """Where a row of the table makes its bad situation. `guarded`: folders that the command must leave as they are."""

    folder: Path
    recipe: Path
    source: Path
    finished: Path
    patch: pytest.MonkeyPatch
    guarded: list[Path]

    def run(self, *arguments: object, on: Path | None = None) -> list[object]:
        """A run in the finished run folder, or `on` another one."""
        return ["run", self.recipe, "--run-dir", self.finished if on is None else on, *arguments]

    def fresh(self, *arguments: object) -> list[object]:
        return self.run(*arguments, on=self.folder / "fresh")


@pytest.fixture
def place(
    tmp_path: Path, tiny_recipe_file: Path, parquet_source: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.chdir(tmp_path)
    guarded = [parquet_source, finished_run]
    return Place(tmp_path, tiny_recipe_file, parquet_source, finished_run, monkeypatch, guarded)


# Each of these makes one bad situation and gives the command that meets it.

Make = Callable[[Place], list[Any]]


def override(*pairs: str) -> Make:
    return lambda place: place.run(*pairs)


def training(*pairs: str) -> Make:
    """One that is only met when training has begun: in a fresh run."""
    return lambda place: place.fresh("phase1.num_train_epochs=1", *pairs)


def diverging(make: Make) -> Make:
    """With a learning rate so large that it diverges in a step. It is beyond the bound, so the bound is lifted."""

    def made(place: Place) -> list[Any]:
        place.patch.setattr("natix_hf.trainers.config._ABOVE_0", ())
        place.patch.setattr("natix_hf.trainers.config._OTHERS", 1e39)
        return make(place)

    return made


def recipe_text(text: str | bytes) -> Make:
    def make(place: Place) -> list[Any]:
        place.recipe = place.folder / "my.yaml"
        place.recipe.write_bytes(text.encode() if isinstance(text, str) else text)
        return place.run()

    return make


def rows_of(
    place: Place, labels: list[Any], kind: str = "int64", cells: list[Any] | None = None, **extra: Any
) -> Path:
    """A parquet source of these labels; `cells` stand in for the last images."""
    rng = np.random.default_rng(0)
    images: list[Any] = [{"bytes": png_bytes(striped_image(i % 2, rng)), "path": None} for i in range(len(labels))]
    if cells:
        images[-len(cells) :] = cells
    features = {"image": datasets.Image(), "label": datasets.Value(kind)}
    features |= {name: datasets.Value("string") for name in extra}
    folder = place.folder / "source"
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(
        {"image": images, "label": labels, **extra}, features=datasets.Features(features)
    )
    table.to_parquet(folder / "train.parquet")
    place.guarded.append(folder)
    return folder


def source(labels: list[Any], *pairs: str, kind: str = "int64", cells: list[Any] | None = None, **extra: Any) -> Make:
    """The finished run, pointed at another source."""

    def make(place: Place) -> list[Any]:
        folder = rows_of(place, labels, kind, cells, **extra)
        return place.run(f"data.source={folder}", "data.group_by=null", "data.slices=[]", *pairs)

    return make


def source_folder(fill: Callable[[Path], Any], *pairs: str) -> Make:
    def make(place: Place) -> list[Any]:
        folder = place.folder / "source"
        folder.mkdir()
        fill(folder)
        place.guarded.append(folder)
        return place.run(f"data.source={folder}", "data.group_by=null", "data.slices=[]", *pairs)

    return make


def no_rows(folder: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": [], "label": []}, features=features).to_parquet(folder / "train.parquet")


def no_rows_on_disk(folder: Path) -> None:
    datasets.Dataset.from_dict({"image": [], "label": []}).save_to_disk(str(folder))


def class_folders(*names: str, broken: bytes | None = None) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        rng = np.random.default_rng(0)
        for label, name in enumerate(names):
            (folder / name).mkdir()
            for i in range(12):
                striped_image(label, rng).save(folder / name / f"{i:02d}.png")
        if broken is not None:
            (folder / names[0] / "07.png").write_bytes(broken)

    return fill


def official_test_of_one_class(folder: Path) -> None:
    write_parquet_source(folder, groups=20, frames=1, official_test=6, positive_share=0.5)
    file = folder / "data" / "test-00000-of-00001.parquet"
    table = datasets.load_dataset("parquet", data_files=str(file), split="train")
    table.filter(lambda row: row["label"] == 0).to_parquet(file)


def full_disk(name: str, *pairs: str, fresh: bool = True) -> Make:
    """No space for the file of this name, at the layer that writes every file."""

    def make(place: Place) -> list[Any]:
        real = os.replace

        def replace(old: Any, new: Any) -> None:
            if Path(new).name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(old, new)

        place.patch.setattr("natix_hf.provenance.files.os.replace", replace)
        return place.fresh(*pairs) if fresh else place.run(*pairs)

    return make


def full_at_fsync(place: Place) -> list[Any]:
    """The disk is full from the first file of phase 0 on: what is smaller still fits."""

    def fsync(file: int) -> None:
        facts = os.fstat(file)
        if facts.st_size > 4096 and stat.S_ISREG(facts.st_mode) and (place.folder / "fresh").is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.patch.setattr("natix_hf.provenance.durable.os.fsync", fsync)
    return place.fresh()


def full_in(target: str, error: Exception, *pairs: str) -> Make:
    def make(place: Place) -> list[Any]:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        place.patch.setattr(target, fail)
        return place.fresh("phase1.num_train_epochs=1", *pairs)

    return make


def below_a_file(place: Place) -> Path:
    (place.folder / "a_file").write_text("x", encoding="utf-8")
    return place.folder / "a_file" / "below"


def outputs_is_a_file(place: Place) -> list[Any]:
    (place.folder / "outputs").write_text("x", encoding="utf-8")
    return ["run", place.recipe]


def read_only(place: Place) -> list[Any]:
    """For root no folder is read-only, so the system's answer is played."""

    def mkdir(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    place.patch.setattr(Path, "mkdir", mkdir)
    return place.fresh()


def no_feature_cache(place: Place) -> list[Any]:
    place.patch.setenv("NATIX_HF_CACHE", str(below_a_file(place)))
    return place.fresh("phase1.adapter=none")


def no_decode_cache(place: Place) -> list[Any]:
    place.patch.setattr("datasets.config.HF_DATASETS_CACHE", below_a_file(place))
    disk = place.folder / "disk"  # `load_dataset` would meet the same folder; save_to_disk is read in place
    datasets.load_dataset(str(place.source), cache_dir=str(place.folder / "elsewhere")).save_to_disk(str(disk))
    return place.fresh(f"data.source={disk}")


def damaged(name: str, content: bytes | Callable[[bytes], bytes], *command: object) -> Make:
    """A file of the finished run is not what it was. In `command`, RUN and PICTURE stand for paths."""

    def make(place: Place) -> list[Any]:
        file = place.finished / name
        file.write_bytes(content(file.read_bytes()) if callable(content) else content)
        striped_image(1, np.random.default_rng(0)).save(place.folder / "picture.png")
        paths = {"RUN": place.finished, "PICTURE": place.folder / "picture.png", "RECIPE": place.recipe}
        return [paths.get(str(part), part) for part in command]

    return make


def flip_last(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 255])


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def moved_row(content: bytes) -> bytes:
    splits = json.loads(content)
    splits["roles"][splits["roles"].index("test")] = "train"
    return (json.dumps(splits, indent=2, ensure_ascii=False) + "\n").encode()


def resealed(name: str, content: bytes) -> Make:
    """A bundle whose own manifest agrees with the damage."""

    def make(place: Place) -> list[Any]:
        bundle = place.finished / "phase6_export" / "bundle"
        (bundle / name).write_bytes(content)
        write_bundle_manifest(bundle, {})
        striped_image(1, np.random.default_rng(0)).save(place.folder / "picture.png")
        return ["predict", bundle, place.folder / "picture.png"]

    return make


def backbone(name: str, content: bytes | None) -> Make:
    """Starts from the model of the finished run, one of whose files is damaged; None: NaN in its weights."""

    def make(place: Place) -> list[Any]:
        folder = Path(shutil.copytree(place.finished / "phase1_baseline" / "model", place.folder / "backbone"))
        if content is None:
            state = load_file(folder / name)
            state[next(key for key in sorted(state) if not key.startswith("classifier."))].fill_(float("nan"))
            save_file(state, folder / name, metadata={"format": "pt"})
        else:
            (folder / name).write_bytes(content)
        place.guarded.append(folder)
        return place.fresh(f"model.backbone={folder}", "model.config={}")

    return make


def explora(*pairs: str) -> Make:
    """Phase 4 of a fresh run, from the backbone of the finished one."""

    def make(place: Place) -> list[Any]:
        backbone = place.finished / "phase1_baseline" / "model"
        settings = ("phase4.max_steps=2", "phase4.objective=mae", "phase4.dataloader_num_workers=0", *pairs)
        return place.fresh(f"model.backbone={backbone}", "model.config={}", *settings, "--phases", "4")

    return make


def all_held(place: Place) -> list[Any]:
    """The further source holds nothing but the test rows of the labelled one."""
    splits = json.loads((place.finished / "phase0_data" / "splits.json").read_text(encoding="utf-8"))
    held = {row for row, role in zip(splits["ids"], splits["roles"], strict=True) if role == "test"}
    table = datasets.load_dataset(str(place.source), split="train", cache_dir=str(place.folder / "elsewhere"))
    folder = place.folder / "frames"
    folder.mkdir()
    table.select([i for i in range(len(table)) if f"train/{i}" in held]).to_parquet(folder / "train.parquet")
    place.guarded.append(folder)
    return explora(f"phase4.unlabelled=[{folder}]")(place)


def folder_as_recipe(place: Place) -> list[Any]:
    (place.folder / "my.yaml").mkdir()
    return ["run", place.folder / "my.yaml"]


def other_recipe(place: Place) -> list[Any]:
    other = write_recipe(place.folder / "other.yaml", TINY_RECIPE)
    return ["run", other, "--run-dir", place.finished]


def broken_picture(place: Place) -> list[Any]:
    whole = place.folder / "whole.jpg"
    striped_image(1, np.random.default_rng(0)).save(whole)
    (place.folder / "half.jpg").write_bytes(half(whole.read_bytes()))
    return ["predict", place.finished, whole, place.folder / "half.jpg"]


TEXT = {"bytes": b"no image", "path": None}
HALVES = [0] * 12 + [1] * 12
CONFIG = "model.config."
BUNDLE = "phase6_export/bundle/"
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

# Name of the row: how it is made, exit code, and the facts of its line.
TABLE: dict[str, tuple[Make, int, tuple[str, ...]]] = {
    # The source.
    "a file as source": (lambda p: p.run(f"data.source={p.recipe}"), 2, ("data.source", "tiny.yaml")),
    "revision of a folder": (override("data.revision=main"), 2, ("data.revision",)),
    "empty folder": (source_folder(lambda f: None), 2, ("source",)),
    "no rows": (source_folder(no_rows), 2, ("source",)),
    "no rows on disk": (source_folder(no_rows_on_disk), 2, ("source",)),
    "damaged parquet": (source_folder(lambda f: (f / "train.parquet").write_bytes(b"PAR1 no PAR1")), 2, ("source",)),
    "no image column": (override("data.image_column=photo"), 2, ("photo", "image, id, label")),
    "no label column": (override("data.label_column=y"), 2, ("'y'",)),
    "no group column": (override("data.group_by=video"), 2, ("'video'",)),
    "no slice column": (override("data.slices=[weather]"), 2, ("'weather'",)),
    "no description": (source(HALVES, "data.label_rule=scene_description"), 2, ("scene_description",)),
    "not images": (source(HALVES, "data.image_column=label"), 2, ("'label'", "images")),
    "label 2": (source([0, 1, 2]), 2, ("0 (1), 1 (1), 2 (1)", "data.positive_class")),
    "label -1": (source([-1, 1, -1]), 2, ("1 (1)", "2 rows", "negative", "write 0")),
    "label null": (source([0, None, 1]), 2, ("train/1", "no label")),
    "label text": (source(["no", "maybe"], kind="string"), 2, ("maybe (1), no (1)", "data.positive_class")),
    "label a half": (source([0.5, 1.0], kind="float64"), 2, ("train/0", "0.5")),
    "classes without a yes": (source_folder(class_folders("cats", "dogs")), 2, ("cats (12), dogs (12)",
        "data.positive_class")),
    "no such class": (
        source_folder(class_folders("cats", "dogs"), "data.positive_class=cow"), 2, ("'cow'", "cats, dogs")),
    "one class": (source([0] * 24), 2, ("one class only", "0 (24)")),
    "test of one class": (source_folder(official_test_of_one_class), 2, ("test", "label 1")),
    "fewer groups than splits": (source([0, 1, 0, 1]), 2, ("groups",)),
    "two groups in many rows": (
        source(HALVES, "data.group_by=video", video=["a"] * 12 + ["b"] * 12), 2, ("groups", "6", "1 with label 0")),
    "overlap": (
        source(HALVES, "data.on_overlap=error", cells=[{"bytes": png_bytes(striped_image(1, np.random.default_rng(7))),
        "path": None}] * 8), 2, ("row", "data.on_overlap=drop")),
    # Images.
    "an unreadable image": (source(HALVES, cells=[TEXT]), 2, ("train/23", "data.on_bad_image=skip")),
    "a null image": (source(HALVES, cells=[None]), 2, ("train/23", "data.on_bad_image=skip")),
    "half an image file": (source_folder(class_folders("none", "roadwork", broken=half(png_bytes(striped_image(0,
        np.random.default_rng(9))))) ), 2, ("none/07.png", "data.on_bad_image=skip")),
    "an empty image file": (source_folder(class_folders("none", "roadwork", broken=b"")), 2, ("none/07.png",
        "data.on_bad_image=skip")),
    "every image unreadable": (source(HALVES, "data.on_bad_image=skip", cells=[TEXT] * 24), 2, ("24", "source")),
    "a class unreadable": (
        source(HALVES, "data.on_bad_image=skip", cells=[TEXT] * 12), 2, ("12", "label 1", "train/12")),
    "too few readable": (source(HALVES, "data.on_bad_image=skip", cells=[TEXT] * 11), 2, ("label 1", "11")),
    "predict half an image": (broken_picture, 1, ("1", "2")),
    # Recipes that are none.
    "not YAML": (recipe_text("data: [\n"), 2, ("my.yaml", "line 2")),
    "not text": (recipe_text(b"\xff\xfe\x00\x81"), 2, ("my.yaml",)),
    "bottomless": (recipe_text("[" * 20_000), 2, ("my.yaml",)),
    "a Python object": (recipe_text("data: !!python/object/apply:os.getcwd []\n"), 2, ("my.yaml", "YAML")),
    "a list": (recipe_text("[1, 2]\n"), 2, ("my.yaml", "list")),
    "a sentence": (recipe_text("train it well\n"), 2, ("my.yaml", "str")),
    "a section twice": (recipe_text("data: {seed: 1}\ndata: {seed: 2}\n"), 2, ("data", "line 2")),
    "a key twice": (recipe_text("phase1:\n  seed: 1\n  seed: 2\n"), 2, ("seed", "line 3")),
    "no such recipe": (lambda p: ["run", p.folder / "nowhere.yaml"], 2, ("nowhere.yaml", "natix-hf recipes")),
    "a folder as recipe": (folder_as_recipe, 2, ("my.yaml", "natix-hf recipes")),
    "another recipe's run": (other_recipe, 2, ("tiny", "other")),
    # Keys and values that cannot be right.
    "unknown section": (override("phase7.seed=1"), 2, ("phase7", "'phase")),
    "unknown key": (override("phase1.learning_rat=1"), 2, ("phase1.learning_rat", "'learning_rate'")),
    "unknown model field": (override(f"{CONFIG}hiden_size=32"), 2, ("model.config.hiden_size", "'hidden_size'")),
    "negative learning rate": (override("phase1.learning_rate=-1e-4"), 2, ("phase1.learning_rate", "-0.0001")),
    "no such optimizer": (override("phase1.optim=adamw_bnb_8bit"), 2, ("phase1", "bitsandbytes")),
    "no such reporter": (override("phase1.report_to=nobody"), 2, ("phase1", "nobody")),
    "schedule's own keys": (override("phase1.lr_scheduler_kwargs={hills: 3}"), 2, ("phase1", "hills")),
    "strategies that differ": (override("phase1.eval_strategy=steps"), 2, ("phase1", "transformers")),
    "patience without a look": (
        override("phase1.early_stopping_patience=1", "phase1.eval_strategy=no", "phase1.load_best_model_at_end=false"),
        2, ("phase1.eval_strategy", "early_stopping_patience")),
    "negative width": (override(f"{CONFIG}mlp_ratio=-1"), 2, ("model.config",)),
    "no such activation": (override(f"{CONFIG}hidden_act=nonsense"), 2, ("model.config", "nonsense")),
    "no such phase": (override("--phases", "9"), 2, ("9",)),
    "a phase before its upstream": (lambda p: p.fresh("--phases", "2"), 2, ("phase 2", "phase 1", "--phases 1")),
    # Training that cannot go on.
    "larger than all rows": (
        training("phase1.dataloader_drop_last=true", "phase1.per_device_train_batch_size=1000"), 2,
        ("phase1.dataloader_drop_last", "per_device_train_batch_size")),
    "NaN loss": (
        diverging(training("phase1.learning_rate=1e38", "phase1.warmup_steps=0")), 1, ("nan", "learning_rate")),
    "diverges in a step": (
        diverging(training("phase1.learning_rate=1e38", "phase1.per_device_train_batch_size=1000",
        "phase1.warmup_steps=0")), 1, ("learning_rate",)),
    "diverges unseen": (
        diverging(training("phase1.learning_rate=1e38", "phase1.per_device_train_batch_size=1000",
        "phase1.warmup_steps=0", "phase1.eval_strategy=no", "phase1.save_strategy=no",
        "phase1.load_best_model_at_end=false")), 1, ("NaN", "row", "learning_rate")),
    "backbone with NaN": (backbone("model.safetensors", None), 2, ("model.backbone", "NaN")),
    "backbone cut short": (backbone("model.safetensors", b"short"), 2, ("model.backbone",)),
    "backbone's config": (backbone("config.json", b"{"), 2, ("model.backbone",)),
    "backbone's processor": (
        backbone("preprocessor_config.json", b"{"), 2, ("model.backbone", "preprocessor_config.json")),
    # Adapters.
    "options beside full": (override("phase1.adapter_options.r=4"), 2, ("phase1.adapter_options", "full")),
    "an option of our own": (override("phase1.adapter=lora", "phase1.adapter_options.modules_to_save=[classifier]"), 2,
        ("phase1.adapter_options.modules_to_save",)),
    "adapter's NaN": (override("phase1.adapter=lora", "phase1.adapter_options.lora_alpha=.nan"), 2,
        ("phase1.adapter_options.lora_alpha", "nan")),
    "unknown adapter option": (
        training("phase1.adapter=lora", "phase1.adapter_options.lora_alfa=4"), 2, ("phase1.adapter_options.lora_alfa",
        "'lora_alpha'")),
    "adapter rank 0": (
        training("phase1.adapter=lora", "phase1.adapter_options.r=0"), 2, ("phase1.adapter_options", "lora",
        "positive")),
    "adapter rank of text": (
        training("phase1.adapter=lora", "phase1.adapter_options.r=many"), 2, ("phase1.adapter_options", "lora")),
    "adapter without a place": (training("phase1.adapter=lora", "phase1.adapter_options.target_modules=[query]"), 2,
        ("phase1.adapter_options.target_modules", "query", "q_proj")),
    # Phase 4.
    "explora: unknown key": (explora("phase4.rnak=4"), 2, ("phase4.rnak", "'rank'")),
    "explora: unknown inner key": (explora("phase4.mae.mask_rati=.5"), 2, ("phase4.mae.mask_rati", "'mask_ratio'")),
    "explora: random weights": (
        lambda p: p.fresh("--phases", "4"), 2, ("phase4.trainable=explora", "model.backbone", "trainable=all")),
    "explora: a probe's key": (explora("phase4.eval_steps=5"), 2, ("phase4.eval_steps", "probe_steps")),
    "explora: an upload": (explora("phase4.supervised.push_to_hub=true"), 2, ("phase4.supervised.push_to_hub",)),
    "explora: no such optimizer": (explora("phase4.optim=adamw_bnb_8bit"), 2, ("phase4", "bitsandbytes")),
    "explora: falling momentum": (explora("phase4.dinov2.ema=[1, .9]"), 2, ("phase4.dinov2.ema",)),
    "explora: half a block": (explora("phase4.unfreeze_blocks=[.5]"), 2, ("phase4.unfreeze_blocks",)),
    "explora: crops not of patches": (
        explora("phase4.objective=dinov2", "phase4.crops.local_size=20"), 2, ("phase4.crops.local_size", "20", "14")),
    "explora: local crops as large as the world": (
        explora("phase4.objective=dinov2", "phase4.crops.local_size=280"), 2, ("phase4.crops.local_size", "280",
        "model.image_size")),
    "explora: blocks of nothing": (
        explora("phase4.trainable=blocks", "phase4.unfreeze_blocks=[]"), 2, ("phase4.unfreeze_blocks",)),
    "explora: diverges": (
        diverging(explora("phase4.learning_rate=1e38", "phase4.warmup_steps=0")), 1, ("nan", "learning_rate")),
    "explora: no such folder": (explora("phase4.unlabelled=[./frames]"), 2, ("phase4.unlabelled", "./frames")),
    "explora: a folder of nothing": (
        lambda p: [(p.folder / "frames").mkdir(), *explora("phase4.unlabelled=[./frames]")(p)][1:], 2,
        ("phase4.unlabelled",)),
    "explora: nothing but test rows": (all_held, 2, ("phase4.unlabelled",)),
    "explora: overlap": (
        lambda p: explora(f"phase4.unlabelled=[{p.source}]", "data.on_overlap=error")(p), 2, ("phase4.unlabelled",
        "row", "data.on_overlap=drop")),
    # A full disk, a folder that cannot be written.
    "full: the splits": (full_disk("splits.json"), 1, ("No space left on device", "splits.json", "--run-dir")),
    "full: at fsync": (full_at_fsync, 1, ("No space left on device", "splits.json")),
    "full: a manifest": (full_disk("manifest.json"), 1, ("No space left on device", "manifest.json")),
    "full: the sweep": (
        full_disk("sweep.parquet", "phase2.n_resamples=150", "--phases", "2", fresh=False), 1, ("No space left",
        "sweep.parquet")),
    "full: the bundle": (
        full_disk("bundle", "phase6.version=0.2.0", "--phases", "6", fresh=False), 1, ("No space left on device",
        "bundle")),
    "full: the run file": (full_disk("run.json"), 2, ("--run-dir", "No space left on device")),
    "full: decoding": (full_in("datasets.Dataset.map", NO_SPACE), 1, ("No space left on device", "--run-dir")),
    "full: checkpoint weights": (
        full_in("transformers.modeling_utils.safe_save_file", SafetensorError("I/O error: No space left on device")),
        1, ("checkpoint", "No space left on device")),
    "full: optimizer state": (
        full_in("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
        1, ("checkpoint", "space")),
    "full: the candidate": (full_in(
        "transformers.modeling_utils.safe_save_file", SafetensorError("I/O error: No space left"),
        "phase1.save_strategy=no", "phase1.load_best_model_at_end=false"), 1, ("phase 1", "weights", "space")),
    "outputs is a file": (outputs_is_a_file, 2, ("outputs/tiny", "--run-dir")),
    "read-only": (read_only, 2, ("--run-dir", "Permission denied")),
    "run-dir is a file": (lambda p: p.run(on=p.recipe), 2, ("--run-dir", "tiny.yaml")),
    "run-dir below a file": (lambda p: p.run(on=below_a_file(p)), 2, ("--run-dir", "a_file/below")),
    "run-dir of other things": (lambda p: p.run(on=p.source), 2, ("--run-dir",)),
    "feature cache below a file": (no_feature_cache, 2, ("Not a directory", "a_file", "NATIX_HF_CACHE")),
    "decode cache below a file": (no_decode_cache, 1, ("Not a directory", "a_file")),
    # What was written is not what it was.
    "run.json cut": (damaged("run.json", half, "run", "RECIPE", "--run-dir", "RUN"), 1, ("run.json",)),
    "run.json a list": (damaged("run.json", b"[]", "run", "RECIPE", "--run-dir", "RUN"), 2, ("None",)),
    "manifest bottomless": (damaged("phase2_threshold/manifest.json", b"[" * 100_000, "verify", "RUN"), 1,
        ("phase2_threshold/manifest.json",)),
    "manifest a list": (
        damaged("phase0_data/manifest.json", b"[]", "verify", "RUN"), 1, ("phase0_data/manifest.json",)),
    "manifest of an upstream": (
        damaged("phase2_threshold/manifest.json", half, "run", "RECIPE", "--run-dir", "RUN", "--phases", "6"), 2,
        ("phase 6", "phase 2", "--phases 2")),
    "splits: a row moved": (
        damaged("phase0_data/splits.json", moved_row, "verify", "RUN"), 1, ("test", "train", "phase6_export",
        "splits.json")),
    "bundle's manifest": (damaged(f"{BUNDLE}bundle_manifest.json", b"[" * 100_000, "predict", "RUN", "PICTURE"), 1,
        ("bundle_manifest.json",)),
    "sealed over: config": (resealed("config.json", b"null"), 1, ("config.json",)),
}  # fmt: skip
# A key and its value that cannot be right: the line names both, and these further facts.
KEYS: dict[str, tuple[str, ...]] = {
    "data.source=./nowhere": (), "data.source=photos": (), "data.source=org/nothing": (),
    "data.on_bad_image=maybe": ("error", "skip"), "phase1.learning_rate=fast": ("number",), "data=5": (),
    "data.augment.flip=1": ("true",), "phase1.learning_rate=.nan": (), "phase1.num_train_epochs=0": (),
    "phase1.max_steps=0": ("-1",), "phase1.gradient_accumulation_steps=-2": ("1",),
    "phase1.gradient_accumulation_steps=0": ("1",), "phase1.warmup_steps=-1": (), "phase1.weight_decay=-1": (),
    "phase1.dataloader_num_workers=-1": (), "phase1.adam_beta1=1.5": (), "phase1.label_smoothing_factor=2": (),
    "phase1.save_total_limit=0": (), "phase1.seed=1099511627776": ("4,294,967,295",),
    "phase1.metric_for_best_model=accuracy": ("mcc",), "model.image_size=30": ("14", "28", "42"),
    "model.config.patch_size=0": (), "model.config.num_attention_heads=3": ("model.config.hidden_size", "32"),
    "model.config.num_hidden_layers=0": (), "model.config.num_channels=1": ("RGB",),
    "model.config.model_type=resnet": ("vit", "dinov2"), "data.target_prior=1": (), "data.cache_px=0": (),
    "phase6.n_resamples=0": ("100",), "phase1.adapter=lorra": ("'lora'",), "phase1.adapter=prompt_tuning": (),
    "phase1.adapter=xlora": ("merged",), "phase4.crops=5": (), "phase4.objective=simclr": ("dinov2", "mae"),
    "phase4.alpha=.inf": (), "phase4.learning_rate=.nan": (), "phase4.max_steps=0": ("num_train_epochs",),
    "phase4.num_train_epochs=5": ("max_steps=-1",), "phase4.label_smoothing_factor=.1": (),
    "phase4.probe_rows=2": ("20",), "phase4.hub_token=x": ("hf auth login",), "phase4.mae.mask_ratio=1": (),
    "phase4.mae.decoder_width=90": ("4",), "phase4.mae.decoder_heads=5": ("96",),
    "phase4.dinov2.teacher_temperature=[.04]": ("0.04",), "phase4.unfreeze_blocks=[7]": ("7", "0 to 1"),
    "phase4.unfreeze_blocks=[0, 1]": ("trainable=all",), "phase4.neftune_noise_alpha=5": (),
    "phase4.supervised.adapter=lorra": ("'lora'",), "phase4.unlabelled=./frames": ("list",),
}  # fmt: skip


def _of_key(pair: str) -> tuple[Make, int, tuple[str, ...]]:
    key, value = pair.split("=", 1)
    facts = (key.split(".")[-1], str(yaml.safe_load(value)), *KEYS[pair])
    return (explora if key.startswith("phase4.") else override)(pair), 2, facts


TABLE |= {pair: _of_key(pair) for pair in KEYS}


# What only the rows, or the weights themselves, can show.
FOUND_LATER = (
    *("larger than all rows", "backbone with NaN", "backbone cut short"),
    *("unknown adapter option", "adapter rank 0", "adapter rank of text", "adapter without a place"),
    *("explora: no such folder", "explora: a folder of nothing", "explora: nothing but test rows"),
)
# A finished result of other settings is set aside while these are at work, and comes back with its settings.
SETS_ASIDE = {"full: the sweep": "phase2_threshold", "full: the bundle": "phase6_export"}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_one_line_and_damages_nothing(name: str, place: Place, command: Command) -> None:
    make, expected, parts = TABLE[name]
    arguments, fresh = make(place), place.folder / "fresh"
    settings = [str(argument) for argument in arguments[4:] if "=" in str(argument)]
    about_training = bool(settings) and all(pair.startswith(("phase1.", "phase4.", "model.")) for pair in settings)
    if expected == 2 and about_training and name not in FOUND_LATER:
        arguments[3] = fresh
    before = [(folder, snapshot(folder)) for folder in place.guarded]
    code, out, err = command(*arguments)
    place.patch.undo()
    assert code == expected, (out, err)
    assert "Traceback" not in err
    if arguments[0] == "verify":
        line = out
        assert err == ""
    else:
        lines = [line for line in err.splitlines() if line.startswith("natix-hf: ")]
        assert len(lines) == 1 and err.endswith(lines[0] + "\n"), err
        line = lines[0]
    for part in parts:
        number = re.fullmatch(r"-?[\d.]+", part)  # as a word of its own: a 1 stands in many a line
        assert re.search(rf"(?<![\w.-]){re.escape(part)}(?![\w])", line) if number else part in line, (part, line)
    if expected == 2 and about_training and name not in FOUND_LATER:
        assert not fresh.exists(), "found before any work began"
    for folder, files in before:
        if name in SETS_ASIDE and folder == place.finished:
            assert files.items() <= kept(folder).items()
        else:
            assert snapshot(folder) == files, f"{folder} was changed"
    begun = [fresh / PHASES[number].folder for number in ORDER if (fresh / PHASES[number].folder).is_dir()]
    at_work = place.finished / SETS_ASIDE[name] if name in SETS_ASIDE else begun[-1] if begun else None
    if code == 1 and at_work:
        assert not (at_work / "manifest.json").exists()


@pytest.mark.skipif(not runs_on_cpu(), reason="half precision is fine on a GPU")
def test_half_precision_without_a_gpu(place: Place, command: Command) -> None:
    code, _, err = command(*place.run("phase1.fp16=true"))
    assert code == 2 and "phase1.fp16" in err and "GPU" in err


def test_a_phase_script_on_a_full_disk(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    full_disk("sweep.parquet")(place)
    given = ["--recipe", str(place.recipe), "--run-dir", str(place.finished), "phase2.n_resamples=150"]
    with pytest.raises(SystemExit) as caught:
        phase_script(2, given)
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left on device" in error and "sweep.parquet" in error


# `data.on_bad_image: skip`.


def test_skipped_images_are_counted_and_listed(place: Place, command: Command) -> None:
    folder = rows_of(place, [0] * 20 + [1] * 22, cells=[TEXT, None])
    files = snapshot(folder)
    plain = [f"data.source={folder}", "data.group_by=null", "data.slices=[]"]
    arguments = place.fresh(*plain, "data.on_bad_image=skip", "phase1.num_train_epochs=1")
    code, out, _ = command(*arguments)
    assert code == 0
    assert any("splits.json" in line and "2" in line for line in out.splitlines())
    run = place.folder / "fresh"
    splits = json.loads((run / "phase0_data" / "splits.json").read_text(encoding="utf-8"))
    assert splits["dropped_reasons"] == {"unreadable image": 2}
    text, null = splits["dropped"]
    assert (text["id"], null["id"]) == ("train/40", "train/41")
    assert text["reason"] != null["reason"]
    assert sorted(splits["ids"]) == sorted(f"train/{i}" for i in range(40)), "in no role"
    assert find_problems(str(run)) == [] and snapshot(folder) == files
    written = {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}
    assert command(*arguments)[0] == 0
    assert len(written) == 4 and written == {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}
    # The decoded copies are shared by both settings: the next run must not take what the first one skipped.
    code, _, err = command(*place.run(*plain, on=place.folder / "strict"))
    assert code == 2 and "train/40" in err and "data.on_bad_image=skip" in err


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_an_image_that_was_readable_when_the_rows_were_divided(on_bad_image: Any, place: Place) -> None:
    config = DataConfig(source=str(rows_of(place, HALVES)), on_bad_image=on_bad_image)
    splits = load_image_data(config).splits
    rows_of(place, HALVES, cells=[TEXT])
    with refused(DataError, "train/23"):
        load_image_data(config, splits)


def test_an_image_that_was_left_out_stays_out(place: Place) -> None:
    """Repaired later, it is in no role of a run whose rows were divided without it."""
    config = DataConfig(source=str(rows_of(place, HALVES, cells=[TEXT])), on_bad_image="skip")
    splits = load_image_data(config).splits
    rows_of(place, HALVES)
    data = load_image_data(config, splits)
    assert "train/23" not in {row_id for role in set(splits.roles) for row_id in data.role(role).ids}


# A checkpoint that was damaged while its training was interrupted.


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_file: Path) -> Path:
    """A run whose training stopped before the third checkpoint was marked complete."""
    run, marked = tmp_path_factory.mktemp("interrupted") / "run", iter(range(9))

    def mark(checkpoint: Path) -> None:
        if next(marked) == 2:
            raise KeyboardInterrupt
        mark_complete(checkpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("natix_hf.trainers.base.mark_complete", mark)
        patch.setenv("NATIX_HF_CACHE", str(run.parent / "cache"))
        with pytest.raises(SystemExit) as caught:
            cli.main(["run", str(tiny_recipe_file), "--run-dir", str(run), "--phases", "1"])
    assert caught.value.code == 130
    return run


def _change(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).write_bytes(change((checkpoint / name).read_bytes())) and None


@pytest.mark.parametrize(
    ("newest", "older", "resumed"),
    [
        (_change("model.safetensors", flip_last), None, "checkpoint-5"),
        (_change("optimizer.pt", half), None, "checkpoint-5"),
        (lambda checkpoint: (checkpoint / "trainer_state.json").unlink(), None, "checkpoint-5"),
        (_change("complete.json", lambda _: b"[]"), _change("complete.json", half), None),
    ],
    ids=["weights", "optimizer", "a file is gone", "both markers"],
)
def test_a_damaged_checkpoint_is_passed_over(
    newest: Any, older: Any, resumed: str | None, interrupted: Path, place: Place, command: Command,
    _finished_run: Path,
) -> None:  # fmt: skip
    """Training goes on from the newest whole one, or anew, to the very weights of an undisturbed training."""
    run = Path(shutil.copytree(interrupted, place.folder / "run"))
    checkpoints = run / "phase1_baseline" / "checkpoints"
    assert {"checkpoint-5", "checkpoint-10"} <= {path.name for path in checkpoints.iterdir()}
    newest(checkpoints / "checkpoint-10")
    if older is not None:
        older(checkpoints / "checkpoint-5")
    code, _, err = command(*place.run("--phases", "1", on=run))
    assert code == 0, err
    metrics, undisturbed = (
        json.loads((r / "phase1_baseline" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
        for r in (run, _finished_run)
    )
    assert metrics["resumed_from"] == resumed
    assert metrics["candidate_sha256"] == undisturbed["candidate_sha256"]
    assert find_problems(str(run)) == []


def test_a_damaged_best_checkpoint_is_no_candidate(interrupted: Path, place: Place, command: Command) -> None:
    """The newest is whole, so training goes on; but the best epoch, whose weights are wanted, was another."""
    run = Path(shutil.copytree(interrupted, place.folder / "run"))
    checkpoints = run / "phase1_baseline" / "checkpoints"
    state_file = checkpoints / "checkpoint-10" / "trainer_state.json"
    state = json.loads(state_file.read_text(encoding="utf-8"))
    state |= {"best_model_checkpoint": str(checkpoints / "checkpoint-5"), "best_metric": 2.0, "best_global_step": 5}
    state_file.write_text(json.dumps(state), encoding="utf-8")
    mark_complete(checkpoints / "checkpoint-10")
    _change("model.safetensors", flip_last)(checkpoints / "checkpoint-5")
    code, _, err = command(*place.run("--phases", "1", on=run))
    assert code == 1
    assert "checkpoint-5" in err.splitlines()[-1]
    assert not (run / "phase1_baseline" / "manifest.json").exists()
