"""A checkout of the official miner: the file that names its model, its settings, and the edit of that one value.

Nothing of the checkout is run or imported. Its files are read as text. What is not as `official` knows it is
named.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natix_hf.errors import UsageError, VerificationError, cut
from natix_hf.provenance.files import atomic_file
from natix_hf.subnet.checks import Check, either
from natix_hf.subnet.official import (
    DETECTOR_CODE,
    DETECTOR_CONFIG,
    DETECTOR_FACTS,
    DETECTOR_KEYS,
    ENVIRONMENT,
    ENVIRONMENT_KEYS,
    NETUIDS,
    PORT_KEY,
    REGISTER,
    REPOSITORY_KEY,
    TRANSFORMERS,
)

_MOST_BYTES = 2**16  # of a file of settings
_MOST_OF_CODE = 2**24  # of a lock file
_MOST_FOLDERS = 20_000
# `key: value  # comment`, where the value is plain or in quotes and stands on that line.
_LINE = re.compile(
    r"""(?P<key>[A-Za-z_]\w*)[ ]*:[ ]+(?P<value>'[^'\r\n]*'|"[^"\\\r\n]*"|[\w./:-]+)[ \t]*(?:[ \t]#.*)?"""
)
# As a shell reads it, where nothing is expanded.
_ASSIGNED = re.compile(
    r"""(?:export[ ]+)?(?P<key>[A-Za-z_]\w*)=(?P<value>'[^']*'|"[^"$`\\]*"|[^\s'"$`\\#;&|]*)[ \t]*(?:[ \t]#.*)?"""
)


_SPLIT = re.compile(r"[\s*?\[]")  # what a shell does not leave as it is in a value without quotes


@dataclass(frozen=True)
class Edit:
    """The change of one value in `ViT_roadwork.yaml`."""

    path: Path
    before: bytes
    after: bytes

    @property
    def is_needed(self) -> bool:
        return self.before != self.after

    def diff(self) -> list[str]:
        """The change as a unified diff, line by line, without line ends."""
        old, new = (side.decode("utf-8").splitlines() for side in (self.before, self.after))
        return list(difflib.unified_diff(old, new, self.path.name, self.path.name, lineterm=""))

    def write(self) -> Path | None:
        """Write the file, and keep the old one beside it. Returns the name of the copy; None if nothing changes.

        Raises:
            VerificationError: if the file has changed since it was read.
        """
        if not self.is_needed:
            return None
        if _read(self.path, _MOST_BYTES) != self.before:
            raise VerificationError(f"{self.path} has changed meanwhile: run the same again")
        numbers = (f".before{n or ''}" for n in range(1000))
        kept = next(path for end in numbers if not os.path.lexists(path := self.path.with_name(self.path.name + end)))
        mode = self.path.stat().st_mode & 0o777
        for path, content in ((kept, self.before), (self.path, self.after)):
            with atomic_file(path) as temporary:
                temporary.write_bytes(content)
            path.chmod(mode)
        return kept


def find_file(checkout: Path, name: str) -> Path:
    """The one file of that name in a checkout, without hidden folders and installed packages.

    Raises:
        UsageError: if there is none, or more than one.
    """
    if not checkout.is_dir():
        raise UsageError(f"--miner-repo {checkout} is no folder: name a checkout of the official miner")
    found = sorted(_named(checkout, name))
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(checkout)) for path in found[:3])
        told = f"holds {name} {len(found)} times ({listed}): name one checkout" if found else f"has no {name}"
        raise UsageError(f"--miner-repo {checkout} {told}; it must be a checkout of the official miner")
    if found[0].is_symlink() or not found[0].is_file():
        raise UsageError(f"{found[0]} is a link or no file: name the checkout that it leads to")
    return found[0]


def _named(checkout: Path, name: str) -> Iterator[Path]:
    for n, (folder, folders, files) in enumerate(os.walk(checkout)):
        if n > _MOST_FOLDERS:
            raise UsageError(
                f"--miner-repo {checkout} has more than {_MOST_FOLDERS:,} folders: name the checkout itself"
            )
        folders[:] = [
            inner
            for inner in folders
            if not inner.startswith(".") and inner not in ("node_modules", "site-packages", "__pycache__")
            and not (Path(folder) / inner / "pyvenv.cfg").exists()
        ]  # fmt: skip
        if name in files:
            yield Path(folder) / name


