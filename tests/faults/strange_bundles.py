"""Bundles that a stranger has changed: each change is refused in one line, or changes no answer.

    python tests/faults/strange_bundles.py [--count N] [--seed S]

Every file that decides an answer is mutated N times, key by key and byte by byte, and each mutation is loaded in four
ways: as it is, as it is with `verify=False`, with a manifest made anew, and forged: with hashes and seal of the policy
made anew too. A forged bundle is another bundle, which only `expected=` tells from the first. It may answer otherwise,
but it must be refused or answer. Then every file is damaged in every way that a disk or a stranger knows. A miss is
any other exception, more than 5 s, more than 300 MB of memory, an answer that changed, or a file that was opened for
writing outside the bundle.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
import torch
from bundles import describe, edit, read, sealed
from PIL import Image

from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.inference import ImageList, Inference
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.names import BUNDLE_MANIFEST, CONFIG, POLICY, PROCESSOR, WEIGHTS
from natix_hf.bundle.policy import GateUse, Policy
from natix_hf.calibration import Calibration, Promise
from natix_hf.errors import NatixError
from natix_hf.models.classifier import build_classifier, save_model
from natix_hf.models.config import ModelConfig
from natix_hf.models.gate import GATE, Gate, save_gate
from natix_hf.models.preprocess import make_processor
from natix_hf.provenance.files import file_sha256
from natix_hf.provenance.manifest import manifest_seal

SECONDS, MEGABYTES = 5, 300
MUTATED = (POLICY, CONFIG, PROCESSOR, WEIGHTS, GATE, BUNDLE_MANIFEST)
SIZE = 32
_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
_ODD_KEYS = (
    "auto_map", "custom_pipelines", "quantization_config", "transformers_weights", "configuration_files",
    "attn_implementation", "per_layer_config", "return_dict", "output_attentions", "num_labels", "torch_dtype",
    "__class__", "crop_size", "do_center_crop", "data_format", "../../etc/passwd", "", "\ud800", "schema",
)  # fmt: skip
_DEEP, _BLANKS = 20_000, 2 * 2**20


class Slow(BaseException):
    """An answer took too long. No handler of the package takes it for one of its own."""


# A bundle, and what it answers.


def make_bundle(folder: Path) -> Path:
    """A bundle with a temperature, a certified promise and a learned gate, made as phase 6 makes it."""
    config = ModelConfig(config={"model_type": "dinov2", "initializer_range": 0.2, **_TINY}, image_size=SIZE)
    model = build_classifier(config, seed=1)
    save_model(folder / "candidate", model, make_processor(config))
    torch.manual_seed(2)
    gate = Gate(2 * _TINY["hidden_size"] + 2, 4)
    save_gate(folder / "gate.safetensors", gate)
    inference = Inference(folder / "candidate", "cpu")
    z = inference.logits(ImageList(pictures(), inference.preprocess))
    order = np.sort(z)
    Image.new("RGB", (4, 4)).save(folder / "threshold.png")
    policy = Policy(
        threshold_logit=float(order[len(z) // 2 - 1 : len(z) // 2 + 1].mean()),
        candidate_sha256=file_sha256(folder / "candidate" / WEIGHTS),
        model_sha256=None,
        calibration=Calibration("temperature", 0.7),
        gate=GateUse("learned", "correctness", file_sha256(folder / "gate.safetensors")),
        promise=Promise(True, "x", {"None": -0.1, "Roadwork": -0.1}, "error", 0.2, 0.1, False),
    )
    build_bundle(
        folder / "bundle", folder / "candidate", policy, evaluation={"rows": 0}, card="# card\n", plots=[],
        model_card={"version": "1.0.0"}, lineage={"run_id": "x", "champion": "y"}, images=pictures(),
        expected_logits=z, gate=folder / "gate.safetensors",
    )  # fmt: skip
    return folder / "bundle"


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)) for _ in range(4)]


def answers(bundle: Path, verify: bool = True) -> list[tuple[str, str, float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_bundle(bundle, verify=verify, device="cpu").predict(pictures())
    return [(answer.label, answer.decision, answer.probability) for answer in found]


# Mutations of a value of JSON. A raw text that JSON cannot hold stands as "@raw:TEXT@".


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _strange(rng: random.Random, value: Any) -> Any:
    """A value that nobody wrote there."""
    raw = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-0", "1E400", "[" * _DEEP + "]" * _DEEP)
    made: list[Callable[[], Any]] = [
        lambda: f"@raw:{rng.choice(raw)}@",
        lambda: rng.choice([None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**300, 0.0, 1e308, 5e-324, 1e-9]),
        lambda: rng.choice(["", "x", "None", "../../x", "/etc/passwd", "a" * 100_000, "\ud800", "\u202e\x1b[2J\n"]),
        lambda: rng.choice([[], {}, [[]], [value], {"x": value}, [1] * 1000, {str(i): i for i in range(1000)}]),
        lambda: str(value),
    ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        numbers = (value + 1, value - 1, -value, value * 2, value * 1000, float(value), value + 1e-7, value * 1.01)
        made += [lambda: rng.choice(numbers)] * 3
    if isinstance(value, str) and value:
        made += [lambda: value[:-1], lambda: value.upper(), lambda: value[::-1], lambda: value[:5] + "0" + value[6:]]
    if isinstance(value, list):
        made += [lambda: value[::-1], lambda: value[:-1], lambda: value + value, lambda: [None, *value]]
    return rng.choice(made)()


def mutate_json(rng: random.Random, content: dict[str, Any]) -> bytes:
    """A file of JSON in which one to three things were changed."""
    content = copy.deepcopy(content)
    twice = ""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(content))
        if not places:
            break
        *above, key = rng.choice(places)
        holder = content
        for step in above:
            holder = holder[step]
        act = rng.choice(["set", "set", "set", "delete", "rename", "add", "swap", "twice"])
        if act == "set":
            holder[key] = _strange(rng, holder[key])
        elif act == "delete":
            del holder[key]
        elif act == "swap":
            *other_above, other = rng.choice(places)
            place = content
            for step in other_above:
                place = place[step]
            holder[key], place[other] = copy.deepcopy(place[other]), copy.deepcopy(holder[key])
        elif isinstance(holder, dict) and act == "rename":
            holder[rng.choice([*_ODD_KEYS, f"{key}_", key.upper()])] = holder.pop(key)
        elif isinstance(holder, dict) and act == "add":
            holder[rng.choice(_ODD_KEYS)] = _strange(rng, 1)
        elif act == "twice":
            twice = rng.choice(sorted(map(str, content)))
    try:
        text = json.dumps(content, indent=rng.choice([None, 2]))
    except (ValueError, RecursionError):  # a swap made a circle
        return b"{"
    for part in text.split('"@raw:')[1:]:
        raw = part.split('@"')[0]
        text = text.replace(f'"@raw:{raw}@"', raw, 1)
    if twice:
        text = f'{{"{twice}": {json.dumps(_plain(_strange(rng, 1)))}, {text[1:]}'
    if rng.random() < 0.01:
        text += " " * _BLANKS
    return text.encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "replace")


def _plain(value: Any) -> Any:
    return None if isinstance(value, str) and value.startswith("@raw") else value


def mutate_bytes(rng: random.Random, content: bytes, end: int | None = None) -> bytes:
    """A file of which one to four places before `end` were changed."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(min(end or len(data), len(data)) or 1)
        act = rng.randrange(6)
        if act == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif act == 1:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 100]))
        elif act == 2:
            del data[at : at + rng.choice([1, 8, 1000])]
        elif act == 3:
            del data[at:]
        elif act == 4:
            data[at : at + 8] = rng.randbytes(8)
        else:
            data[at:at] = data[: rng.choice([1, 10, 1000])]
    return bytes(data)


def mutate_header(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file with a changed header, or with a length that is none."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    act = rng.randrange(4)
    if act == 0:
        return mutate_bytes(rng, content, 8 + length)
    if act == 1:
        wrong = (0, 1, length - 1, length + 1, length + 8, 2**20, 2**32, 2**63, 2**64 - 1)
        return struct.pack("<Q", rng.choice(wrong)) + header + body
    made = mutate_json(rng, json.loads(header))
    if act == 2:
        made += b" " * (-len(made) % 8)
    return struct.pack("<Q", len(made)) + made + body


def mutated(rng: random.Random, name: str, content: bytes) -> bytes:
    if name in (WEIGHTS, GATE):
        return mutate_header(rng, content)
    return mutate_json(rng, json.loads(content)) if rng.random() < 0.7 else mutate_bytes(rng, content)


# What is watched while a bundle is loaded.

_watched: dict[str, Any] = {"folder": None, "outside": []}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched["folder"] is None:
        return
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and isinstance(path, str) and not path.startswith((_watched["folder"], "/dev/", "/proc/")):
            _watched["outside"].append(f"wrote {path}")
    elif event in ("subprocess.Popen", "os.system", "os.exec", "pickle.find_class", "socket.connect", "os.remove"):
        _watched["outside"].append(f"{event} {str(arguments)[:80]}")


@contextmanager
def _watch(folder: Path) -> Iterator[list[str]]:
    """Collects what is opened for writing, started or unpickled, and ends what takes too long."""

    def late(*_: object) -> None:
        raise Slow

    _watched.update(folder=str(folder), outside=[])
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    try:
        yield _watched["outside"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _watched["folder"] = None


def rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Tally:
    """What became of each try, and a line for every miss."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.misses: list[str] = []
        self.slowest = 0.0

    def count(self, kind: str, outcome: str, told: str = "") -> None:
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome == "missed":
            self.misses.append(f"{kind}: {told}")

    def lines(self) -> list[str]:
        return [
            f"{kind:44s} tried {found.total():6d}  refused {found['refused']:6d}  same answers {found['same']:5d}  "
            f"other answers of a forgery {found['other']:4d}  missed {found['missed']}"
            for kind, found in self.counts.items()
        ]


def tried(tally: Tally, kind: str, bundle: Path, right: list[Any], told: str, verify: bool, forged: bool) -> None:
    """Load a bundle and count what came of it."""
    begun, outcome = time.perf_counter(), "missed"
    with _watch(bundle) as outside:
        try:
            found = answers(bundle, verify)
            same = all(a[:2] == b[:2] and abs(a[2] - b[2]) < 1e-9 for a, b in zip(found, right, strict=True))
            outcome, told = ("same", told) if same else ("other" if forged else "missed", f"other answers; {told}")
        except NatixError as error:
            one_line = "\n" not in str(error) and len(str(error)) < 1000 and str(error).isprintable()
            outcome, told = ("refused", told) if one_line else ("missed", f"not one line: {error}; {told}")
        except Slow:
            told = f"took more than {2 * SECONDS} s; {told}"
        except Exception as error:  # what is looked for
            told = f"{type(error).__name__}: {str(error)[:200]}; {told}"
    took = time.perf_counter() - begun
    tally.slowest = max(tally.slowest, took)
    if took > SECONDS and outcome != "missed":
        outcome, told = "missed", f"took {took:.1f} s; {told}"
    if outside:
        outcome, told = "missed", f"{outside[0]}; {told}"
    tally.count(kind, outcome, told)


def described(kept: dict[str, Any], changed: dict[str, bytes]) -> bytes:
    """A manifest that fits changed files, and has a seal that fits."""
    manifest = json.loads(kept[BUNDLE_MANIFEST])
    for name, content in changed.items():
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return json.dumps(sealed(manifest)).encode()


def forged(kept: dict[str, bytes], name: str, made: bytes) -> dict[str, bytes]:
    """Policy and manifest that fit one changed file, as far as it can be sealed at all."""
    if name == BUNDLE_MANIFEST:
        manifest = json.loads(made)
        return {name: json.dumps(sealed(manifest)).encode()}
    policy, sha256 = json.loads(made if name == POLICY else kept[POLICY]), hashlib.sha256(made).hexdigest()
    if name == GATE:
        policy["gate"]["sha256"] = sha256
    elif name != POLICY:
        policy[{WEIGHTS: "model_sha256", CONFIG: "config_sha256", PROCESSOR: "processor_sha256"}[name]] = sha256
    policy["seal"] = manifest_seal(policy)
    changed = {name: made, POLICY: json.dumps(policy).encode()}
    return changed | {BUNDLE_MANIFEST: described(kept, changed)}


def fuzz(tally: Tally, bundle: Path, count: int, seed: int) -> None:
    """Mutate every file that decides an answer `count` times, and load each mutation in four ways."""
    right = answers(bundle)
    kept = {name: (bundle / name).read_bytes() for name in {*MUTATED, POLICY, BUNDLE_MANIFEST}}
    for name in MUTATED:
        rng = random.Random(f"{seed} {name}")
        for number in range(count):
            made = mutated(rng, name, kept[name])
            if made == kept[name]:
                continue
            ways: dict[str, tuple[dict[str, bytes], bool]] = {"as it is": ({name: made}, True)}
            if name != BUNDLE_MANIFEST:
                ways["not verified"] = ({name: made}, False)
                ways["manifest made anew"] = ({name: made, BUNDLE_MANIFEST: described(kept, {name: made})}, True)
            with suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
                ways["forged"] = (forged(kept, name, made), True)
            for way, (files, verify) in ways.items():
                for each, content in files.items():
                    (bundle / each).write_bytes(content)
                told = f"mutation {number} of seed {seed}"
                tried(tally, f"{name}, {way}", bundle, right, told, verify, forged=way == "forged")
                for each in files:
                    (bundle / each).write_bytes(kept[each])


# Damages.

DAMAGES: dict[str, Callable[[Path, random.Random], Any]] = {
    "removed": lambda path, rng: path.unlink(),
    "emptied": lambda path, rng: path.write_bytes(b""),
    "cut in half": lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut by a byte": lambda path, rng: path.write_bytes(path.read_bytes()[:-1]),
    "longer by a byte": lambda path, rng: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit": lambda path, rng: _flip(path, rng),
    "zeros": lambda path, rng: path.write_bytes(bytes(path.stat().st_size)),
    "of a terabyte": lambda path, rng: os.truncate(path, 2**40),
    "a folder": lambda path, rng: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, rng: (path.unlink(), os.mkfifo(path)),
    "a link to a copy": lambda path, rng: _link(path, path.parent.parent / "copy"),
    "a link to itself": lambda path, rng: (path.unlink(), path.symlink_to(path)),
    "a link to a device": lambda path, rng: (path.unlink(), path.symlink_to("/dev/zero")),
}
ADDED: dict[str, Callable[[Path], Any]] = {
    **{
        name: lambda bundle, name=name: (bundle / name).write_bytes(b"{}")
        for name in (
            "adapter_config.json", "processor_config.json", "modeling.py", "pytorch_model.bin", ".tmp-x", "a.json",
            "model.safetensors.index.json", "generation_config.json", "model-00001-of-00002.safetensors",
        )
    },
    "a link to a file": lambda bundle: (bundle / "x").symlink_to("/etc/passwd"),
    "a link above": lambda bundle: (bundle / "x").symlink_to(bundle.parent, target_is_directory=True),
    "a pipe": lambda bundle: os.mkfifo(bundle / "x"),
    "3,000 files": lambda bundle: [(bundle / f"{number}.txt").write_bytes(b"") for number in range(3000)],
    "800 folders deep": lambda bundle: _deep(bundle, 800),
    "a name of control characters": lambda bundle: (bundle / "\x1b[2J\n\u202e").write_bytes(b""),
}  # fmt: skip


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def _link(path: Path, copied: Path) -> None:
    path.replace(copied)
    path.symlink_to(copied)


def _deep(bundle: Path, levels: int) -> None:
    here = os.open(bundle, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def damage(tally: Tally, bundle: Path, flips: int, seed: int, share: float = 1) -> None:
    """Damage every file of a bundle in every way, and load it as it is, unverified, and with a manifest made anew.

    Args:
        flips: How many bits to change in each file, one at a time.
        share: The share of the damages to try, drawn from `seed`.
    """
    right, rng = answers(bundle), random.Random(seed)
    whole = bundle.parent / "whole"
    shutil.copytree(bundle, whole)
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    acts = [(f"{name}: {what}", lambda what=what, name=name: DAMAGES[what](bundle / name, rng))
            for name in names for what in DAMAGES for _ in range(flips if what == "a bit" else 1)]  # fmt: skip
    acts += [(f"added {what}", lambda what=what: ADDED[what](bundle)) for what in ADDED]
    for told, act in rng.sample(acts, round(share * len(acts))):
        act()
        tried(tally, "damaged, as it is", bundle, right, told, verify=True, forged=False)
        tried(tally, "damaged, not verified", bundle, right, told, verify=False, forged=False)
        if "terabyte" in told:
            name = told.split(":")[0]
            files = read(whole / BUNDLE_MANIFEST)["files"] | {name: {"sha256": "0" * 64, "size": 2**40}}
            described = (bundle / BUNDLE_MANIFEST).stat().st_size < 2**30
            if described:
                edit(bundle / BUNDLE_MANIFEST, files=files)
        elif (bundle / BUNDLE_MANIFEST).is_file() and BUNDLE_MANIFEST not in told:
            describe(bundle)
        tried(tally, "damaged, manifest made anew", bundle, right, told, verify=True, forged="README" in told)
        shutil.rmtree(bundle)
        (bundle.parent / "copy").unlink(missing_ok=True)
        shutil.copytree(whole, bundle)


def run(count: int, seed: int, flips: int = 4) -> tuple[Tally, float]:
    """Try everything. Returns the tally, and by how many MB the memory of this process grew."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = make_bundle(Path(scratch).resolve())
        answers(bundle)
        before = rss_mb()
        fuzz(tally, bundle, count, seed)
        damage(tally, bundle, flips, seed)
        grown = rss_mb() - before
    if grown > MEGABYTES:
        tally.count("memory", "missed", f"it grew by {grown:.0f} MB")
    return tally, grown


sys.addaudithook(_audit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="mutations of each file")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tally, grown = run(given.count, given.seed)
    for line in (*tally.lines(), *tally.misses[:50]):
        print(line)
    print(f"slowest {tally.slowest:.2f} s, memory grew by {grown:.0f} MB, {len(tally.misses)} missed")
    return 1 if tally.misses else 0


if __name__ == "__main__":
    sys.exit(main())
