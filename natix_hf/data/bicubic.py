"""Crops that are resized with cubic interpolation, antialiased where they shrink, as Pillow's BICUBIC does.

Both ways of making views come here: one crop of one picture, and a batch of them on a device. A resize is linear and
separable, so a crop is one matrix for its rows, one for its columns, and the picture between them.
"""

from __future__ import annotations

import numpy as np
import torch

from natix_hf.data.drawn import Row

_ROUNDING = 1e-3  # px by which float32 may miss the edge of a crop


def cut_cubic(copies: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """Crop, mirror and resize, without rotation. A crop sees no px beyond its edges.

    Args:
        copies: uint8 [n, H, W, 3], on any device.
        places: Where the views of each lie, from `on_device.place`: float32 [n, views, 8].
        size: Side of a view in px.

    Returns:
        float32 [n * views, 3, size, size], from 0 to 255.
    """
    across, _, left, _, down, top, width, height = places.unbind(dim=2)
    columns = _weights(left, across, width, size, copies.shape[2])
    rows = _weights(top, down, height, size, copies.shape[1])
    pixels = copies.permute(0, 3, 1, 2).to(torch.float32)
    shrunk = torch.einsum("nvih,nchw->nvciw", rows, pixels)
    return torch.einsum("nvciw,nvjw->nvcij", shrunk, columns).clamp_(0, 255).flatten(0, 1)


def cut_cubic_one(part: np.ndarray, at: tuple[int, int], matrix: tuple[Row, Row], size: int) -> torch.Tensor:
    """Make one view as `cut_cubic` does: float32 [3, size, size], from 0 to 255.

    Args:
        part: uint8 [h, w, 3], the px that the view touches.
        at: Left and top of the part in the picture.
        matrix: The map from the view to the picture (`Drawn.to_picture`), without rotation.
        size: Side of the view in px.
    """
    (across, _, x), (_, down, y) = matrix
    height, width, _ = part.shape
    columns = _kernel_weights(torch.tensor(x - at[0]), torch.tensor(across), size, width)
    rows = _kernel_weights(torch.tensor(y - at[1]), torch.tensor(down), size, height)
    # A copy, because torch takes no read-only memory.
    pixels = torch.from_numpy(np.array(part, dtype=np.float32)).view(height, width * 3)
    shrunk = (rows / rows.sum(dim=1, keepdim=True) @ pixels).view(size, width, 3)
    return (shrunk.permute(2, 0, 1) @ (columns / columns.sum(dim=1, keepdim=True)).T).clamp_(0, 255)


def _window(
    start: torch.Tensor, step: torch.Tensor, length: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first px that a crop touches, and its last px + 1."""
    end = start + step * size
    low = (torch.minimum(start, end) + _ROUNDING).floor().clamp(min=0)
    high = (torch.maximum(start, end) - _ROUNDING).ceil()
    return low, torch.minimum(torch.maximum(high, low + 1), length)


def _weights(start: torch.Tensor, step: torch.Tensor, length: torch.Tensor, size: int, longest: int) -> torch.Tensor:
    """Weights of the px of a picture for each px of a view along one axis.

    Args:
        start, step: The map from a position in the view to one in the picture, each [n, views].
        length: Px of the picture, [n, views].
        size, longest: Px of a view, and of the largest picture.

    Returns:
        float32 [n, views, size, longest]; each row sums to 1.
    """
    weights = _kernel_weights(start, step, size, longest)
    px = torch.arange(longest, device=start.device, dtype=torch.float32)
    low, high = (edge[..., None, None] for edge in _window(start, step, length, size))
    weights = weights * ((px >= low) & (px < high))
    return weights / weights.sum(dim=3, keepdim=True)


def _kernel_weights(start: torch.Tensor, step: torch.Tensor, size: int, px: int) -> torch.Tensor:
    """The kernel of each px of a view at each px of a picture along one axis: [..., size, px], not yet of sum 1."""
    at = torch.arange(0.5, size, device=start.device, dtype=torch.float32)
    centres = start[..., None] + step[..., None] * at
    wide = step.abs().clamp(min=1)[..., None, None]
    return cubic_kernel((torch.arange(0.5, px, device=start.device, dtype=torch.float32) - centres[..., None]) / wide)


def cubic_kernel(x: torch.Tensor) -> torch.Tensor:
    """The cubic convolution kernel with a = -0.5 (Keys 1981)."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