def detector_checks(path: Path, repo_id: str) -> tuple[list[Check], Edit | None]:
    """What is wrong with a `ViT_roadwork.yaml`, and the edit that makes it name `repo_id`.

    Every value but that of `hf_repo` must be the official one. The edit is None if the file is not understood.
    """
    raw = _read(path, _MOST_BYTES)
    try:
        values = _flat_yaml(raw)
    except UsageError as error:
        return [Check(path.name, "wrong", f"{error}: restore the file with git checkout, and run this again")], None
    checks = []
    for key in sorted(set(DETECTOR_KEYS) - set(values)):
        checks.append(Check(path.name, "wrong", f"{key} is missing: restore the file with git checkout"))
    for key, (value, _) in values.items():
        official = DETECTOR_KEYS.get(key, "")
        if key not in DETECTOR_KEYS:
            told = f"{key} is not one of its keys, and the miner would set it on its detector: take it out"
            checks.append(Check(path.name, "wrong", told))
        elif official is not None and value != official:
            checks.append(Check(path.name, "wrong", f"{key} is {cut(value)}: the official file has {official}"))
    if checks:
        return checks, None
    value, (begin, end) = values[REPOSITORY_KEY]
    edit = Edit(path, raw, raw if value == repo_id else raw[:begin] + f"'{repo_id}'".encode() + raw[end:])
    told = f"{REPOSITORY_KEY} is {cut(value)}, so the miner serves that model: change it to '{repo_id}'"
    return [either(path.name, not edit.is_needed, f"{REPOSITORY_KEY} is {repo_id}", told)], edit


def _flat_yaml(raw: bytes) -> dict[str, tuple[str, tuple[int, int]]]:
    """The values of a file of `key: value` lines, each a text, and where each lies, in bytes.

    Raises:
        UsageError: if it is anything else: then nobody edits it without looking.
    """
    import yaml

    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("it is no text in UTF-8") from None
    found: dict[str, tuple[str, tuple[int, int]]] = {}
    at = 0
    for number, line in enumerate(re.split(r"(?<=\n)", text), start=1):
        bare = line.rstrip("\r\n")
        matched = _LINE.fullmatch(bare)
        if matched is None and bare.strip() and not bare.startswith("#"):
            raise UsageError(f"line {number} is not one key with one plain value")
        if matched is not None:
            if matched["key"] in found:
                raise UsageError(f"{matched['key']} is there twice")
            begin = at + matched.start("value")  # a key is ASCII
            found[matched["key"]] = (_unquoted(matched["value"]), (begin, begin + len(matched["value"].encode())))
        at += len(line.encode())
    try:  # as the miner reads it
        same = yaml.safe_load(text) == {key: value for key, (value, _) in found.items()}
    except (yaml.YAMLError, ValueError, RecursionError):
        same = False
    if not same:
        raise UsageError("YAML reads something else in it than one plain value a line")
    return found


def _unquoted(value: str) -> str:
    return value[1:-1] if value[:1] in ("'", '"') and len(value) > 1 else value


def environment_checks(checkout: Path, repo_id: str) -> list[Check]:
    """What is wrong with `miner.env`. Only the keys that are looked at are ever printed: the file may hold secrets."""
    path = checkout / ENVIRONMENT
    if not path.is_file():
        told = f"not there yet: ./setup_env.sh writes it; then set {_told_settings(repo_id)} and run this again"
        return [Check(ENVIRONMENT, "unknown", told)]
    values, problems = _assignments(path)
    checks = [Check(ENVIRONMENT, "wrong", problem) for problem in problems]
    for key, allowed in ENVIRONMENT_KEYS.items():
        value = values.get(key, "")
        if not value:
            checks.append(Check(ENVIRONMENT, "wrong", f"{key} has no value{_advice(key, repo_id)}"))
        elif allowed is not None and value not in allowed:
            checks.append(Check(ENVIRONMENT, "wrong", f"{key} is {cut(value)}: it must be {' or '.join(allowed)}"))
        elif _SPLIT.search(value):
            told = f"{key} is {cut(value)}, and start_miner.sh passes it on unquoted, so that a shell takes it apart"
            checks.append(Check(ENVIRONMENT, "wrong", f"{told}: choose another"))
        elif key == PORT_KEY and not (value.isascii() and value.isdecimal() and 0 < int(value[:6]) < 2**16):
            checks.append(Check(ENVIRONMENT, "wrong", f"{key} is {cut(value)}: it must be a port from 1 to 65535"))
    network = NETUIDS.get(values.get("NETUID", ""))
    given = values.get("SUBTENSOR_NETWORK", network)
    if network is not None and given not in (network, "local"):
        told = (
            f"NETUID {values['NETUID']} is of the network {network}, but SUBTENSOR_NETWORK is {cut(given)}: change one"
        )
        checks.append(Check(ENVIRONMENT, "wrong", told))
    url = values.get("MODEL_URL", "")
    if url and url.rstrip("/") not in (repo_id, f"https://huggingface.co/{repo_id}"):
        checks.append(
            Check(ENVIRONMENT, "wrong", f"MODEL_URL is {cut(url)}: it must be https://huggingface.co/{repo_id}")
        )
    if checks:
        return checks
    told = "" if network == "finney" else "; NETUID 323 is the test network, where nothing is paid"
    return [Check(ENVIRONMENT, "ok" if not told else "warning", f"detector, network, wallet and model are set{told}")]


