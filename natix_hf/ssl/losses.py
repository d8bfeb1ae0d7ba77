"""The parts of the DINOv2 objective (DINO, iBOT, KoLeo) and the teacher's targets, in float32 whatever comes in.

Written so that the average over ranks of values and gradients, which is what DDP takes, is that of one process with
all the rows. What needs the rows of all ranks (Sinkhorn, centring, KoLeo) calls collectives where there are several;
then every rank must make the same calls.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def sinkhorn_targets(logits: torch.Tensor, temperature: float, n_iterations: int = 3) -> torch.Tensor:
    """Assignments of samples to prototypes that use all prototypes alike (Sinkhorn-Knopp), over all ranks.

    Each iteration scales the columns of exp(logits / temperature) to equal sums, then the rows to sums of 1. The
    number of samples cancels, so ranks may hold different numbers of them, or none.

    Args:
        logits: [n, prototypes] of this rank's samples; those of one prototype within 87 temperatures of each other
            (cosines at .04 are within 50).

    Returns:
        float32 [n, prototypes], rows sum to 1.
    """
    with _full_precision(logits):
        masses = logits.float() / temperature
        # A factor to a column changes nothing, because columns are scaled first: each gets a largest mass of 1.
        highest = masses.amax(dim=0) if len(masses) else masses.new_full((masses.shape[1],), -torch.inf)
        if world_size() > 1:
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        masses = (masses - highest).exp_()
        for _ in range(n_iterations):
            columns = masses.sum(dim=0)
            if world_size() > 1:
                dist.all_reduce(columns)
            masses /= columns
            masses /= masses.sum(dim=1, keepdim=True)
        return masses


def centred_targets(logits: torch.Tensor, centre: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax((logits - centre) / temperature) of [n, prototypes] and [prototypes], without gradient."""
    with torch.no_grad(), _full_precision(logits):
        return ((logits.float() - centre) / temperature).softmax(dim=-1)


class Centre(nn.Module):
    """Running mean of the teacher's logits over batches of all ranks: what `centred_targets` takes off.

    Args:
        n_prototypes: width of the logits.
        momentum: of the running mean.
    """

    centre: torch.Tensor

    def __init__(self, n_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(n_prototypes))
        # No buffer: DDP would overwrite it with rank 0's between two batches of one step.
        self._seen: torch.Tensor | None = None  # sum of the logits, then their number, since the last update

    @torch.no_grad()
    def observe(self, logits: torch.Tensor) -> None:
        """Notes [n, prototypes] of this rank for the next update."""
        seen = torch.cat([logits.float().sum(dim=0), logits.new_full((1,), len(logits), dtype=torch.float32)])
        self._seen = seen if self._seen is None else self._seen + seen

    @torch.no_grad()
    def update(self) -> None:
        """Moves the centre towards the mean of what all ranks noted since the last update; every rank must call."""
        seen = torch.zeros(len(self.centre) + 1, device=self.centre.device) if self._seen is None else self._seen
        self._seen = None
        if world_size() > 1:
            dist.all_reduce(seen)
        if seen[-1] > 0:
            self.centre.lerp_(seen[:-1] / seen[-1], 1 - self.momentum)


def dino_loss(
    student_globals: torch.Tensor,
    student_locals: torch.Tensor,
    teacher_globals: torch.Tensor,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Cross-entropy between crops of one image, never of a crop with itself.

    Args:
        student_globals: logits [b, 2, prototypes].
        student_locals: logits [b, local crops, prototypes]; there may be none.
        teacher_globals: targets [b, 2, prototypes], rows sum to 1.

    Returns:
        The mean over the b images and the 2 + 2 * local crops pairs.
    """
    with _full_precision(student_globals):
        globals_, locals_ = (_log_softmax(logits, temperature) for logits in (student_globals, student_locals))
        # Linear in the log-probabilities: one product with the sum over the local crops stands for all pairs.
        pairs = teacher_globals * globals_.flip(1) + teacher_globals * locals_.sum(dim=1, keepdim=True)
        return -pairs.sum() / (len(globals_) * (2 + 2 * locals_.shape[1]))


def ibot_loss(
    student_tokens: torch.Tensor, teacher_tokens: torch.Tensor, masks: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """Cross-entropy at the masked patches; every masked image counts alike, one without a mask counts as 0.

    Args:
        student_tokens: logits [m, prototypes] of the m masked patches, image by image.
        teacher_tokens: targets [m, prototypes] at the same places, rows sum to 1.
        masks: bool [images, patches] with m True.

    Returns:
        The sum over tokens, each by 1 / (masked patches of its image), by the number of images. 0 where m is 0, still
        part of the graph.
    """
    with _full_precision(student_tokens):
        per_token = -(teacher_tokens * _log_softmax(student_tokens, temperature)).sum(dim=-1)
        counts = masks.sum(dim=1)
        weights = (1 / counts.clamp_min(1).float()).repeat_interleave(counts)
        return (per_token * weights).sum() / len(masks)


def koleo_loss(features: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Minus the mean log distance of each unit vector to its nearest neighbour among those of all ranks.

    Its value is that of all rows, on every rank. Its gradient is the own rows' share of it, times the number of ranks:
    DDP's average then is the gradient of all rows, those pairs included whose two ends are on different ranks.

    Args:
        features: [b, d], not normalised; b equal on all ranks. A single vector has no neighbour: 0.
    """
    with _full_precision(features):
        own = normalize(features.float(), dim=-1)
        everyone = _rows_of_all_ranks(own)
        if len(everyone) < 2:
            return own.sum() * 0
        with torch.no_grad():
            nearest = (everyone @ everyone.T).fill_diagonal_(-2).argmax(dim=1)
        distances = torch.linalg.vector_norm(everyone - everyone[nearest], dim=1)
        loss = -(distances + eps).log().mean()
        scaled: torch.Tensor = loss + (world_size() - 1) * (loss - loss.detach())
        return scaled


def _rows_of_all_ranks(own: torch.Tensor) -> torch.Tensor:
    """[ranks * b, d] of the ranks in order; a gradient flows into the own rows only."""
    if world_size() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[dist.get_rank()] = own
    return torch.cat(parts)


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return (logits.float() / temperature).log_softmax(dim=-1)


def _full_precision(tensor: torch.Tensor) -> torch.autocast:
    """Keeps an autocast around the caller from rounding products of float32 to 16 bits."""
    return torch.autocast(tensor.device.type, enabled=False)
