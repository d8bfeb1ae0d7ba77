"""The blocks of a backbone, whichever way its layers are nested."""

from __future__ import annotations

from collections.abc import Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def backbone_blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a backbone in their order: the members of the innermost lists of modules of one kind.

    They stand in one list, or, in a ConvNeXt V2 or Swin V2, in a list in each stage.
    """
    for child in backbone.children():
        if isinstance(child, BaseTunerLayer):
            continue
        inner = list(backbone_blocks(child))
        alike = isinstance(child, nn.ModuleList) and len({type(member) for member in child}) == 1
        yield from inner if inner or not alike else child.children()
