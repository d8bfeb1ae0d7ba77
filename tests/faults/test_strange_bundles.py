"""The short form of `strange_bundles.py`: some mutations of every file, and every kind of damage to some."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import strange_bundles as strange

from natix_hf.bundle.names import POLICY, PROCESSOR


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strange.make_bundle(tmp_path_factory.mktemp("strange").resolve())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer ends what hangs")
def test_a_mutation_is_refused_or_changes_no_answer(made: Path) -> None:
    tally = strange.Tally()
    strange.fuzz(tally, made, count=8, seed=7)
    assert tally.misses == []
    assert sum(found.total() for found in tally.counts.values()) > 150
    assert all(found["refused"] for found in tally.counts.values())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer ends what hangs")
def test_damage_is_refused_or_changes_no_answer(made: Path) -> None:
    tally = strange.Tally()
    strange.damage(tally, made, flips=1, seed=7, share=0.08)
    assert tally.misses == []
    assert tally.counts["damaged, as it is"]["refused"] > 8


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer ends what hangs")
def test_a_miss_is_seen(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a policy that binds nothing and without its seal, a processor of another mean would be used in silence."""
    monkeypatch.setattr(strange, "MUTATED", (PROCESSOR,))
    monkeypatch.setattr(strange, "mutated", lambda rng, name, content: content.replace(b"0.485", b"0.985"))
    tally = strange.Tally()
    strange.fuzz(tally, made, count=1, seed=0)
    assert tally.misses == [] and tally.counts[f"{PROCESSOR}, forged"]["other"] == 1
    monkeypatch.setattr("natix_hf.bundle.contents.read_policy", lambda path: _unbound(path))
    tally = strange.Tally()
    strange.fuzz(tally, made, count=1, seed=0)
    assert len(tally.misses) == 2 and POLICY not in tally.misses[0]


def _unbound(path: Path) -> object:
    from dataclasses import replace

    from natix_hf.bundle.policy import read_policy

    return replace(read_policy(path), config_sha256=None, processor_sha256=None)
