"""Shared fixtures: tiny models, tiny images on disk, one finished run."""

from __future__ import annotations

import os

# Before any import of the libraries: no network, no shared caches of the developer's, one thread a worker.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import io
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts import tells
from local_hub import LocalHub
from PIL import Image

# A shell that starts pytest in the background has SIGINT ignored, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"

# A whole training with one of these takes about a second.
TINY: dict[str, dict[str, Any]] = {
    "vit": {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64, "patch_size": 14},
    "dinov2": {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
               "patch_size": 14},
    "dinov2_with_registers": {"model_type": "dinov2_with_registers", "hidden_size": 32, "num_hidden_layers": 2,
                              "num_attention_heads": 2, "patch_size": 14, "num_register_tokens": 2},
    "dinov3_vit": {"model_type": "dinov3_vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                   "intermediate_size": 64, "patch_size": 14, "num_register_tokens": 2},
    "convnextv2": {"model_type": "convnextv2", "hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2,
                   "patch_size": 7},
    "swinv2": {"model_type": "swinv2", "embed_dim": 32, "depths": [2, 1], "num_heads": [2, 4], "patch_size": 7,
               "window_size": 2, "pretrained_window_sizes": [0, 0], "drop_path_rate": 0.0},
}  # fmt: skip
STAGED = [name for name, config in TINY.items() if "depths" in config]
IN_A_ROW = [name for name in TINY if name not in STAGED]


def pytest_collection_finish() -> None:
    """What has been imported stays: no full collection (the end of every training asks for one) need walk it again.
    The plots of a tiny run, of which the tests make hundreds, are drawn small: that they are crisp, a person sees."""
    from natix_hf.results import plots

    plots._DPI = 40
    gc.collect()
    gc.freeze()


# Runs that many tests look at: made once, not once by every worker, because these tests go to the same one.
SHARED_RUNS = ("_whole_run", "exam_run", "killed_run", "margin_run", "rich_run", "exported")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        wanted = getattr(item, "fixturenames", ())
        for name in SHARED_RUNS:
            if name in wanted or (name == "margin_run" and "promised_run" in wanted):  # which asks for it when it runs
                item.add_marker(pytest.mark.xdist_group(name))
    if not SHARED.is_dir():
        for item in items:
            if "shared" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"the real photographs are not at {SHARED}"))


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature caches of a test never meet those of another test run."""
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path_factory.getbasetemp() / "natix_cache"))


def tiny_backbone(model_type: str, layers: int = 3, seed: int = 0, **fields: Any) -> Any:
    """A backbone of 28 px without a head, whose weights answer differently to different pictures."""
    import torch
    from transformers import AutoConfig, AutoModel

    from natix_hf.models.architectures import loading_options

    given = {k: v for k, v in TINY[model_type].items() if k != "model_type"}
    given |= {} if "depths" in given else {"num_hidden_layers": layers}
    given |= {"patch_size": 7, "initializer_range": 0.2} | fields
    config = AutoConfig.for_model(model_type, image_size=28, **given)
    torch.manual_seed(seed)
    return AutoModel.from_config(config, dtype=torch.float32, **loading_options(model_type))


def save_vit_mae(folder: Path, **fields: Any) -> Any:
    """A ViT-MAE of 28 px with its decoder, saved as on the Hub; no tensor stands where a fresh one would."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    given = {k: v for k, v in TINY["vit"].items() if k != "model_type"} | {"num_hidden_layers": 3, "patch_size": 7}
    given |= {f"decoder_{k}": v for k, v in {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32
    }.items()}  # fmt: skip
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(
        ViTMAEConfig(**given | {"image_size": 28, "initializer_range": 0.2, "norm_pix_loss": True} | fields)
    ).eval()
    for tensor in model.state_dict().values():
        tensor.add_(torch.randn_like(tensor) * 0.05)
    model.save_pretrained(folder)
    return model


