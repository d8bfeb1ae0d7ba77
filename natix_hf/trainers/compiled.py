"""`torch_compile: true`: the blocks of the backbone are compiled in place, so that no tensor gets another name."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from natix_hf.errors import UsageError
from natix_hf.models.blocks import backbone_blocks


def compile_blocks(model: nn.Module, arguments: TrainingArguments) -> None:
    """Compile every block of every backbone in the model, the teacher's too, and nothing else.

    The blocks of a backbone, or of each of its stages, are alike, so one compiled graph serves all of them. A copy of
    the model is not compiled.

    Raises:
        UsageError: If there is no backbone in the model.
    """
    backbones = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    blocks = {id(block): block for backbone in backbones for block in backbone_blocks(backbone)}
    if not blocks:
        raise UsageError("torch_compile compiles the backbone, and this model has none: leave it out")
    for block in blocks.values():
        block.compile(backend=arguments.torch_compile_backend, mode=arguments.torch_compile_mode)
