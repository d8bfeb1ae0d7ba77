"""The check of a bundle: of its files against its manifest, and of everything that decides an answer.

Whatever a stranger put there, the check ends soon: the size of a file is known before it is read, and the weights are
read only if their header is that of the model in `config.json`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from natix_hf.bundle.manifest import is_allowed, read_bundle_manifest
from natix_hf.bundle.names import BUNDLE_MANIFEST, CONFIG, EVALUATION, MODEL_CARD, ONNX, POLICY, PROCESSOR, WEIGHTS
from natix_hf.bundle.onnx_check import onnx_problems
from natix_hf.bundle.policy import read_policy
from natix_hf.bundle.shipped import shipped_problems
from natix_hf.errors import UsageError, VerificationError, shortened
from natix_hf.labels import names_in
from natix_hf.models.fits import gate_problems, weights_problems
from natix_hf.models.gate_file import GATE
from natix_hf.models.schema import config_faults, processor_faults
from natix_hf.provenance.durable import TEMPORARY_PREFIX
from natix_hf.provenance.files import check_files, file_sha256
from natix_hf.provenance.strict import MOST_BYTES, read_strictly

_REQUIRED = (CONFIG, WEIGHTS, PROCESSOR, POLICY, EVALUATION, "README.md")
# The most bytes of each file. The weights have a further bound: the model in config.json.
_MOST = {CONFIG: MOST_BYTES, PROCESSOR: MOST_BYTES, POLICY: MOST_BYTES, MODEL_CARD: MOST_BYTES}
_MOST |= {EVALUATION: 16 * 2**20, "README.md": 4 * 2**20, WEIGHTS: 64 * 2**30, GATE: 2**28, ONNX: 2**31}
_MOST_OF_A_PLOT = 16 * 2**20
_MOST_ENTRIES = 1000
# The Hub's own file in a repository, and the folder that `snapshot_download` leaves in a local folder.
_GITATTRIBUTES = ".gitattributes"
_DOWNLOAD_NOTES = ".cache/huggingface/"


def is_of_the_hub(name: str) -> bool:
    """True if a file of a repository belongs to the Hub and is no part of the bundle."""
    return name == _GITATTRIBUTES


def most_bytes(name: str) -> int:
    """The size that a file of a bundle may have, in bytes."""
    return _MOST.get(name, _MOST_OF_A_PLOT)


def bundle_problems(folder: Path, expected: str | None = None, runs_weights: bool = True) -> list[str]:
    """One line per problem with a bundle's files; an empty list if the bundle is intact.

    Args:
        expected: The sha256 that `bundle_manifest.json` must have, if the bundle was pinned.
        runs_weights: False if the ONNX file answers. Whether the safetensors make the model of `config.json` is then
            not asked, because that takes torch. Their hashes and their header are checked in any case.
    """
    path = folder / BUNDLE_MANIFEST
    try:
        named = read_bundle_manifest(folder)["files"]
    except VerificationError as error:
        return [str(error)]
    problems = []
    if expected is not None and file_sha256(path) != expected:
        problems.append(f"{path} is not the one expected: its sha256 is {file_sha256(path)}, not {expected}")
    allowed = {name: facts for name, facts in named.items() if is_allowed(name)}
    problems += [
        f"{path} names {shortened(str(name), 200)}, which a bundle may not hold"
        for name in named
        if name not in allowed
    ]
    problems += [f"{folder / name} is missing from the manifest" for name in _REQUIRED if name not in named]
    links = [name for name in (*allowed, BUNDLE_MANIFEST) if _is_stray_link(folder, name)]
    problems += [f"{folder / name} is a link, not a file" for name in links]
    problems += _strangers(folder, named)
    huge = _too_large(folder, allowed)
    problems += [f"{folder / name} is larger than the {most_bytes(name):,} bytes that it may have" for name in huge]
    described = {name: facts for name, facts in allowed.items() if name not in huge}
    large = {name: described.pop(name) for name in (WEIGHTS, ONNX) if name in described}
    problems += check_files(folder, described)
    problems += shipped_problems(folder, described)
    formed = form_problems(folder, runs_weights)
    problems += [] if problems else formed
    problems += [] if formed else check_files(folder, large)
    return problems or policy_problems(folder, {name: facts["sha256"] for name, facts in named.items()})


def decisive_problems(folder: Path, runs_weights: bool = True) -> list[str]:
    """One line per problem with what decides an answer: policy, configs, weights, gate and ONNX file, each by itself
    and by the hashes in the policy. Neither the manifest nor another file is looked at. For `runs_weights` see
    `bundle_problems`."""
    for name in _too_large(folder, (WEIGHTS, GATE, ONNX)):
        return [f"{folder / name} is larger than the {most_bytes(name):,} bytes that it may have"]
    present = [name for name in (WEIGHTS, GATE, ONNX) if (folder / name).is_file()]
    problems = form_problems(folder, runs_weights)
    return problems or policy_problems(folder, {name: file_sha256(folder / name) for name in present})


def form_problems(folder: Path, runs_weights: bool = True) -> list[str]:
    """The problems of what decides an answer that show before a weight is read. For `runs_weights` see
    `bundle_problems`."""
    try:
        policy, config = read_policy(folder / POLICY), read_strictly(folder / CONFIG)
        processor = read_strictly(folder / PROCESSOR)
    except VerificationError as error:
        return [str(error)]
    for fault in config_faults(config):  # the first says enough
        return [f"{folder / CONFIG} cannot be used: {fault}"]
    for fault in processor_faults(processor, config):
        return [f"{folder / PROCESSOR} cannot be used: {fault}"]
    wanted = policy.labels
    expected = f"{POLICY} has {wanted.no} (no) and {wanted.yes} (yes)"
    try:
        named = names_in(config["id2label"])
    except UsageError as error:
        return [f"{folder / CONFIG} does not name the answers: {error}; {expected}"]
    if named != wanted:
        return [f"{folder / CONFIG} names the answers {named.no} (no) and {named.yes} (yes), but {expected}"]
    for name, bound in ((CONFIG, policy.config_sha256), (PROCESSOR, policy.processor_sha256)):
        if bound is not None and file_sha256(folder / name) != bound:
            return [f"{folder / POLICY} belongs to another {name}: download the bundle again"]
    problems = weights_problems(folder / WEIGHTS, config, most_bytes(WEIGHTS), runs_weights)
    if not problems and policy.gate.kind == "learned":
        problems = gate_problems(folder / GATE, folder / WEIGHTS, most_bytes(GATE))
    if not problems and (folder / ONNX).is_file():
        problems = onnx_problems(folder / ONNX)
    return problems


def policy_problems(folder: Path, sha256: dict[str, str]) -> list[str]:
    """One line per problem if the policy belongs to other weights, another gate or another ONNX file.

    Args:
        sha256: The hashes of the weights, the gate and the ONNX file, as far as they are there.
    """
    try:
        policy = read_policy(folder / POLICY)
    except VerificationError as error:
        return [str(error)]
    path, problems = folder / POLICY, []
    if policy.candidate_sha256 is None or policy.model_sha256 is None:
        problems.append(f"{path} names no weights: it is of another model than {WEIGHTS}, such as certify's")
    elif policy.model_sha256 != sha256.get(WEIGHTS):
        problems.append(f"{path} belongs to other weights than {WEIGHTS}: download the bundle again")
    if policy.gate.sha256 != sha256.get(GATE):
        problems.append(f"{path} belongs to another {GATE}, or to none: download the bundle again")
    if sha256.get(ONNX) != (policy.onnx.sha256 if policy.onnx is not None else None):
        problems.append(f"{path} belongs to another {ONNX}, or to none: download the bundle again")
    return problems


def _too_large(folder: Path, names: Iterable[str]) -> list[str]:
    """The names of the files that have more bytes than they may have."""
    there = [name for name in names if (folder / name).is_file()]
    return [name for name in there if (folder / name).stat().st_size > most_bytes(name)]


def _strangers(folder: Path, named: Collection[str]) -> list[str]:
    """One line for everything in a folder that the manifest does not name: files, links, special files, and what an
    interrupted write left."""
    entries = list(itertools.islice(_entries(folder), _MOST_ENTRIES + 1))
    if len(entries) > _MOST_ENTRIES:
        return [f"{folder} holds more than {_MOST_ENTRIES:,} files and folders"]
    found = [name for name, is_folder in entries if not is_folder or Path(name).name.startswith(TEMPORARY_PREFIX)]
    return [
        f"{folder / shortened(str(name), 200)} is not in the manifest"
        for name in sorted(found)
        if name not in named and name != BUNDLE_MANIFEST and not is_of_the_hub(name)
        if not name.startswith(_DOWNLOAD_NOTES)
    ]


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """Everything below a folder: its relative POSIX path, and whether it is a folder that can be opened."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as scan:
                entries = list(itertools.islice(scan, _MOST_ENTRIES + 1))
        except OSError:
            yield prefix.rstrip("/"), False
            continue
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            yield prefix + entry.name, is_folder
            if is_folder:
                waiting.append(f"{prefix}{entry.name}/")


def _is_stray_link(folder: Path, name: str) -> bool:
    """True if a file is a link or lies in a linked folder. The links of the Hub's cache, from a snapshot to a blob
    beside it, do not count."""
    parts = name.split("/")
    links = [here for end in range(1, len(parts) + 1) if os.path.islink(here := folder.joinpath(*parts[:end]))]
    if not links:
        return False
    blobs = os.path.realpath(folder.parent.parent / "blobs")
    in_cache = folder.parent.name == "snapshots" and os.path.dirname(os.path.realpath(folder / name)) == blobs
    return not (links == [folder / name] and in_cache)


def require_intact(folder: Path, expected: str | None = None, runs_weights: bool = True) -> None:
    """Raise a `VerificationError` with the first problem of a bundle, if there is one. The arguments are those of
    `bundle_problems`."""
    problems = bundle_problems(folder, expected, runs_weights)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VerificationError(problems[0] + more)