def _told_settings(repo_id: str) -> str:
    return f"WALLET_NAME, WALLET_HOTKEY, NETUID and MODEL_URL=https://huggingface.co/{repo_id}"


def _advice(key: str, repo_id: str) -> str:
    allowed = ENVIRONMENT_KEYS[key]
    if key == "MODEL_URL":  # start_miner.sh would take the next option for its value
        return f": set https://huggingface.co/{repo_id}"
    return f": set {allowed[0]}" if allowed else ": set it"


def _assignments(path: Path) -> tuple[dict[str, str], list[str]]:
    """The known keys of a file that a shell reads, and one line for each that cannot be read for certain."""
    values: dict[str, str] = {}
    problems = []
    text = _read(path, _MOST_BYTES).decode("utf-8", "replace")
    if "\r" in text:
        problems.append("it has Windows line ends, which a shell takes for part of each value: save it with Unix ones")
    for line in text.splitlines():
        matched = _ASSIGNED.fullmatch(line.strip())
        named = [key for key in ENVIRONMENT_KEYS if re.search(rf"\b{key}\b", line)]
        if matched is None and named and not line.lstrip().startswith("#"):
            problems.append(f"the line of {named[0]} is not {named[0]}=VALUE: write it so")
        elif matched is not None and matched["key"] in ENVIRONMENT_KEYS:
            if matched["key"] in values:
                problems.append(f"{matched['key']} is there twice: keep one line")
            values[matched["key"]] = _unquoted(matched["value"])
    return values, problems


def code_checks(checkout: Path) -> list[Check]:
    """Whether the checkout's own code still does what our promise rests on, as far as its text says."""
    try:
        path = find_file(checkout, DETECTOR_CODE)
    except UsageError as error:
        return [Check("detector", "wrong", str(error))]
    text = _read(path, _MOST_OF_CODE).decode("utf-8", "replace")
    missing = [fact for fact in DETECTOR_FACTS if fact not in text]
    told = f"{path.name} does not name {', '.join(missing)}, as it did when it was last looked at: read it first"
    checks = [either("detector", not missing, f"{path.name} loads and asks the model as is known", told)]
    lock = checkout / "poetry.lock"
    if lock.is_file():
        content = _read(lock, _MOST_OF_CODE).decode("utf-8", "replace")
        pinned = re.search(r'^name = "transformers"\r?\nversion = "([^"\n]{1,40})"', content, re.MULTILINE)
        if pinned is not None and pinned[1] != TRANSFORMERS:
            told = f"poetry.lock has transformers {cut(pinned[1])}, and what is checked here holds for {TRANSFORMERS}"
            checks.append(Check("versions", "warning", f"{told}: compare decisions on that box"))
    return checks


def register_arguments(checkout: Path) -> int | None:
    """How many arguments the checkout's `register.sh` takes for a miner: 5 or 6. None: it does not say."""
    path = checkout / REGISTER
    if not path.is_file():
        return None
    text = _read(path, _MOST_BYTES).decode("utf-8", "replace")
    found = re.findall(r'"\$#"\s+-ne\s+(\d)\b', text)
    return int(found[0]) if len(set(found)) == 1 and found[0] in ("5", "6") else None


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > most:
        raise UsageError(f"{path} has more than {most:,} bytes: it is not the official file")
    return content


def checkout_checks(checkout: Path, repo_id: str) -> tuple[list[Check], Edit | None, Any]:
    """Every check of a checkout, the edit, and how many arguments its `register.sh` takes."""
    checks, edit = detector_checks(find_file(checkout, DETECTOR_CONFIG), repo_id)
    checks += environment_checks(checkout, repo_id) + code_checks(checkout)
    return checks, edit, register_arguments(checkout)
