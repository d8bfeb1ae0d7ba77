"""What a bundle may hold, and whether it is what its manifest says."""

from __future__ import annotations

import re
from pathlib import Path

from natix_hf.bundle.policy import POLICY, read_policy
from natix_hf.errors import VerificationError
from natix_hf.models.gate import GATE
from natix_hf.provenance.files import check_files, file_sha256, list_files, list_temporaries, read_json

BUNDLE_MANIFEST = "bundle_manifest.json"
SCHEMA = 1
_ALLOWED = re.compile(
    r"config\.json|model\.safetensors|preprocessor_config\.json|README\.md|model_card\.json|policy\.json"
    r"|evaluation\.json|gate\.safetensors|plots/[a-z0-9_]+\.png"
)
_REQUIRED = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "policy.json",
    "evaluation.json",
    "README.md",
)
# The Hub's own file, and the cache folder that `snapshot_download` leaves in a local folder.
_HUB_OWN = re.compile(r"\.gitattributes|\.cache/.*")


def is_allowed(name: str) -> bool:
    """Whether a bundle may hold a file of this relative POSIX path."""
    return _ALLOWED.fullmatch(name) is not None


def bundle_problems(folder: Path, expected: str | None = None) -> list[str]:
    """One line for everything that is wrong with a bundle's files; empty if all is well.

    Args:
        expected: sha256 that `bundle_manifest.json` must have, from wherever the bundle was pinned.
    """
    path = folder / BUNDLE_MANIFEST
    try:
        manifest = read_json(path)
    except VerificationError as error:
        return [str(error)]
    if (
        not isinstance(manifest, dict)
        or manifest.get("schema") != SCHEMA
        or not isinstance(manifest.get("files"), dict)
    ):
        return [f"{path} is not a bundle manifest of schema {SCHEMA}"]
    problems = []
    if expected is not None and file_sha256(path) != expected:
        problems.append(f"{path} is not the one expected: its sha256 is {file_sha256(path)}, not {expected}")
    named = manifest["files"]
    if not all(isinstance(facts, dict) and {"sha256", "size"} <= set(facts) for facts in named.values()):
        return [*problems, f"{path} is damaged: a file in it has no sha256 or no size"]
    refused = [name for name in named if not is_allowed(name)]
    problems += [f"{path} names {name}, which a bundle may not hold" for name in refused]
    problems += [f"{folder / name} is missing from the manifest" for name in _REQUIRED if name not in named]
    problems += [
        f"{folder / name} is a link, not a file"
        for name in named
        if (folder / name).is_symlink() and not _in_hub_cache(folder)
    ]
    problems += [
        f"{folder / name} is not in the manifest"
        for name in [*list_files(folder), *list_temporaries(folder)]
        if name not in named and name != BUNDLE_MANIFEST and not _HUB_OWN.fullmatch(name)
    ]
    return problems + check_files(folder, {name: facts for name, facts in named.items() if name not in refused})


def _in_hub_cache(folder: Path) -> bool:
    """In the Hub's cache every file of a snapshot is a link to a blob."""
    return folder.parent.name == "snapshots"


def folding_problems(bundle: Path, candidate: Path) -> list[str]:
    """Unfolds the bundle's classifier layer and compares every tensor with the candidate's."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    policy = read_policy(bundle / POLICY)
    if not (candidate / "model.safetensors").is_file():
        return [f"{candidate / 'model.safetensors'} is missing"]
    if file_sha256(candidate / "model.safetensors") != policy.candidate_sha256:
        return [f"{bundle / POLICY} belongs to other candidate weights than {candidate}"]
    if file_sha256(bundle / "model.safetensors") != policy.model_sha256:
        return [f"{bundle / POLICY} belongs to other weights than {bundle / 'model.safetensors'}"]
    if policy.gate["kind"] == "learned" and not (bundle / GATE).is_file():
        return [f"{bundle / GATE} is missing"]
    if policy.gate["kind"] == "learned" and file_sha256(bundle / GATE) != policy.gate["sha256"]:
        return [f"{bundle / POLICY} belongs to another gate than {bundle / GATE}"]
    try:
        folded, plain = load_file(bundle / "model.safetensors"), load_file(candidate / "model.safetensors")
    except SafetensorError as error:
        return [f"{bundle / 'model.safetensors'} or that of {candidate} cannot be read ({error})"]
    if set(folded) != set(plain):
        return [f"{bundle} and {candidate} hold different tensors, as {min(set(folded) ^ set(plain))}"]
    problems = []
    for name, tensor in plain.items():
        expected = tensor
        if name.startswith("classifier."):
            expected = tensor.double() * policy.folded_slope
        if name == "classifier.bias":
            half = policy.folded_shift / 2
            expected = expected + expected.new_tensor([half, -half])
        same_shape = folded[name].shape == tensor.shape
        if not same_shape or not torch.allclose(folded[name].double(), expected.double(), rtol=1e-6, atol=1e-6):
            problems.append(f"{bundle}: tensor {name} is not the folded one of {candidate}")
    return problems


def require_intact(folder: Path, expected: str | None = None) -> None:
    """Raises `VerificationError` with the first problem of a bundle, if there is one."""
    problems = bundle_problems(folder, expected)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VerificationError(problems[0] + more)
