"""Self-supervised training on unlabelled images: ExPLoRA and its objectives. torch is imported on first access."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natix_hf.ssl.explora import apply_explora as apply_explora

__all__ = ["apply_explora"]


def __getattr__(name: str) -> Any:
    if name == "apply_explora":
        from natix_hf.ssl.explora import apply_explora

        return apply_explora
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
