"""A `model.backbone` that is no transformers backbone is refused before any work, in one line with the way out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, TINY, tiny_backbone
from refusals import refused

from natix_hf.errors import UsageError
from natix_hf.models.checkpoint import why_unusable
from natix_hf.models.classifier import build_classifier, check_model
from natix_hf.models.config import ModelConfig

VIT = json.dumps(TINY["vit"] | {"model_type": "vit"}).encode()
TIMM = b'{"architecture": "vit_large_patch14_reg4_dinov2", "pretrained_cfg": {}}'
PEFT = b'{"base_model_name_or_path": "org/base"}'
CASES: dict[str, tuple[dict[str, bytes], list[object]]] = {
    "timm": ({"config.json": TIMM, "model.safetensors": b""}, ["timm", "facebook/dinov2-with-registers-large"]),
    "timm in transformers": ({"config.json": b'{"model_type": "timm_wrapper", "architecture": "vit_small"}'},
                             ["timm", "facebook/dinov2-small"]),
    "adapter": ({"adapter_config.json": PEFT, "adapter_model.safetensors": b""}, ["adapter of org/base", "merge"]),
    "adapter beside a model": ({"adapter_config.json": PEFT, "config.json": VIT, "model.safetensors": b""},
                               ["adapter_config.json", "beside", "merge"]),
    "a damaged adapter": ({"adapter_config.json": b"{"}, ["adapter", "merge"]),
    "bin": ({"config.json": VIT, "pytorch_model.bin": b"", "training_args.bin": b"", "optimizer.pt": b""},
            ["pytorch_model.bin", "safetensors", "save_pretrained"]),
    "tensorflow": ({"config.json": VIT, "tf_model.h5": b""}, ["tf_model.h5", "safetensors"]),
    "pt alone": ({"best.pt": b""}, ["best.pt", "config.json", "model.safetensors", "dinov2"]),
    "ckpt alone": ({"last.ckpt": b""}, ["last.ckpt", "config.json"]),
    "nothing": ({}, ["config.json", "model.safetensors", "dinov2"]),
    "pictures": ({"a.jpg": b""}, ["config.json", "model.safetensors"]),
    "no weights": ({"config.json": VIT, "optimizer.pt": b""}, ["no weights", "model.safetensors"]),
    "another name": ({"config.json": VIT, "vit.safetensors": b""}, ["vit.safetensors", "model.safetensors"]),
    "no model type": ({"config.json": b"{}", "model.safetensors": b""}, ["model_type", "dinov2"]),
    "a list": ({"config.json": b"[]", "model.safetensors": b""}, ["model_type", "dinov2"]),
    "not JSON": ({"config.json": b"{", "model.safetensors": b""}, ["JSON"]),
    "sentence-transformers": ({"modules.json": b"[]", "config.json": b"{}"}, ["sentence-transformers", "dinov2"]),
    "clip": ({"config.json": b'{"model_type": "clip"}', "pytorch_model.bin": b""}, ["a clip", "dinov2"]),
    "unknown": ({"config.json": b'{"model_type": "brandnew"}', "model.safetensors": b""}, ["a brandnew", "dinov2"]),
    "Git LFS": ({"config.json": VIT, "model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0"},
                ["git lfs pull"]),
}  # fmt: skip


def _folder(place: Path, files: dict[str, bytes]) -> Path:
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def _refused(backbone: Any, *facts: object) -> None:
    config = ModelConfig(backbone=str(backbone), image_size=28)
    for call in (check_model, lambda model: build_classifier(model, 0)):
        refused(UsageError, lambda call=call: call(config), "model.backbone", *facts)  # type: ignore[misc]


@pytest.mark.parametrize("name", CASES)
def test_a_folder_without_a_backbone(name: str, tmp_path: Path) -> None:
    files, facts = CASES[name]
    _refused(_folder(tmp_path / "given", files), *facts)


def test_a_file_and_a_folder_above_the_backbone(tmp_path: Path) -> None:
    given = _folder(tmp_path / "given", {})
    tiny_backbone("dinov2").save_pretrained(given / "backbone")
    _refused(given / "backbone" / "model.safetensors", "is a file", "folder")
    _refused(given, "config.json", "there is one in backbone")
    check_model(ModelConfig(backbone=str(given / "backbone"), image_size=28))


def test_what_is_named_like_timm_is_known_without_the_hub() -> None:
    _refused("timm/vit_small_patch14_dinov2.lvd142m", "timm", "facebook/dinov2-small")


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json"])
def test_a_backbone_as_transformers_saves_it_is_taken(weights: str) -> None:
    beside = ["README.md", "pytorch_model.bin", "training_args.bin", "onnx/model.onnx", "preprocessor_config.json"]
    assert why_unusable(["config.json", weights, *beside], lambda name: VIT) is None


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "inside", "facts"),
    [
        ("backbone_timm", "timm", ["timm", "facebook/dinov2-with-registers-base"]),
        ("backbone_adapter_only", "adapter", ["adapter of some-org/vit-small-base"]),
    ],
)
def test_folders_that_people_brought(name: str, inside: str, facts: list[object], tmp_path: Path) -> None:
    with tarfile.open(SHARED / "data" / "field_cases" / f"{name}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    [found] = [path for path in tmp_path.rglob(inside) if path.is_dir()]
    _refused(found, *facts)
