"""The device: float32 that is float32, and no GPU that is passed over in silence."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Command
from facts import tells

from natix_hf.launch import phase_script
from natix_hf.models.device import default_device, full_float32, runs_on_cpu, why_no_gpu

without_gpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="torch has a GPU here")


@pytest.fixture
def hidden_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine whose driver shows a GPU that torch cannot use."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA RTX A6000 (UUID: GPU-5b1c)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")  # --cpu sets it, and the test takes it back
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return "NVIDIA RTX A6000"


@pytest.mark.parametrize("new", [True, False], ids=["PyTorch 2.9 and later", "before"])
def test_float32_is_exact_inside_and_as_it_was_after(new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if new:
        products, convolutions = SimpleNamespace(fp32_precision="tf32"), SimpleNamespace(fp32_precision="none")
        cudnn = SimpleNamespace(conv=convolutions)
    else:
        products, convolutions = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=True)
        cudnn = convolutions
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends.cuda, "matmul", products)
    before = [dict(vars(convolutions)), dict(vars(products))]
    with pytest.raises(ZeroDivisionError), full_float32():
        assert {*vars(products).values()} == {"ieee" if new else False}
        assert (convolutions.fp32_precision == "ieee") if new else not convolutions.allow_tf32
        raise ZeroDivisionError
    assert [vars(convolutions), vars(products)] == before


def test_the_cpu_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert not runs_on_cpu() and default_device() == torch.device("cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert runs_on_cpu() and default_device() == torch.device("cpu")


@without_gpu
@pytest.mark.skipif(os.name == "nt", reason="the tool is a shell script")
def test_why_a_gpu_is_not_used(hidden_gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert tells(why_no_gpu(), hidden_gpu, torch.__version__, "for the CPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert tells(why_no_gpu(), hidden_gpu, "CUDA 13.0", "driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert tells(why_no_gpu(), "CUDA_VISIBLE_DEVICES", "unset")
    monkeypatch.setenv("PATH", "/nowhere")
    assert why_no_gpu() is None or any(Path("/dev").glob("nvidia[0-9]*"))


@without_gpu
@pytest.mark.skipif(os.name == "nt", reason="the tool is a shell script")
def test_a_gpu_that_torch_cannot_use_stops_a_run_unless_the_cpu_is_asked_for(
    hidden_gpu: str, tiny_recipe_file: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [tiny_recipe_file, "--phases", "1", "--run-dir", tmp_path / "run", "phase1.num_train_epochs=1"]
    code, _, err = command("run", *arguments)
    assert code == 2 and tells(err.strip(), hidden_gpu, "--cpu") and not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as stop:
        phase_script(1, ["--recipe", str(tiny_recipe_file), "--run-dir", str(tmp_path / "run")])
    assert stop.value.code == 2 and tells(capsys.readouterr().err.strip(), hidden_gpu)
    code, out, _ = command("doctor")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("device: CPU")
    assert tells(next(line for line in lines if line.startswith("warning: ")), hidden_gpu)
    code, out, _ = command("run", "--cpu", *arguments)
    assert code == 0 and out.splitlines()[0].startswith("device   CPU")


@without_gpu
def test_a_recipe_for_a_gpu_stops_where_there_is_none(
    tiny_recipe_file: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.setattr("natix_hf.models.device._gpus_of_the_driver", lambda: [])
    arguments = [tiny_recipe_file, "--phases", "1,2", "--run-dir", tmp_path / "run", "phase1.bf16=true"]
    code, _, err = command("run", *arguments, "phase1.num_train_epochs=1")
    assert code == 2 and tells(err.strip(), "phase1.bf16", "--cpu") and not (tmp_path / "run").exists()
    code, out, _ = command("run", "--cpu", *arguments, "phase1.num_train_epochs=1")
    assert code == 0 and "phase 2  done" in out
