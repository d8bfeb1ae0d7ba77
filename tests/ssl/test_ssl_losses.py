"""The parts of the DINOv2 objective against sums done by hand and against loops over single numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from natix_hf.ssl.heads import ProjectionHead
from natix_hf.ssl.losses import Centre, centred_targets, dino_loss, ibot_loss, koleo_loss, sinkhorn_targets

MASKS = torch.tensor([[True, True, False], [False, False, False], [False, True, False]])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def cross_entropy(target: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """One number from two vectors, one prototype after the other."""
    total = sum((torch.exp(logit / temperature) for logit in logits), torch.zeros((), dtype=torch.float64))
    loss = torch.zeros((), dtype=torch.float64)
    for share, logit in zip(target, logits, strict=True):
        loss = loss - share * (logit / temperature - torch.log(total))
    return loss


@pytest.mark.parametrize("n_local", [0, 1, 3])
def test_dino_equals_loops_over_pairs(n_local: int) -> None:
    globals_, locals_ = noise(3, 2, 5).requires_grad_(), noise(3, n_local, 5, seed=1).requires_grad_()
    targets = noise(3, 2, 5, seed=2).softmax(-1)
    loss = dino_loss(globals_, locals_, targets)
    slow = torch.zeros((), dtype=torch.float64)
    for image in range(3):
        for t in range(2):
            for s in range(2):
                if s != t:
                    slow = slow + cross_entropy(targets[image, t].double(), globals_[image, s].double(), 0.1)
            for s in range(n_local):
                slow = slow + cross_entropy(targets[image, t].double(), locals_[image, s].double(), 0.1)
    slow = slow / (2 + 2 * n_local) / 3
    assert loss.item() == pytest.approx(slow.item(), rel=1e-5)
    inputs = [globals_, locals_] if n_local else [globals_]
    for found, expected in zip(gradients(loss, *inputs), gradients(slow, *inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_ibot_equals_loops_over_patches() -> None:
    count = int(MASKS.sum())
    logits, targets = noise(count, 5).requires_grad_(), noise(count, 5, seed=1).softmax(-1)
    loss = ibot_loss(logits, targets, MASKS)
    slow, token = torch.zeros((), dtype=torch.float64), 0
    for mask in MASKS.tolist():
        for patch in mask:
            if patch:
                term = cross_entropy(targets[token].double(), logits[token].double(), 0.1)
                slow, token = slow + term / sum(mask), token + 1
    slow = slow / len(MASKS)
    assert loss.item() == pytest.approx(slow.item(), rel=1e-5)
    torch.testing.assert_close(gradients(loss, logits), gradients(slow, logits), rtol=1e-4, atol=1e-6)


def test_ibot_without_a_mask_is_0_and_stays_part_of_the_graph() -> None:
    head = ProjectionHead(4, 3, 5, 2)
    loss = ibot_loss(head(noise(2, 4)[:0]), torch.zeros(0, 3), torch.zeros(2, 6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in head.parameters() if p.requires_grad and p.grad is not None)
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad)


def test_koleo_equals_loops_over_pairs() -> None:
    features = noise(7, 3).requires_grad_()
    loss = koleo_loss(features)
    units = [row.double() / row.double().pow(2).sum().sqrt() for row in features]
    slow = torch.zeros((), dtype=torch.float64)
    for i, one in enumerate(units):
        distances = [(one - other).pow(2).sum().sqrt() for j, other in enumerate(units) if j != i]
        nearest = min(distances, key=torch.Tensor.item)
        slow = slow - torch.log(nearest + 1e-8) / len(units)
    assert loss.item() == pytest.approx(slow.item(), rel=1e-5)
    torch.testing.assert_close(gradients(loss, features), gradients(slow, features), rtol=1e-4, atol=1e-5)


def test_koleo_of_equal_features_and_of_one_is_finite() -> None:
    for features in (torch.ones(3, 4, requires_grad=True), torch.ones(1, 4, requires_grad=True)):
        loss = koleo_loss(features)
        assert torch.isfinite(loss) and torch.isfinite(gradients(loss, features)[0]).all()


def test_sinkhorn_equals_loops_over_cells() -> None:
    logits = torch.cos(noise(6, 4))
    cells = [[math.exp(float(value) / 0.05) for value in row] for row in logits]
    for _ in range(3):
        for k in range(4):
            total = sum(row[k] for row in cells)
            for row in cells:
                row[k] /= total * 4
        for row in cells:
            total = sum(row)
            row[:] = [value / total / 6 for value in row]
    expected = torch.tensor(cells) * 6
    found = sinkhorn_targets(logits, temperature=0.05)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert (found - sinkhorn_targets(logits, 0.05, n_iterations=1)).abs().max() > 1e-3


def test_sinkhorn_uses_samples_and_prototypes_alike() -> None:
    """At the widest range that cosines allow, and for logits whose exponential alone would overflow."""
    for logits in (torch.tanh(3 * noise(40, 8)), 100 + 0.1 * noise(40, 8)):
        found = sinkhorn_targets(logits, temperature=0.04, n_iterations=200)
        torch.testing.assert_close(found.sum(1), torch.ones(40))
        torch.testing.assert_close(found.sum(0), torch.full((8,), 5.0), rtol=1e-2, atol=0)
        rows = sinkhorn_targets(logits, temperature=0.04).sum(1)
        torch.testing.assert_close(rows, torch.ones(40))
    assert sinkhorn_targets(torch.zeros(0, 8), 0.04).shape == (0, 8)


def test_centred_targets_and_the_centre() -> None:
    centre = Centre(2)
    targets = centred_targets(torch.tensor([[math.log(3) + 5, 0.0]]), torch.tensor([5.0, 0]), 1.0)
    torch.testing.assert_close(targets, torch.tensor([[0.75, 0.25]]))
    centre.observe(torch.tensor([[2.0, 0]]))
    centre.observe(torch.tensor([[4.0, 0], [6.0, 3]]))  # two batches of one step
    assert (centre.centre == 0).all(), "moved before the step's end"
    centre.update()
    torch.testing.assert_close(centre.centre, torch.tensor([0.4, 0.1]))
    centre.observe(torch.tensor([[10.0, 0]]))
    centre.update()
    torch.testing.assert_close(centre.centre, torch.tensor([0.9 * 0.4 + 1, 0.09]))
    before = centre.centre.clone()
    centre.update()
    assert torch.equal(centre.centre, before), "a step without a masked patch"


def test_losses_are_float32_inside_an_autocast() -> None:
    logits, targets, features = noise(4, 2, 6), noise(4, 2, 6, seed=1).softmax(-1), noise(8, 4)

    def figures() -> list[torch.Tensor]:
        return [
            dino_loss(logits, logits, targets),
            ibot_loss(logits[:, 0], targets[:, 0], torch.ones(2, 2, dtype=torch.bool)),
            koleo_loss(features),
            koleo_loss(1 + 0.01 * features),  # whose neighbours 16 bits do not tell apart
            sinkhorn_targets(torch.cos(features), 0.04),
        ]

    plain = figures()
    with torch.autocast("cpu", torch.bfloat16):
        inside = figures()
    assert all(torch.equal(one, other) for one, other in zip(plain, inside, strict=True))
    assert dino_loss(logits.bfloat16(), logits.bfloat16(), targets).dtype == torch.float32


def test_a_head_gives_cosines_to_prototypes_of_length_1_and_can_be_copied() -> None:
    head = ProjectionHead(6, 9, hidden=8, bottleneck=4)
    other = copy.deepcopy(head)
    tokens = noise(5, 6)
    assert torch.equal(head(tokens), other(tokens)) and head(tokens).abs().max() <= 1 + 1e-6
    directions = torch.nn.functional.normalize(head.prototypes, dim=1)
    unit = torch.nn.functional.normalize(head.mlp(tokens), dim=1)
    torch.testing.assert_close(head(tokens), unit @ directions.T)
    with torch.no_grad():
        head.prototypes.mul_(3)
    torch.testing.assert_close(head(tokens), other(tokens))
    head(tokens).square().sum().backward()
    trained = {name for name, parameter in head.named_parameters() if parameter.grad is not None}
    assert "last.parametrizations.weight.original1" in trained
    assert "last.parametrizations.weight.original0" not in trained
