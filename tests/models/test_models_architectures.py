"""An architecture is one row of the table: with the row alone it is pretrained, trained, folded, told and loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import IN_A_ROW, TINY, explora_recipe, tiny_backbone, write_parquet_source
from refusals import refused
from transformers import AutoConfig, AutoModel

from natix_hf.errors import RecipeError
from natix_hf.models.architectures import (
    ARCHITECTURES,
    ENCODERS,
    Architecture,
    has_fixed_size,
    is_unknown_to_the_miner,
    loading_options,
    prefix_tokens,
)
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.pipeline import run_recipe
from natix_hf.runs.verify import find_problems
from natix_hf.ssl.mae import encode_visible
from natix_hf.ssl.objectives import OBJECTIVES, default_objective

PACKAGE = Path(__file__).resolve().parents[2] / "natix_hf"
# A ViT with a second token before the patches, which nothing here knows of but this row.
DEIT = Architecture(positions="fixed", objective="mae", known_to_the_miner=False, pooled=True, extra_tokens=1)


@pytest.fixture
def deit(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(ARCHITECTURES, "deit", DEIT)
    monkeypatch.setitem(TINY, "deit", TINY["vit"] | {"model_type": "deit"})
    return TINY["deit"]


@pytest.mark.parametrize("name", IN_A_ROW)
def test_a_row_says_what_transformers_does(name: str) -> None:
    found, backbone = ARCHITECTURES[name], tiny_backbone(name)
    pixels = torch.zeros(1, 3, 28, 28)
    assert backbone(pixels).last_hidden_state.shape[1] == prefix_tokens(backbone.config) + 16
    pooler = getattr(AutoModel.from_config(backbone.config), "pooler", None)
    assert (pooler is not None) == found.pooled == bool(loading_options(name))
    larger = torch.zeros(1, 3, 42, 42)
    if found.positions == "fixed":
        with pytest.raises(ValueError, match="42"):
            backbone(larger)
        assert backbone(larger, interpolate_pos_encoding=True).last_hidden_state.shape[1] == 1 + 36
    else:
        assert backbone(larger).last_hidden_state.shape[1] == prefix_tokens(backbone.config) + 36
        assert hasattr(backbone.embeddings, "interpolate_pos_encoding") == (found.positions == "interpolated")
    assert found.objective is None or found.objective in OBJECTIVES


@pytest.mark.usefixtures("deit")
def test_what_the_tokens_are(deit: dict[str, Any]) -> None:
    config = AutoConfig.for_model(**deit, image_size=28)
    assert (prefix_tokens(config), default_objective("deit"), is_unknown_to_the_miner("deit")) == (2, "mae", True)
    backbone = AutoModel.from_config(config, **loading_options("deit")).eval()
    with torch.inference_mode():
        pixels = torch.randn(2, 3, 28, 28)
        whole = backbone(pixels).last_hidden_state
        seen = encode_visible(backbone, pixels, torch.arange(4).expand(2, 4))
    torch.testing.assert_close(seen, whole[:, [0, 2, 3, 4, 5]])  # the distillation token is no patch
    given = ModelConfig(config=deit | {"image_size": 42}, image_size=28)
    refused(RecipeError, lambda: build_classifier(given, 0), "model.image_size", "28", "42", "deit")


def test_a_row_is_enough_for_a_whole_run(deit: dict[str, Any], tmp_path: Path) -> None:
    source = write_parquet_source(tmp_path / "source", groups=40)
    tiny_backbone("deit", layers=2).save_pretrained(tmp_path / "backbone")
    recipe = explora_recipe(tmp_path, source, tmp_path / "backbone")
    run = run_recipe(recipe, [1, 4, 2, 6], tmp_path / "run", overrides=["phase1.adapter=lora"])
    assert find_problems(str(run)) == []
    card = (run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "A deit image classifier" in card and "does not know deit" in card
    assert "cannot load a deit" in (run / "report.html").read_text(encoding="utf-8")


def test_a_checkpoint_is_its_encoder() -> None:
    for checkpoint, encoder in ENCODERS.items():
        assert has_fixed_size(checkpoint) == has_fixed_size(encoder)
        assert default_objective(checkpoint) == default_objective(encoder)
    assert not has_fixed_size("resnet") and not is_unknown_to_the_miner(None) and loading_options("resnet") == {}


def test_the_table_is_light() -> None:
    code = "import sys, natix_hf.models.architectures; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_other_file_asks_for_a_name() -> None:
    """A comparison with the name of an architecture elsewhere is a place that a new one would be forgotten in."""
    named = "|".join((*ARCHITECTURES, *ENCODERS))
    asks = re.compile(rf"""model_type.{{0,40}}["']({named})|architecture.{{0,20}}["']({named})["']""")
    for path in (*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "model_cards").glob("*.jinja")):
        allowed = path.name in ("architectures.py", "recipe.py")  # a recipe without a model is a plain ViT
        assert allowed or not asks.search(path.read_text(encoding="utf-8")), path
