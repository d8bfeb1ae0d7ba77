"""One rank of tests/distributed/test_ssl_two_ranks.py, under a launcher: `ssl_rank.py FOLDER`."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModel

from natix_hf.ssl.dinov2 import DinoV2Objective
from natix_hf.ssl.dinov2_config import DinoV2Config
from natix_hf.ssl.losses import dino_loss, ibot_loss, koleo_loss, sinkhorn_targets

ARCHITECTURE: dict[str, Any] = {
    "image_size": 28, "patch_size": 7, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2
}  # fmt: skip
CONFIG = DinoV2Config(n_prototypes=24, head_hidden=16, bottleneck=8, ema=[0.5, 1.0], freeze_last_layer=0.0)
LR = 2e-3  # gradients are up to 30 here: larger steps would blow rounding up


def share(values: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    """A rank's rows: the ranks in order make up the whole batch."""
    return values.chunk(world)[rank]


def losses_and_gradients(data: dict[str, torch.Tensor], rank: int, world: int) -> dict[str, torch.Tensor]:
    """Values of each loss on the rank's rows, and gradients with respect to them."""
    mine = {name: share(values, rank, world) for name, values in data.items()}
    found = {}
    globals_, locals_, features = (mine[name].clone().requires_grad_() for name in ("globals", "locals", "features"))
    dino_targets = sinkhorn_targets(mine["teacher"].flatten(0, 1), 0.05).view_as(mine["teacher"])
    found["dino_targets"] = dino_targets
    masks = mine["masks"]
    tokens = mine["tokens"].clone().requires_grad_()
    ibot_targets = sinkhorn_targets(mine["teacher_tokens"][masks], 0.05)
    found["ibot_targets"] = ibot_targets
    for name, loss, inputs in (
        ("dino", dino_loss(globals_, locals_, dino_targets), [globals_, locals_]),
        ("ibot", ibot_loss(tokens[masks], ibot_targets, masks), [tokens]),
        ("koleo", koleo_loss(features), [features]),
    ):
        found[name] = loss.detach()
        for at, gradient in enumerate(torch.autograd.grad(loss, inputs)):
            found[f"{name}_{at}"] = gradient
    return found


def trained(data: dict[str, torch.Tensor], rank: int, world: int, targets: str) -> dict[str, torch.Tensor]:
    """The whole objective: gradients of the first step, then its state after two steps of plain SGD."""
    torch.manual_seed(0)
    student = AutoModel.from_config(AutoConfig.for_model("dinov2", **ARCHITECTURE))
    config = replace(CONFIG, targets=targets)  # type: ignore[arg-type]
    objective = DinoV2Objective(student, copy.deepcopy(student), config, 0)
    model: nn.Module = DistributedDataParallel(objective) if world > 1 else objective
    names = ("global_crops", "local_crops", "crop_masks")
    found = {}
    for step in range(2):
        crops, local, masks = (share(data[name], rank, world).roll(step, dims=-1) for name in names)
        objective.on_step_begin(step, 4)
        outputs = model(global_crops=crops, local_crops=local, masks=masks)
        outputs["loss"].backward()
        objective.on_gradients(step, 4)
        for name, parameter in objective.named_parameters():
            if parameter.grad is not None:
                if step == 0:
                    found[f"gradient {name}"] = parameter.grad.clone()
                parameter.data -= LR * parameter.grad
                parameter.grad = None
        objective.on_step_end(step + 1, 4)
        found[f"loss {step}"] = outputs["loss"].detach()
    return found | {name: value.clone() for name, value in objective.state_dict().items()}


def everything(data: dict[str, torch.Tensor], rank: int, world: int) -> dict[str, torch.Tensor]:
    found = losses_and_gradients(data, rank, world)
    for targets in ("sinkhorn", "centre"):
        found |= {f"{targets}: {name}": value for name, value in trained(data, rank, world, targets).items()}
    return {name: value.contiguous() for name, value in found.items()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, world, folder = dist.get_rank(), dist.get_world_size(), Path(sys.argv[1])
    found = everything(load_file(folder / "data.safetensors"), rank, world)
    save_file(found | {"world_size": torch.tensor(world)}, folder / f"rank_{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()
