"""From a token to its similarity to learned prototypes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import weight_norm


class ProjectionHead(nn.Module):
    """Three layers, a unit vector, and its cosine to each prototype.

    Initial weights come from torch's global generator: seed it around the constructor.

    Args:
        in_dim: width of a token.
        n_prototypes: outputs.
        hidden: width of the two hidden layers.
        bottleneck: width of the unit vector.
    """

    def __init__(self, in_dim: int, n_prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        last = nn.Linear(bottleneck, n_prototypes, bias=False)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                # About .02 at the published width. A fixed .02 in a narrow head gives vectors near 0, whose direction
                # has gradients in the thousands.
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        self.last = weight_norm(last)
        # The length of a prototype stays 1: a learned one would undo the temperature.
        length = self.last.parametrizations.weight.original0
        nn.init.ones_(length)
        length.requires_grad_(False)

    @property
    def prototypes(self) -> nn.Parameter:
        """The trained directions [n_prototypes, bottleneck]; only their direction counts."""
        directions: nn.Parameter = self.last.parametrizations.weight.original1
        return directions

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, in_dim] -> cosines [n, n_prototypes]; n may be 0, and every weight is part of the graph even then."""
        cosines: torch.Tensor = self.last(normalize(self.mlp(tokens).float(), dim=-1))
        return cosines
