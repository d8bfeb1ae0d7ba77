"""A classifier compiled by PyTorch for the CPU, exact in float32 and checked before it answers."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np

from natix_hf.errors import UsageError, VerificationError, shortened

# Fused kernels add in another order, which moves a value by some 1e-6.
COMPILED_TOLERANCE = 1e-5


def compiled_forward(model: Any, image_size: int) -> Any:
    """Make the forward pass of a classifier on the CPU by `torch.compile`, with its weights frozen into the graph.

    It is compiled for one picture, and a batch is answered picture by picture: so there is one shape and one
    compilation, and an answer does not depend on its batch. That takes tens of seconds; torch keeps what the C++
    compiler made in its own cache folder (`TORCHINDUCTOR_CACHE_DIR`), and a second process takes less.
    The classifier layer is not compiled.

    Args:
        model: A classifier in eval mode, in float32 on the CPU. Its classifier layer is taken out.
        image_size: Height and width of the images, in px.

    Raises:
        UsageError: if it cannot be compiled here; the usual reason is that there is no C++ compiler.
        VerificationError: if the compiled model differs from the plain one by more than 1e-5.
    """
    import torch
    from torch import nn
    from torch._inductor import config

    from natix_hf.models.classifier import head_of
    from natix_hf.models.device import full_float32

    head = head_of(model)
    model.classifier = nn.Identity()  # what the model answers now are the inputs of its classifier layer
    noise = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    one_at_a_time = threading.Lock()

    def features_of(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = model(pixel_values=pixels).logits
        return features

    # torch counts the compilations of one piece of code, of all models together, and refuses the ninth.
    own = FunctionType(features_of.__code__.replace(), globals(), "features_of", None, features_of.__closure__)

    @contextmanager
    def as_compiled() -> Iterator[None]:
        """The settings that torch compiles for. In a caller's own it would compile once more, amid an answer."""
        with torch.inference_mode(False), torch.no_grad(), full_float32():
            yield

    with as_compiled():
        exact = features_of(noise)
        try:
            with config.patch(freezing=True), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about calls of its own
                fused = torch.compile(own, dynamic=False, fullgraph=True)
                found = fused(noise)
        except Exception as error:  # of the compiler, of inductor or of dynamo
            reason = shortened(" ".join(str(error).split()), 200)  # the first line names only the backend
            raise UsageError(
                f"backend compile cannot be had here ({reason}): it needs a C++ compiler, such as g++: install it, or "
                "leave backend out"
            ) from None
        difference = float((found - exact).abs().max() / exact.abs().max().clamp(min=1))
        difference = max(difference, float((head(found) - head(exact)).abs().max()))
    if not difference <= COMPILED_TOLERANCE:
        raise VerificationError(f"the compiled model answers otherwise, by {difference:.1e}: use backend='torch'")

    def forward(pixel_values: Any) -> tuple[np.ndarray, np.ndarray]:
        with one_at_a_time, as_compiled():
            pixels = torch.as_tensor(pixel_values)
            features = torch.cat([fused(picture[None]) for picture in pixels])
            logits = torch.cat([head(row[None]) for row in features])
        return logits.numpy(), features.numpy()

    return forward
