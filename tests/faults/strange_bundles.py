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
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
import torch
from bundles import describe, edit, read, sealed
from mutations import SECONDS, Slow, Tally, mutate_bytes, mutate_header, mutate_json, rss_mb, watched
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

MEGABYTES = 300
MUTATED = (POLICY, CONFIG, PROCESSOR, WEIGHTS, GATE, BUNDLE_MANIFEST)
SIZE = 32
_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
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


def mutated(rng: random.Random, name: str, content: bytes) -> bytes:
    if name in (WEIGHTS, GATE):
        return mutate_header(rng, content)
    return mutate_json(rng, json.loads(content)) if rng.random() < 0.7 else mutate_bytes(rng, content)


def tried(tally: Tally, kind: str, bundle: Path, right: list[Any], told: str, verify: bool, forged: bool) -> None:
    """Load a bundle and count what came of it."""
    begun, outcome = time.perf_counter(), "missed"
    with watched(bundle) as outside:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="mutations of each file")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tally, grown = run(given.count, given.seed)
    return tally.report(grown)


if __name__ == "__main__":
    sys.exit(main())
