"""The files that a bundle may hold, and the check of a bundle against its manifest."""

from __future__ import annotations

import json
import re
from pathlib import Path

from natix_hf.bundle.names import BUNDLE_MANIFEST, CONFIG, EVALUATION, ONNX, POLICY, WEIGHTS
from natix_hf.bundle.onnx_check import onnx_problems
from natix_hf.bundle.policy import read_policy
from natix_hf.errors import VerificationError
from natix_hf.labels import stored_names
from natix_hf.models.gate import GATE
from natix_hf.provenance.files import check_files, file_sha256, list_temporaries, read_json

SCHEMA = 1
_ALLOWED = re.compile(
    r"config\.json|model\.safetensors|preprocessor_config\.json|README\.md|model_card\.json|policy\.json"
    r"|evaluation\.json|gate\.safetensors|model\.onnx|plots/[a-z0-9_]+\.png"
)
_REQUIRED = (
    CONFIG,
    WEIGHTS,
    "preprocessor_config.json",
    POLICY,
    EVALUATION,
    "README.md",
)
# Far above the header of any model: 10,000 tensors fill a megabyte.
_LONGEST_HEADER = 16 * 2**20
# The Hub's own file in a repository, and the files that `snapshot_download` leaves in a local folder.
_GITATTRIBUTES = ".gitattributes"
_DOWNLOAD_NOTES = re.compile(r"\.cache/huggingface/.*")
# Config keys that make transformers run code from a repository (a kernel is code too), load other weights than those
# of the policy, or load them in another way. transformers writes none of them into our configs.
_FOREIGN_KEYS = (
    "auto_map",
    "custom_pipelines",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "transformers_weights",
    "quantization_config",
)


def is_allowed(name: str) -> bool:
    """True if a bundle may hold a file with this relative POSIX path."""
    return _ALLOWED.fullmatch(name) is not None


def is_of_the_hub(name: str) -> bool:
    """True if a file of a repository belongs to the Hub and is no part of the bundle."""
    return name == _GITATTRIBUTES


def bundle_problems(folder: Path, expected: str | None = None) -> list[str]:
    """One line per problem with a bundle's files; an empty list if the bundle is intact.

    Args:
        expected: The sha256 that `bundle_manifest.json` must have, if the bundle was pinned.
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
        or not isinstance(manifest.get("lineage"), dict)
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
        f"{folder / name} is a link, not a file" for name in [*named, BUNDLE_MANIFEST] if _is_stray_link(folder, name)
    ]
    problems += [
        f"{folder / name} is not in the manifest"
        for name in _all_but_folders(folder)
        if name not in named and name != BUNDLE_MANIFEST and not is_of_the_hub(name)
        if _DOWNLOAD_NOTES.fullmatch(name) is None
    ]
    problems += check_files(folder, {name: facts for name, facts in named.items() if name not in refused})
    if problems:
        return problems
    problems = [*_weights_problems(folder), *config_problems(folder), *label_problems(folder)]
    problems += onnx_problems(folder / ONNX) if ONNX in named else []
    return problems + policy_problems(folder, {name: facts["sha256"] for name, facts in named.items()})


def policy_problems(folder: Path, sha256: dict[str, str]) -> list[str]:
    """One line per problem if the policy belongs to other weights, another gate or another ONNX file.

    Args:
        sha256: The hashes of the files that are there, by name.
    """
    try:
        policy = read_policy(folder / POLICY)
    except VerificationError as error:
        return [str(error)]
    problems = []
    if policy.candidate_sha256 is None or policy.model_sha256 is None:
        problems.append(
            f"{folder / POLICY} names no weights: it is of another model than {WEIGHTS}, such as certify's"
        )
    elif policy.model_sha256 != sha256.get(WEIGHTS):
        problems.append(f"{folder / POLICY} belongs to other weights than {WEIGHTS}: download the bundle again")
    if policy.gate.sha256 != sha256.get(GATE):
        problems.append(f"{folder / POLICY} belongs to another {GATE}, or to none: download the bundle again")
    if sha256.get(ONNX) != (policy.onnx.sha256 if policy.onnx is not None else None):
        problems.append(f"{folder / POLICY} belongs to another {ONNX}, or to none: download the bundle again")
    return problems


def _all_but_folders(folder: Path) -> list[str]:
    """Everything in a folder except folders: files, links and special files, as sorted relative POSIX paths."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted({*(path.relative_to(folder).as_posix() for path in found), *list_temporaries(folder)})


def _is_stray_link(folder: Path, name: str) -> bool:
    """True if a file is a link or lies in a linked folder. The links of the Hub's cache, from a snapshot to a blob
    beside it, do not count."""
    place = folder / name
    links = [
        path for path in (place, *place.parents) if path != folder and folder in path.parents and path.is_symlink()
    ]
    blobs = folder.parent.parent / "blobs"
    in_cache = folder.parent.name == "snapshots" and place.resolve().parent == blobs.resolve()
    return bool(links) and not (links == [place] and in_cache)


def _weights_problems(folder: Path) -> list[str]:
    """The problems of the headers of safetensors files, found before anything reads a whole file."""
    problems = []
    for path in (folder / WEIGHTS, folder / GATE):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            body = path.stat().st_size - 8
            if not 2 <= length <= min(body, _LONGEST_HEADER):
                problems.append(f"{path} says that its header has {length} bytes: it is not a safetensors file")
                continue
            try:
                header = json.loads(file.read(length))
                ends = [int(facts["data_offsets"][1]) for name, facts in header.items() if name != "__metadata__"]
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
                problems.append(f"{path} does not have the header of a safetensors file")
                continue
        if max(ends, default=0) != body - length:
            problems.append(
                f"{path} holds {body - length} bytes of tensors, but its header says {max(ends, default=0)}"
            )
    return problems


def config_problems(folder: Path) -> list[str]:
    """The problems of a bundle's configs: keys that ask for code from the repository (this package runs none, but
    others might) or for unchecked weights."""
    problems = []
    for name in (CONFIG, "preprocessor_config.json"):
        try:
            content = read_json(folder / name)
        except VerificationError as error:
            problems.append(str(error))
            continue
        if not isinstance(content, dict):
            problems.append(f"{folder / name} cannot be used: it holds no JSON object")
        else:
            found = next((key for key in _FOREIGN_KEYS if key in content), None)
            if found is not None:
                problems.append(f"{folder / name} asks for code or weights from elsewhere ({found}): never loaded")
    return problems


def label_problems(folder: Path) -> list[str]:
    """The problem of a bundle whose config names other answers than its policy, so that a plain pipeline would not
    answer like `predict`. A file that cannot be read is a problem of `config_problems` or `policy_problems`."""
    try:
        wanted, content = read_policy(folder / POLICY).labels, read_json(folder / CONFIG)
    except VerificationError:
        return []
    expected = f"{POLICY} has {wanted.no} (no) and {wanted.yes} (yes)"
    try:
        named = stored_names(folder)
    except VerificationError as error:
        return [f"{error}; {expected}"] if isinstance(content, dict) else []
    if named == wanted:
        return []
    return [f"{folder / CONFIG} names the answers {named.no} (no) and {named.yes} (yes), but {expected}"]


def require_intact(folder: Path, expected: str | None = None) -> None:
    """Raise a `VerificationError` with the first problem of a bundle, if there is one."""
    problems = bundle_problems(folder, expected)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VerificationError(problems[0] + more)
