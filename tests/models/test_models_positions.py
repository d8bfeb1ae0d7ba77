"""Positions that are computed once are those that the model computes for every image, bit for bit."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY

from natix_hf.models.classifier import ARCHITECTURES, build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.positions import fix_positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_answers_are_the_same_bits(name: str, dtype: torch.dtype) -> None:
    """Of 37 x 37 positions, as Meta's, where the architecture interpolates."""
    interpolates = name.startswith("dinov2")
    config = TINY[name] | {"initializer_range": 0.3} | ({"image_size": 518} if interpolates else {})
    model = build_classifier(ModelConfig(config=config, image_size=28), seed=0).eval().to(dtype=dtype)
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        before = model(pixel_values=pixels).logits
        embeddings = model.base_model.embeddings
        if interpolates:
            with torch.no_grad():
                embeddings.position_embeddings.mul_(2)  # what is fixed is what the model holds now
            assert not torch.equal(model(pixel_values=pixels).logits, before)
            before = model(pixel_values=pixels).logits
        fix_positions(model, 28)
        assert torch.equal(model(pixel_values=pixels).logits, before)
        if interpolates:
            with torch.no_grad():
                embeddings.position_embeddings.zero_()
            assert torch.equal(model(pixel_values=pixels).logits, before), "nothing is computed any more"
