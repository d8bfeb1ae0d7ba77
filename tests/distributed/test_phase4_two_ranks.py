"""Phase 4 on two gloo ranks: both stages and the control, and one rank's training with the double batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_RECIPE, save_vit_mae, tiny_backbone, write_recipe
from ranks import launch
from safetensors.torch import load_file

from natix_hf.provenance.files import read_json
from natix_hf.resources import resource_folder
from natix_hf.runs.verify import run_problems

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process


@pytest.mark.parametrize("what", ["mae", "dinov2", "dinov2 of a DINOv3", "diet", "mae of a ViT-MAE with its decoder"])
def test_two_ranks_are_one_rank_of_the_double_batch(what: str, parquet_source: Path, tmp_path: Path) -> None:
    """At a small learning rate: AdamW makes steps of the rounding where the true gradient is zero (key biases)."""
    backbone, objective = tmp_path / "backbone", what.split()[0]
    if "ViT-MAE" in what:
        save_vit_mae(backbone)
    else:
        # A DINOv3 stretches positions by one draw a batch, so it is off here.
        of_dinov3: Any = {"pos_embed_rescale": None} if "DINOv3" in what else {}
        kind = "dinov3_vit" if of_dinov3 else "dinov2"
        tiny_backbone(kind, layers=2, **of_dinov3).save_pretrained(backbone)
    stage: dict[str, Any] = {
        "objective": objective, "max_steps": 4, "probe_steps": 2, "learning_rate": 1e-4, "rank": 4,
        "dataloader_num_workers": 0, "dataloader_drop_last": True, "logging_steps": 1,
        "mae": {} if "ViT-MAE" in what else {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
        "dinov2": {"n_prototypes": 32, "head_hidden": 32, "bottleneck": 16}, "crops": {"local_crops": 2},
        "supervised": {"adapter": "lora", "num_train_epochs": 1, "dataloader_num_workers": 0},
        "use_labeled_data": what == "mae",  # once for all: stage (b) does not know the objective
    }  # fmt: skip
    content = TINY_RECIPE | {
        "data": {**TINY_RECIPE["data"], "source": str(parquet_source)},
        "model": {"backbone": str(backbone), "image_size": 28},
        "phase4": stage,
    }
    recipe = write_recipe(tmp_path / "tiny.yaml", content)
    script = resource_folder("recipes") / "phase4.py"
    found = {}
    for config, batch, world in (("cpu.yaml", 16, 1), ("cpu_2proc.yaml", 8, 2)):
        run = tmp_path / f"run-{world}"
        arguments = ["--recipe", str(recipe), "--run-dir", str(run), f"phase4.per_device_train_batch_size={batch}"]
        done = launch(config, script, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        assert run_problems(run) == []
        folder = run / "phase4_explora"
        metrics = read_json(folder / "manifest.json")["metrics"]
        stages = [metrics, *(metrics[name] for name in ("supervised", "control") if what == "mae")]
        assert {each["world_size"] for each in stages} == {world}
        losses = [row["loss"] for row in read_json(folder / "self_supervised_history.json") if "loss" in row]
        assert len(losses) == 4
        found[world] = losses, load_file(folder / "backbone" / "model.safetensors")
    np.testing.assert_allclose(found[2][0], found[1][0], rtol=2e-5)
    for name, tensor in found[1][1].items():
        np.testing.assert_allclose(found[2][1][name], tensor, atol=2e-5, err_msg=name)
