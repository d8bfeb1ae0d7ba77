"""The learned gate as a model: what it reads, and that it comes back from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from natix_hf.errors import VerificationError
from natix_hf.models.gate import Gate, gate_inputs, load_gate, save_gate


def test_inputs_are_features_distance_and_margin() -> None:
    inputs = gate_inputs(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32), np.array([0.5, -2.0]), 1.5)
    assert inputs.tolist() == [[1.0, 2.0, -1.0, 1.0], [3.0, 4.0, -3.5, 3.5]] and inputs.dtype == np.float32


def test_a_gate_comes_back_from_disk_bit_by_bit(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    gate = Gate(5, 7)
    gate.standardise(inputs)
    save_gate(tmp_path / "gate.safetensors", gate)
    loaded = load_gate(tmp_path / "gate.safetensors")
    assert loaded.state_dict().keys() == gate.state_dict().keys()
    assert all(torch.equal(tensor, gate.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    np.testing.assert_array_equal(loaded.confidence(inputs), gate.confidence(inputs))
    assert loaded.confidence(inputs).dtype == np.float64 and loaded.layers[0].out_features == 7


def _drop(gate: Gate) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in gate.state_dict().items() if name != "std"}


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "no tensor", "another shape", "one more", "nan", "inf"])
def test_a_damaged_gate_is_refused(damage: str, tmp_path: Path) -> None:
    path, gate = tmp_path / "gate.safetensors", Gate(5, 4)
    save_gate(path, gate)
    assert load_gate(path)
    state = dict(gate.state_dict())
    if damage == "missing":
        path.unlink()
    elif damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"")
    else:
        changed: dict[str, dict[str, torch.Tensor]] = {
            "no tensor": _drop(gate),
            "another shape": state | {"layers.0.weight": torch.zeros(4)},
            "one more": state | {"extra": torch.zeros(1)},
            "nan": state | {"mean": torch.full((5,), float("nan"))},
            "inf": state | {"layers.2.bias": torch.full((1,), float("inf"))},
        }
        save_file(changed[damage], path)
    with pytest.raises(VerificationError, match=r"gate\.safetensors"):
        load_gate(path)
