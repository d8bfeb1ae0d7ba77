"""Fold a policy into the classifier layer, and prove that a bundle's weights are the candidate's after folding."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from natix_hf.bundle.names import CONFIG, POLICY, PROCESSOR, WEIGHTS
from natix_hf.bundle.policy import Policy, read_policy
from natix_hf.models.gate import GATE
from natix_hf.provenance.files import file_sha256
from natix_hf.provenance.strict import read_strictly


@torch.no_grad()
def fold_into(head: nn.Linear, policy: Policy) -> None:
    """Change a two-label head in place so that its logit difference is a z - c. The arithmetic is float64."""
    for parameter in (head.weight, head.bias):
        parameter.copy_(parameter.double() * policy.folded_slope)
    half = policy.folded_shift / 2
    head.bias.copy_(head.bias.double() + torch.tensor([half, -half], dtype=torch.float64, device=head.bias.device))


@torch.no_grad()
def unfold(head: nn.Linear, policy: Policy) -> None:
    """Undo `fold_into`, but for rounding to float32: the logit difference is z again."""
    half = policy.folded_shift / 2
    head.bias.copy_(head.bias.double() - torch.tensor([half, -half], dtype=torch.float64, device=head.bias.device))
    for parameter in (head.weight, head.bias):
        parameter.copy_(parameter.double() / policy.folded_slope)


def folding_problems(bundle: Path, candidate: Path) -> list[str]:
    """Compare every tensor of a bundle with the candidate's, after folding the candidate's classifier layer, and every
    value of its configs."""
    policy = read_policy(bundle / POLICY)
    if not (candidate / WEIGHTS).is_file():
        return [f"{candidate / 'model.safetensors'} is missing"]
    if file_sha256(candidate / WEIGHTS) != policy.candidate_sha256:
        return [f"{bundle / POLICY} belongs to other candidate weights than {candidate}"]
    if file_sha256(bundle / WEIGHTS) != policy.model_sha256:
        return [f"{bundle / POLICY} belongs to other weights than {bundle / 'model.safetensors'}"]
    if policy.gate.kind == "learned" and not (bundle / GATE).is_file():
        return [f"{bundle / GATE} is missing"]
    if policy.gate.kind == "learned" and file_sha256(bundle / GATE) != policy.gate.sha256:
        return [f"{bundle / POLICY} belongs to another gate than {bundle / GATE}"]
    try:
        folded, plain = load_file(bundle / WEIGHTS), load_file(candidate / WEIGHTS)
    except SafetensorError as error:
        return [f"{bundle / 'model.safetensors'} or that of {candidate} cannot be read ({error})"]
    if set(folded) != set(plain):
        return [f"{bundle} and {candidate} hold different tensors, such as {min(set(folded) ^ set(plain))}"]
    problems = _config_problems(bundle, candidate)
    for name, tensor in plain.items():
        expected = tensor
        if name.startswith("classifier."):
            expected = tensor.double() * policy.folded_slope
        if name == "classifier.bias":
            half = policy.folded_shift / 2
            expected = expected + expected.new_tensor([half, -half])
        same_shape = folded[name].shape == tensor.shape
        if not same_shape or not torch.allclose(folded[name].double(), expected.double(), rtol=1e-6, atol=1e-6):
            problems.append(f"{bundle}: tensor {name} is not the folded tensor of {candidate}")
    return problems


def _config_problems(bundle: Path, candidate: Path) -> list[str]:
    """Compare the values of both configs of a bundle with the candidate's."""
    problems = []
    for name in (CONFIG, PROCESSOR):
        ours, theirs = read_strictly(bundle / name), read_strictly(candidate / name)
        # The names have a check of their own, and the version is that of whoever saved the file.
        common = sorted((set(ours) & set(theirs)) - {"transformers_version", "id2label", "label2id"})
        changed = [key for key in common if ours[key] != theirs[key]]
        if changed:
            problems.append(f"{bundle / name} has another {changed[0]} than that of {candidate}")
    return problems
