"""The losses of DINOv2 (DINO, iBOT, KoLeo) and the teacher's targets. All of them compute in float32.

DDP averages values and gradients over ranks. Each loss is written so that this average equals the result of one
process with all rows. Sinkhorn, centring and KoLeo need the rows of all ranks and use collectives, so every rank must
make the same calls.
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
    """Assign samples to prototypes so that all prototypes are used equally, over all ranks (Sinkhorn-Knopp).

    Each iteration scales the columns of exp(logits / temperature) to equal sums, then the rows to sums of 1. The
    number of samples cancels out, so ranks may hold different numbers of samples, or none.

    Args:
        logits: float [n, prototypes] for the samples of this rank. The logits of a prototype must lie within 87
            temperatures of each other; cosines at a temperature of 0.04 lie within 50.
        temperature: Temperature of the teacher's softmax.
        n_iterations: Number of iterations.

    Returns:
        float32 [n, prototypes]; each row sums to 1.
    """
    with _full_precision(logits):
        masses = logits.float() / temperature
        # Columns are scaled first, so a factor per column changes nothing. Give each column a largest mass of 1.
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
    """Compute softmax((logits - centre) / temperature) without gradient.

    Args:
        logits: float [n, prototypes].
        centre: float [prototypes].
        temperature: Temperature of the teacher's softmax.

    Returns:
        float32 [n, prototypes]; each row sums to 1.
    """
    with torch.no_grad(), _full_precision(logits):
        return ((logits.float() - centre) / temperature).softmax(dim=-1)


class Centre(nn.Module):
    """Running mean of the teacher's logits over the batches of all ranks. `centred_targets` subtracts it.

    Args:
        n_prototypes: Width of the logits.
        momentum: Momentum of the running mean.
    """

    centre: torch.Tensor

    def __init__(self, n_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(n_prototypes))
        # This is not a buffer, because DDP would overwrite it with rank 0's between two batches of one step.
        self._seen: torch.Tensor | None = None  # sum of the logits since the last update, then their number

    @torch.no_grad()
    def observe(self, logits: torch.Tensor) -> None:
        """Record logits [n, prototypes] of this rank for the next update."""
        seen = torch.cat([logits.float().sum(dim=0), logits.new_full((1,), len(logits), dtype=torch.float32)])
        self._seen = seen if self._seen is None else self._seen + seen

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre towards the mean of all logits recorded since the last update. Every rank must call this."""
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
    """Compute the cross-entropy between different crops of an image.

    Args:
        student_globals: Logits [b, 2, prototypes].
        student_locals: Logits [b, local crops, prototypes]; there may be no local crops.
        teacher_globals: Targets [b, 2, prototypes]; each row sums to 1.
        temperature: Temperature of the student's softmax.

    Returns:
        The mean over the b images and their 2 + 2 * local crops pairs.
    """
    with _full_precision(student_globals):
        globals_, locals_ = (_log_softmax(logits, temperature) for logits in (student_globals, student_locals))
        # The loss is linear in the log-probabilities, so one product with the sum over local crops covers all pairs.
        pairs = teacher_globals * globals_.flip(1) + teacher_globals * locals_.sum(dim=1, keepdim=True)
        return -pairs.sum() / (len(globals_) * (2 + 2 * locals_.shape[1]))


def ibot_loss(
    student_tokens: torch.Tensor, teacher_tokens: torch.Tensor, masks: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """Compute the cross-entropy at the masked patches.

    Every masked image has the same weight. An image without a mask adds 0.

    Args:
        student_tokens: Logits [m, prototypes] of the m masked patches, image by image.
        teacher_tokens: Targets [m, prototypes] at the same patches; each row sums to 1.
        masks: bool [images, patches] with m True values.
        temperature: Temperature of the student's softmax.

    Returns:
        The mean over the masked patches of each image, averaged over all images. It is 0 if m is 0, and still part of
        the graph.
    """
    with _full_precision(student_tokens):
        per_token = -(teacher_tokens * _log_softmax(student_tokens, temperature)).sum(dim=-1)
        counts = masks.sum(dim=1)
        weights = (1 / counts.clamp_min(1).float()).repeat_interleave(counts)
        return (per_token * weights).sum() / len(masks)


def koleo_loss(features: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Compute the negative mean log distance of each normalised vector to its nearest neighbour on any rank.

    Every rank returns the value over all rows. The gradient on a rank is the share of its own rows, multiplied by the
    number of ranks. DDP's average is then the gradient over all rows, including pairs on different ranks.

    Args:
        features: float [b, d], not normalised. All ranks must have the same b.
        eps: Added to each distance.

    Returns:
        The loss. It is 0 for a single vector, which has no neighbour.
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
    """Gather the rows of all ranks, [ranks * b, d] in the order of the ranks. Gradients reach only the own rows."""
    if world_size() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[dist.get_rank()] = own
    return torch.cat(parts)


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return (logits.float() / temperature).log_softmax(dim=-1)


def _full_precision(tensor: torch.Tensor) -> torch.autocast:
    """Turn off autocast, so that float32 products are not rounded to 16 bits."""
    return torch.autocast(tensor.device.type, enabled=False)
