"""`torch_compile: true`: the blocks of the backbone are compiled in place, so that no tensor gets another name."""

from __future__ import annotations

import torch
import torch._dynamo.config as limits
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from natix_hf.errors import UsageError, first_line
from natix_hf.models.blocks import backbone_blocks

# Graphs of one kind of block. PyTorch makes 8 by default and leaves what is beyond them uncompiled: a teacher beside a
# student with LoRA, crops of two sizes and probes need more, and so does a model in stages.
_MOST_GRAPHS = 128


def compile_blocks(model: nn.Module, arguments: TrainingArguments) -> None:
    """Compile every block of every backbone in the model, the teacher's too, and nothing else.

    One compiled graph serves all blocks that are alike: those of a backbone, or of each of its stages. Blocks with
    different rates of drop path have one each. A copy of the model is not compiled.

    Raises:
        UsageError: If there is no backbone in the model, or nothing can be compiled here.
    """
    backbones = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    blocks = {id(block): block for backbone in backbones for block in backbone_blocks(backbone)}
    if not blocks:
        raise UsageError("torch_compile compiles the backbone, and this model has none: leave it out")
    require_compiler(arguments, "torch_compile")
    limits.recompile_limit = max(limits.recompile_limit, _MOST_GRAPHS)
    for block in blocks.values():
        block.compile(backend=arguments.torch_compile_backend, mode=arguments.torch_compile_mode)


def require_compiler(arguments: TrainingArguments, key: str) -> None:
    """Compile a sum of two numbers: without a C++ compiler the first step of a training would fail.

    Raises:
        UsageError: If PyTorch cannot compile with these settings on this machine.
    """
    backend, mode = str(arguments.torch_compile_backend), arguments.torch_compile_mode
    try:
        torch.compile(_sum, backend=backend, mode=mode)(torch.ones(2, device=arguments.device))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{key}: PyTorch cannot compile here with torch_compile_backend {backend} and torch_compile_mode {mode} "
            f"({first_line(error)}): install a C++ compiler (g++) if it finds none, or set it to false"
        ) from None


def _sum(numbers: torch.Tensor) -> torch.Tensor:
    return numbers + numbers.flip(0)
