"""Every recipe that comes with the package, run for a few steps through the real loading code.

Where a recipe names data or weights that are not here, it is pointed at small local stand-ins of the same schema; all
else is as the recipe says.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, png_bytes, striped_image
from transformers import AutoConfig, AutoModel

from natix_hf.data.reading import reading_of
from natix_hf.data.rows import load_image_data
from natix_hf.data.splits import ROLES, leaks_between_roles, read_splits
from natix_hf.models.classifier import build_classifier, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.pipeline import run_recipe
from natix_hf.recipe import load_recipe, packaged_recipes
from natix_hf.runs.verify import run_problems

FEW_STEPS = [
    "phase1.max_steps=3", "phase1.dataloader_num_workers=0", "phase2.n_resamples=100", "phase5.n_resamples=100",
    "phase6.n_resamples=100", "phase4.max_steps=2", "phase4.dataloader_num_workers=0",
]  # fmt: skip
# The architecture behind each Hub id, tiny; patch and image size of the checkpoint's own config are kept.
HUB_BACKBONES: dict[str, dict[str, Any]] = {
    "facebook/dinov2-small": TINY["dinov2"] | {"image_size": 518},
    "facebook/dinov2-base": TINY["dinov2"] | {"image_size": 518},
    "facebook/dinov2-large": TINY["dinov2"] | {"image_size": 518},
    "facebook/dinov3-vitb16-pretrain-lvd1689m": TINY["dinov3_vit"] | {"patch_size": 16, "image_size": 224},
}
# Columns of natix-network-org/roadwork beside the image, with a value for row i of a video.
ROADWORK_COLUMNS: dict[str, Any] = {
    "id": lambda label, video, frame: f"{video}-{frame}",
    "width": lambda label, video, frame: 36,
    "height": lambda label, video, frame: 30,
    "gps": lambda label, video, frame: "40.4406,-79.9959" if frame else None,
    "city_name": lambda label, video, frame: "pittsburgh" if len(video) % 2 else "columbus",
    "scene_description": lambda label, video, frame: "cones beside the road" if label else "",
    "video_info.frame_id": lambda label, video, frame: frame,
    "video_info.seq_id": lambda label, video, frame: 0,
    "video_info.vid_id": lambda label, video, frame: video,
    "scene_level_tags.daytime": lambda label, video, frame: "Light" if frame else "Dark",
    "scene_level_tags.scene_environment": lambda label, video, frame: "Urban",
    "scene_level_tags.travel_alteration": lambda label, video, frame: "None" if frame else None,
    "scene_level_tags.weather": lambda label, video, frame: "Sunny" if label else "Cloudy",
    "label": lambda label, video, frame: label,
}
COLUMNS = ROADWORK_COLUMNS | {"kind": lambda label, video, frame: "shirt" if label else "coat"}
SCHEMAS = {
    "natix-network-org/roadwork": list(ROADWORK_COLUMNS),
    "../shared/data/gtsrb_roadwork": ["id", "label", "scene_description", "video_info.vid_id", "video_info.frame_id"],
    "../shared/data/fashion_shirt": ["id", "label", "scene_description", "kind"],
    "photographs": ["label"],
}
TRAIN_VIDEOS, TEST_VIDEOS, SHARED_VIDEOS, FRAMES = 30, 8, 2, 2
ELSEWHERE = ("quickstart",)  # test_packaging_wheel runs every phase of it


def write_stand_in(folder: Path, columns: list[str]) -> Path:
    """As the Hub's dataset: sorted by class, 83 % positive, an official test split.

    Planted overlap: the last two videos of train are the last two of test as well, where there are videos, and one
    picture of train stands in test again.
    """
    import datasets

    rng = np.random.default_rng(0)
    whole = {"width", "height", "label", "video_info.frame_id", "video_info.seq_id"}
    features = datasets.Features(
        {name: datasets.Value("int64" if name in whole else "string") for name in columns}
        | {"image": datasets.Image()}
    )
    (folder / "data").mkdir(parents=True)
    twice = png_bytes(striped_image(1, rng))
    for split, videos in {"train": TRAIN_VIDEOS, "test": TEST_VIDEOS}.items():
        rows: dict[str, list[Any]] = {name: [] for name in features}
        for number in range(videos):
            label = int(number >= round(0.17 * videos))
            from_train = split == "test" and number >= videos - SHARED_VIDEOS
            video = f"train-{TRAIN_VIDEOS - videos + number}" if from_train else f"{split}-{number}"
            for frame in range(FRAMES):
                picture = twice if (number, frame) == (videos // 2, 0) else png_bytes(striped_image(label, rng))
                rows["image"].append({"bytes": picture, "path": None})
                for name in columns:
                    rows[name].append(COLUMNS[name](label, video, frame))
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def write_own_mix(folder: Path) -> list[str]:
    """The folders of `roadwork_own`, by the names that the recipe gives them: frames of drives in class folders,
    ROADWork's files, look-alikes and synthetic pictures."""
    rng = np.random.default_rng(1)

    def put(path: Path, label: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        striped_image(label, rng).save(path)

    for label, name in enumerate(("none", "roadwork")):
        for drive in range(24):
            for frame in range(FRAMES):
                put(folder / "my_frames" / name / f"{name}{drive}_{frame:04d}.png", label)
        for number in range(6):
            put(folder / "synthetic_pictures" / name / f"{number}.png", label)
            put(folder / "look_alikes" / f"{label}" / f"{number}.png", 0)
    drives = [f"pgh{drive:02d}_{frame:04d}" for drive in range(6) for frame in range(FRAMES)]
    drives += [f"boston_{drive:032x}_000001_{frame}" for drive in range(6) for frame in range(FRAMES)]
    for name in (*drives, "pgh06_0000"):
        put(folder / "roadwork_cmu" / "images" / f"{name}.jpg", 1)
    for part, names in {"train": [*drives[:-4], "pgh06_0000"], "val": drives[-4:]}.items():
        whole = {
            "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate(names)],
            "categories": [{"id": 1, "name": "Cone"}, {"id": 2, "name": "Worker"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1 + i % 2} for i, name in enumerate(names) if name in drives
            ],
        }
        path = folder / "roadwork_cmu" / "annotations" / f"instances_{part}_gps_split.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(whole), encoding="utf-8")
    return drives


def write_backbone(folder: Path, settings: dict[str, Any]) -> Path:
    fields = {key: value for key, value in settings.items() if key != "model_type"}
    AutoModel.from_config(AutoConfig.for_model(settings["model_type"], **fields)).save_pretrained(folder)
    make_processor(ModelConfig(config=settings, image_size=224)).save_pretrained(folder)
    return folder


def test_there_is_a_stand_in_for_every_name() -> None:
    for recipe in map(load_recipe, (path.stem for path in packaged_recipes())):
        assert recipe.data.source in ("synthetic", *SCHEMAS) or recipe.name == "roadwork_own"
        backbone = recipe.model.backbone
        assert backbone is None or backbone.startswith("packaged:") or backbone in HUB_BACKBONES


@pytest.mark.parametrize("name", sorted({path.stem for path in packaged_recipes()} - set(ELSEWHERE)))
def test_a_recipe_runs_on_stand_ins(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # bf16 is refused on a CPU that nobody has asked for
    recipe = load_recipe(name)
    overrides = [*FEW_STEPS, f"phase1.feature_views={min(2, recipe.phase1.feature_views)}"]
    if recipe.data.source == "synthetic":
        overrides += ["data.synthetic.videos=40", "data.synthetic.frames=1"]
    elif isinstance(recipe.data.source, list):
        write_own_mix(tmp_path)
        monkeypatch.chdir(tmp_path)  # its paths are those of the recipe
    else:
        source = write_stand_in(tmp_path / "source", SCHEMAS[recipe.data.source])
        overrides.append(f"data.source={source}")
    if recipe.model.backbone in HUB_BACKBONES:
        backbone = write_backbone(tmp_path / "backbone", HUB_BACKBONES[recipe.model.backbone])
        overrides.append(f"model.backbone={backbone}")
    run = run_recipe(name, run_dir=tmp_path / "run", overrides=overrides)
    assert run_problems(run) == []
    if 4 in recipe.phases:
        explora = json.loads((run / "phase4_explora" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
        assert explora["steps"] == 2 and explora["merge"]["max_difference"] <= 1e-4
        assert (run / "phase4_explora" / "backbone" / "model.safetensors").is_file()
    if 1 not in recipe.phases:
        return
    manifest = json.loads((run / "phase1_baseline" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"]["steps"] == 3
    # bf16 is for autocast: what is stored is float32.
    config = json.loads((run / "phase1_baseline" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float32"
    if isinstance(recipe.data.source, str) and recipe.data.source in SCHEMAS:
        check_splits(run, grouped=recipe.data.group_by is not None)
    if 6 in recipe.phases:
        evaluation = json.loads((run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
        by_source = {"source"} if isinstance(recipe.data.source, list) else set()
        assert set(evaluation["slices"]) == set(recipe.data.slices) | by_source
        assert ("at_target_prior" in evaluation) == (recipe.data.target_prior is not None)
        assert (evaluation["selective"]["promised"] is not None) == (5 in recipe.phases)
    if recipe.model.backbone in HUB_BACKBONES:
        check_weights(run, backbone, recipe.phase1.adapter)


def test_the_own_mix_is_read_as_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drives = write_own_mix(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = load_image_data(load_recipe("roadwork_own").data)
    reading, roles = reading_of(data), dict(zip(data.splits.ids, data.splits.roles, strict=True))
    assert reading["sources"] == {"own": 48 * FRAMES, "cmu": len(drives), "look_alikes": 12, "synthetic": 12}
    assert reading["groups"]["from"] == "pattern" and reading["contradictions"] == 0
    assert [e["file"] for e in reading["files"]["left_out"]] == ["cmu:images/pgh06_0000.jpg"]
    of_source = {row_id: row_id.partition(":")[0] for row_id in roles}
    assert {roles[i] for i, name in of_source.items() if name in ("look_alikes", "synthetic")} == {"train"}
    assert {roles[i] for i, name in of_source.items() if name == "own"} == set(ROLES)
    labels = dict(zip(data.splits.ids, data.splits.labels, strict=True))
    assert {labels[i] for i, name in of_source.items() if name == "cmu"} == {1}
    assert {labels[i] for i, name in of_source.items() if name == "look_alikes"} == {0}
    groups = dict(zip(data.splits.ids, data.splits.groups, strict=True))
    assert len({groups[i] for i, name in of_source.items() if name == "cmu"}) == len(drives) / FRAMES
    assert data.role("train").shares == {"look_alikes": 0.2, "synthetic": 0.3}


def check_splits(run: Path, grouped: bool) -> None:
    """The official test split is whole, and what overlaps with it has left the training side."""
    splits = read_splits(run / "phase0_data" / "splits.json")
    assert leaks_between_roles(splits) == []
    assert len(splits.ids_of("test")) == TEST_VIDEOS * FRAMES
    reasons = Counter(row["reason"].split(" is in test")[0] for row in splits.dropped)
    assert reasons == ({"the same group": SHARED_VIDEOS * FRAMES} if grouped else {}) | {"the same picture": 1}


def check_weights(run: Path, backbone: Path, adapter: str) -> None:
    """`adapter: full` moves the backbone, `none` leaves it bit-equal."""
    candidate = load_classifier(run / "phase1_baseline" / "model").state_dict()
    start = build_classifier(ModelConfig(backbone=str(backbone), image_size=224), seed=0).state_dict()
    moved = [n for n, t in candidate.items() if not n.startswith("classifier.") and not t.equal(start[n])]
    assert bool(moved) == (adapter == "full")
