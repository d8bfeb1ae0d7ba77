"""The trainable weights of ExPLoRA (Khanna et al., arXiv:2406.10973): LoRA on most blocks, one block, all norms."""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from natix_hf.errors import RecipeError
from natix_hf.models.architectures import architecture_of, why_not_unlabelled
from natix_hf.models.tuner import wrap_with_tuner

LORA_TARGETS = ["q_proj", "v_proj"]


def apply_explora(
    backbone: PreTrainedModel, rank: int = 64, alpha: float | None = None, unfreeze_blocks: Sequence[int] = (-1,)
) -> PeftModel:
    """Prepare a backbone for ExPLoRA training.

    Source: Khanna et al., arXiv:2406.10973. The blocks `unfreeze_blocks`, every normalisation layer and the cls token
    are trained in full. All other blocks get LoRA on their queries and values. Everything else is frozen.

    `save_pretrained` of the result writes only the LoRA weights. To save the whole backbone, merge it first with
    `merge_and_unload()`.

    Args:
        backbone ([`~transformers.PreTrainedModel`]): ViT, DINOv2, DINOv2 with registers or DINOv3, without a head. It
            is changed in place.
        rank (`int`, defaults to 64): Rank of LoRA. The default is the paper's.
        alpha (`float`, *optional*): LoRA is scaled by `alpha / rank`. `None` sets it to `rank`. The paper's code
            defaults to 1.
        unfreeze_blocks (sequence of `int`, defaults to `(-1,)`): Numbers of the blocks to train in full. Negative
            numbers count from the end.

    Returns:
        [`~peft.PeftModel`]: The backbone with LoRA.

    Raises:
        [`RecipeError`]: If there is no such block, no block is left for LoRA, or the backbone is one in stages.

    Example:
        ```python
        from transformers import AutoModel
        from natix_hf.ssl import apply_explora

        backbone = apply_explora(AutoModel.from_pretrained("facebook/dinov2-base"), rank=16)
        backbone.print_trainable_parameters()
        ```
    """
    found = architecture_of(backbone.config.model_type)
    if found is not None and found.stages:
        raise RecipeError(f"ExPLoRA: {why_not_unlabelled(backbone.config.model_type)}")
    prefix, blocks = block_list(backbone)
    whole, adapted = divide_blocks(backbone, unfreeze_blocks)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]  # declared as an int, used as a factor
        target_modules=[f"{prefix}.{number}.attention.{name}" for number in adapted for name in LORA_TARGETS],
    )
    model = wrap_with_tuner(backbone, config)
    for number in whole:
        blocks[number].requires_grad_(True)
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
    cls_token = backbone.get_parameter("embeddings.cls_token")
    cls_token.requires_grad_(True)
    return model


def unfreeze_blocks_alone(backbone: PreTrainedModel, unfreeze_blocks: Sequence[int] = (-1,)) -> PreTrainedModel:
    """Train only some blocks and freeze everything else. The ExPLoRA paper uses this as a baseline.

    Raises:
        RecipeError: If there is no such block.
    """
    blocks = block_list(backbone)[1]
    backbone.requires_grad_(False)
    for number in divide_blocks(backbone, unfreeze_blocks, adapt_others=False)[0]:
        blocks[number].requires_grad_(True)
    return backbone


def divide_blocks(
    backbone: PreTrainedModel, unfreeze_blocks: Sequence[int], adapt_others: bool = True
) -> tuple[list[int], list[int]]:
    """List the numbers of the blocks to train in full, and of the other blocks.

    Raises:
        RecipeError: If there is no such block, or `adapt_others` is true and there is no other block.
    """
    count, given = len(block_list(backbone)[1]), list(unfreeze_blocks)
    if not all(-count <= number < count for number in given):
        raise RecipeError(f"phase4.unfreeze_blocks is {given}: this backbone has blocks 0 to {count - 1}")
    whole = sorted({number % count for number in given})
    others = [number for number in range(count) if number not in whole]
    if adapt_others and not others:
        raise RecipeError(f"phase4.unfreeze_blocks is {given}: that leaves no block for LoRA, use trainable=all")
    if not adapt_others and not whole:
        raise RecipeError("phase4.unfreeze_blocks is empty: with trainable=blocks nothing would be trained")
    return whole, others


def block_list(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the transformer blocks of a backbone."""
    return next((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList))


def freeze_parts(backbone: PreTrainedModel, *names: str) -> None:
    """Freeze what an objective does not use, by the names of parts: DDP would wait for its gradients."""
    for name, parameter in backbone.named_parameters():
        if not set(names).isdisjoint(name.split(".")):
            parameter.requires_grad_(False)


def plain_backbone(model: nn.Module) -> PreTrainedModel:
    """Unwrap the backbone from a PeftModel. A plain backbone is returned as it is."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner
