"""AdaLoRA's budget is told the steps that are done: the last one is the length of the training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from conftest import TINY

from natix_hf.models.adapters import add_adapter
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.trainers.adalora import AdaLoraCallback


def test_the_last_step_settles_the_ranks_and_none_before_it() -> None:
    """At step total_step - tfinal, counted from 1, PEFT keeps target_r ranks a layer and forgets its averages."""
    model = build_classifier(ModelConfig(config=TINY["dinov2"] | {"initializer_range": 0.2}, image_size=28), 0)
    adapted = add_adapter(model, "adalora", {}, total_steps=4, seed=0)
    callback = AdaLoraCallback(adapted)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    settled = []
    for step in range(4):
        adapted(pixel_values=images).logits[:, 1].sum().backward()
        optimizer.step()
        state = SimpleNamespace(global_step=step)  # as Trainer has it when it calls: this step is not yet counted
        callback.on_optimizer_step(None, state, None)  # type: ignore[arg-type]
        settled.append(not callback.tuner.rankallocator.ipt)
        optimizer.zero_grad()
    assert settled == [False, False, False, True]
    config: Any = adapted.peft_config["default"]
    assert sum(sum(kept) for kept in config.rank_pattern.values()) == 4 * 8  # q and v of two blocks
