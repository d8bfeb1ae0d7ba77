"""Odd images that work: grey, CMYK, palette, 16-bit, transparent, animated, turned, tiny and very wide ones."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from conftest import TINY, Command
from PIL import Image

from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.rows import load_image_data
from natix_hf.data.views import AskedViews, TrainViews
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.features import cached_features
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.provenance.files import list_files
from natix_hf.runs.verify import find_problems


def _pixels(i: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Two flat colours, another pair for every row: no two rows are one picture, in whatever mode."""
    pixels = np.full((height, width, 3), (5 * i, 200 - 5 * i, 40 + 100 * (i % 2)), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = (250, 5 * i, 10)
    return pixels


def _encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def _picture(i: int, height: int = 20, width: int = 24) -> Image.Image:
    return Image.fromarray(_pixels(i, height, width))


def _turned(i: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(_picture(i), "JPEG", exif=exif)


def _animated(i: int, format: str) -> bytes:
    return _encoded(_picture(i), format, save_all=True, append_images=[_picture(39 - i)], duration=40)


# Kind of image: bytes of the i-th one, size of the upright picture (width, height).
ODD: dict[str, tuple[Callable[[int], bytes], tuple[int, int]]] = {
    "grey": (lambda i: _encoded(_picture(i).convert("L")), (24, 20)),
    "grey with alpha": (lambda i: _encoded(_picture(i).convert("LA")), (24, 20)),
    "CMYK JPEG": (lambda i: _encoded(_picture(i).convert("CMYK"), "JPEG"), (24, 20)),
    "palette": (lambda i: _encoded(_picture(i).quantize(4)), (24, 20)),
    "palette with transparency": (lambda i: _encoded(_picture(i).quantize(4), transparency=0), (24, 20)),
    "16-bit grey": (lambda i: _encoded(Image.fromarray(_pixels(i)[..., 0].astype(np.uint16) * 257)), (24, 20)),
    "RGBA": (lambda i: _encoded(_picture(i).convert("RGBA")), (24, 20)),
    "animated GIF": (lambda i: _animated(i, "GIF"), (24, 20)),
    "animated WebP": (lambda i: _animated(i, "WEBP"), (24, 20)),
    "EXIF-rotated JPEG": (_turned, (20, 24)),
    "one pixel": (lambda i: _encoded(_picture(i, 1, 1)), (1, 1)),
    "one pixel high": (lambda i: _encoded(_picture(i, 1, 50)), (50, 1)),
    "10,000 pixels wide": (lambda i: _encoded(_picture(i, 8, 10_000)), (10_000, 8)),
}
EVERYTHING = AugmentConfig(crop_scale=[0.1, 1], crop_ratio=[0.5, 2], rotate=180, jitter=0.5, grey=1, blur=1, erase=1)


def _odd_source(folder: Path, kinds: list[str], count: int) -> Path:
    cells = [{"bytes": ODD[kinds[i // 2 % len(kinds)]][0](i), "path": None} for i in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": cells, "label": [i % 2 for i in range(count)]}, features=features)
    folder.mkdir()
    table.to_parquet(folder / "train.parquet")
    return folder


def test_odd_images_become_finite_features(tmp_path: Path) -> None:
    """From the source through decoding, every augmentation and the preprocessing to the head's input."""
    source = str(_odd_source(tmp_path / "source", list(ODD), 40))
    data = load_image_data(DataConfig(source=source, augment=EVERYTHING))
    assert data.splits.dropped == [], "no two are one picture"
    config = ModelConfig(config=TINY["dinov2"], image_size=28)
    processor, model = make_processor(config), build_classifier(config, seed=0)
    seen = set()
    for role in ("train", "val_select", "val_calib", "test"):
        rows = data.role(role)
        kinds = [list(ODD)[int(row_id.split("/")[1]) // 2 % len(ODD)] for row_id in rows.ids]
        assert [image.size for image in rows.images()] == [ODD[kind][1] for kind in kinds]
        seen |= set(kinds)
        augmented = TrainViews(rows, EVERYTHING, 28, processor.image_mean, processor.image_std, seed=0)
        originals = AskedViews(ask(rows), Preprocess(processor))
        views: list[Any] = [(originals, range(len(rows)))]
        views += [(augmented, [(epoch, row) for row in range(len(rows))]) for epoch in (1, 2)]
        features = cached_features(model, views, [role], 16, 0, torch.device("cpu"))
        assert features.shape == (3, len(rows), 64) and np.isfinite(features).all()
        assert len(np.unique(features[0], axis=0)) == len(rows), "the pictures differ, so do their features"
    assert seen == set(ODD)


def test_all_odd_images_in_one_run(tmp_path: Path, tiny_recipe_file: Path, command: Command) -> None:
    folder = _odd_source(tmp_path / "source", list(ODD), 40)
    assert 40 >= 2 * len(ODD), "every kind, in both classes"
    settings = [f"data.source={folder}", "data.group_by=null", "data.slices=[]", "phase1.num_train_epochs=1"]
    settings += ["data.augment.grey=0.5", "data.augment.blur=0.5"]
    run = tmp_path / "run"
    code, out, err = command("run", tiny_recipe_file, "--run-dir", run, *settings)
    assert (code, err) == (0, ""), err
    splits = json.loads((run / "phase0_data" / "splits.json").read_text(encoding="utf-8"))
    assert len(splits["ids"]) == 40 and splits["dropped"] == []
    assert find_problems(str(run)) == []
    assert list_files(run / "phase6_export" / "bundle")
    code, out, _ = command("predict", run, *_files_of(tmp_path))
    assert code == 0 and len(out.splitlines()) == len(ODD)


def _files_of(folder: Path) -> list[Path]:
    files = []
    for number, (make, _) in enumerate(ODD.values()):
        files.append(folder / f"{number}.img")
        files[-1].write_bytes(make(number))
    return files
