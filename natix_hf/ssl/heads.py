"""The projection head, which compares a token with learned prototypes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import weight_norm


class ProjectionHead(nn.Module):
    """Three layers that end in a unit vector, and its cosine similarity to each prototype.

    The initial weights come from torch's global generator. Seed it before you make a head.

    Args:
        in_dim: Width of a token.
        n_prototypes: Number of outputs.
        hidden: Width of the two hidden layers.
        bottleneck: Width of the unit vector.
    """

    def __init__(self, in_dim: int, n_prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        last = nn.Linear(bottleneck, n_prototypes, bias=False)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                # This is about 0.02 at the published width. In a narrow head, a fixed 0.02 gives vectors close to 0,
                # and the gradients of their direction reach thousands.
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        self.last = weight_norm(last)
        # The length of a prototype stays 1. A learned length would undo the temperature.
        length = self.last.parametrizations.weight.original0
        nn.init.ones_(length)
        length.requires_grad_(False)

    @property
    def prototypes(self) -> nn.Parameter:
        """The trained prototypes [n_prototypes, bottleneck]. Only their direction counts."""
        directions: nn.Parameter = self.last.parametrizations.weight.original1
        return directions

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens [n, in_dim] to cosines [n, n_prototypes]. All weights are in the graph, even for n = 0."""
        cosines: torch.Tensor = self.last(normalize(self.mlp(tokens).float(), dim=-1))
        return cosines