def striped_image(label: int, rng: np.random.Generator, size: tuple[int, int] = (36, 30)) -> Image.Image:
    """Noise with orange stripes for label 1 and a blue patch for label 0: learnable in a second, no two equal."""
    width, height = size
    pixels = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    if label:
        pixels[::4, :, 0], pixels[::4, :, 2] = 240, 20
    else:
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        pixels[top : top + 10, left : left + 10, 2] = 230
    return Image.fromarray(pixels)


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet_source(
    folder: Path,
    groups: int = 40,
    frames: int = 3,
    positive_share: float = 0.5,
    official_test: int = 0,
    seed: int = 0,
    unclear: int = 0,
) -> Path:
    """A parquet folder with the Hub dataset's column names, sorted by class, several frames a group. One in `unclear`
    groups shows rather the other class: whoever has learned from the others is wrong there."""
    import datasets

    rng = np.random.default_rng(seed)
    for split, count in {"train": groups, "test": official_test}.items():
        if not count:
            continue
        rows: dict[str, list[Any]] = {"image": [], "id": [], "label": [], "scene_description": []}
        rows |= {"video_info.vid_id": [], "scene_level_tags.weather": []}
        n_positive = round(count * positive_share)
        for group in range(count):
            label = int(group >= count - n_positive)
            for frame in range(frames):
                picture = striped_image(label, rng)
                if unclear and group % unclear == 0:
                    picture = Image.blend(striped_image(1 - label, rng), picture, 0.4)
                rows["image"].append({"bytes": png_bytes(picture), "path": None})
                rows["id"].append(f"{split}-{group}-{frame}")
                rows["label"].append(label)
                rows["scene_description"].append("stripes" if label else "")
                rows["video_info.vid_id"].append(f"{split}-{group}")
                rows["scene_level_tags.weather"].append("rain" if group % 3 else "clear")
        features = datasets.Features(
            {name: datasets.Value("string") for name in rows}
            | {"image": datasets.Image(), "label": datasets.Value("int64")}
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return folder


TINY_RECIPE: dict[str, Any] = {
    "data": {"group_by": "video_info.vid_id", "slices": ["scene_level_tags.weather"], "augment": {"rotate": 5}},
    "model": {"config": TINY["dinov2"], "image_size": 28},
    "phase1": {
        "num_train_epochs": 3,
        "learning_rate": 2e-3,
        "per_device_train_batch_size": 16,
        "dataloader_num_workers": 0,
        "logging_steps": 2,
    },
    "phase2": {"n_resamples": 200},
    "phase3": {"num_train_epochs": 3, "folds": 2, "n_resamples": 100},
    "phase5": {"n_resamples": 100},
    "phase6": {"n_resamples": 200},
}


def write_recipe(path: Path, content: dict[str, Any]) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


STAGE_A: dict[str, Any] = {
    "max_steps": 6,
    "probe_steps": 3,
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 16,
    "dataloader_num_workers": 0,
    "logging_steps": 2,
    "rank": 4,
    "mae": {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
    "dinov2": {"n_prototypes": 32, "head_hidden": 32, "bottleneck": 16},
    "crops": {"local_crops": 2},
}


def explora_recipe(folder: Path, source: Path | None, backbone: Path | None, **phase4: Any) -> str:
    """A tiny recipe with a phase 4, from a folder of weights or from none, with labelled images or without."""
    content = TINY_RECIPE | {
        "data": {**TINY_RECIPE["data"], "source": str(source) if source else None},
        "model": {"backbone": str(backbone), "image_size": 28} if backbone else TINY_RECIPE["model"],
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1},
        "phase4": STAGE_A | phase4,
    }
    return str(write_recipe(folder / "tiny.yaml", content))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny DINOv2 backbone."""
    folder = tmp_path_factory.mktemp("pretrained") / "backbone"
    tiny_backbone("dinov2", layers=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def parquet_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def tiny_recipe_file(tmp_path_factory: pytest.TempPathFactory, parquet_source: Path) -> Path:
    """A recipe file that trains in seconds on `parquet_source`."""
    content = {**TINY_RECIPE, "data": {**TINY_RECIPE["data"], "source": str(parquet_source)}}
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", content)


@pytest.fixture(scope="session")
def _finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_file: Path) -> Path:
    from natix_hf.pipeline import run_recipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_recipe(str(tiny_recipe_file), run_dir=tmp_path_factory.mktemp("runs") / "finished")


FINISHED = (0, 1, 2, 6)  # the phases of `finished_run`


@pytest.fixture
def finished_run(_finished_run: Path, tmp_path: Path) -> Path:
    """A private copy of one finished run of phases 1, 2 and 6: tests may damage it."""
    return Path(shutil.copytree(_finished_run, tmp_path / _finished_run.name))


@pytest.fixture
def bundle(_finished_run: Path, tmp_path: Path) -> Path:
    """A private copy of its bundle: tests may damage it."""
    return Path(shutil.copytree(_finished_run / "phase6_export" / "bundle", tmp_path / "a bundle"))


@pytest.fixture(scope="session")
def _whole_run(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    from natix_hf.pipeline import run_recipe
    from natix_hf.results import plots

    folder = tmp_path_factory.mktemp("whole")
    source = write_parquet_source(folder / "source", groups=60, official_test=30, unclear=3)
    recipe = explora_recipe(folder, source, pretrained, objective="mae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(folder / "cache"))
        patch.setattr(plots, "_DPI", 200)  # as they are: a browser lays its page out
        overrides = ["phase1.adapter=lora", "phase5.risk.alpha=0.6", "phase5.risk.delta=0.3", "data.target_prior=0.5"]
        overrides += ["phase6.model_name=Road watch", "phase6.description=Cones?"]
        return run_recipe(recipe, [1, 4, 2, 3, 5, 6], folder / "run", overrides=overrides)


@pytest.fixture
def whole_run(_whole_run: Path, tmp_path: Path) -> Path:
    """A private copy of a finished run of every phase, whose model is often wrong."""
    return Path(shutil.copytree(_whole_run, tmp_path / _whole_run.name))


@pytest.fixture
def upstream_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases read what a test has put in the folders of earlier phases, which have no manifests."""
    from natix_hf.runs.inputs import Inputs

    monkeypatch.setattr(Inputs, "take", lambda self, phase, *names: self.run_dir / phase.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub of this test's own. This process is logged in as ann, who may write to lab and to nothing else."""
    with LocalHub() as local:
        local.add_user(TOKEN, "ann", orgs=["lab"])
        local.add_user("hf_reader", "reader", role="read", orgs=["lab"])
        local.use_in_process(monkeypatch, tmp_path / "hf_home", token=TOKEN, waits=False)
        yield local


TOKEN = "hf_SecretOfAnn"
REPO = "lab/roadwork"


@pytest.fixture
def published(bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bundle` on the Hub as REPO, tagged v1. Afterwards nobody is logged in, and nothing is in the cache."""
    from natix_hf.bundle.push import push_bundle

    done = push_bundle(bundle, REPO, tag="v1")
    hub.use_in_process(monkeypatch, tmp_path / "another_home", waits=False)
    return done


@contextmanager
def refused(kind: type[BaseException] | tuple[type[BaseException], ...], *facts: object) -> Iterator[Any]:
    """An error of this kind, in one line that holds these facts."""
    with pytest.raises(kind) as caught:
        yield caught
    tells(caught.value, *facts)


class Killed(Exception):
    """What `kill_at` raises."""


def kill_at(step: int) -> Any:
    """A callback that ends a training after `step` optimizer steps, as a kill would."""
    from transformers import TrainerCallback

    class KillAt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise Killed

    return KillAt()


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command in this process: exit code, output, errors. `--quiet` lasts for one test."""

    from natix_hf import cli
    from natix_hf.terminal import set_verbosity, verbosity

    usual = verbosity()

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        seen = capsys.readouterr()
        code = caught.value.code
        return (code if isinstance(code, int) else 0), seen.out, seen.err

    yield run
    set_verbosity(usual)
