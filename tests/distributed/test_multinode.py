"""Two machines, played by two launchers on this one: the same training as two ranks of one machine, or one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
import yaml
from facts import tells
from ranks import LIMIT_S, launch

from natix_hf.errors import UsageError
from natix_hf.pipeline import run_recipe
from natix_hf.resources import resource_folder
from natix_hf.runs.verify import run_problems

pytestmark = pytest.mark.xdist_group("ranks")
SCRIPT = resource_folder("recipes") / "phase1.py"
SETTINGS = ["phase1.num_train_epochs=1", "phase1.per_device_train_batch_size=8", "phase1.adapter=lora"]


def weights(run: Path) -> bytes:
    return (run / "phase1_baseline" / "model" / "model.safetensors").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo needs a host name here that Windows may not resolve")
def test_two_launchers_train_what_two_ranks_of_one_machine_train(tiny_recipe_file: Path, tmp_path: Path) -> None:
    """`multinode.yaml`, with one process a machine instead of two GPUs. Each machine has its own caches."""
    done = launch("cpu_2proc.yaml", SCRIPT, tmp_path, "--recipe", str(tiny_recipe_file), *SETTINGS, "--run-dir", "one")
    assert done.returncode == 0, done.stderr[-3000:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"main_process_ip": "127.0.0.1", "main_process_port": free.getsockname()[1]}
    content = yaml.safe_load((resource_folder("accelerate_configs") / "multinode.yaml").read_text(encoding="utf-8"))
    config = tmp_path / "multinode.yaml"
    config.write_text(yaml.safe_dump(content | address | {"num_processes": 2, "use_cpu": True}))
    machines = []
    for rank in (0, 1):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command += ["--machine_rank", str(rank), str(SCRIPT), "--recipe", str(tiny_recipe_file), *SETTINGS]
        own = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / f"cache-{rank}"), "GLOO_SOCKET_IFNAME": "lo"}
        with (tmp_path / f"out-{rank}").open("w") as out:
            command += ["--run-dir", str(tmp_path / "two")]
            machines.append(subprocess.Popen(command, cwd=tmp_path, env=own, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [machine.wait(LIMIT_S) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
    said = [(tmp_path / f"out-{rank}").read_text() for rank in (0, 1)]
    assert codes == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert "phase 1  done" in said[0] and "phase 1  done" not in said[1], "rank 0 alone speaks"
    manifest = json.loads((tmp_path / "two" / "phase1_baseline" / "manifest.json").read_text())
    assert manifest["metrics"]["world_size"] == 2 and run_problems(tmp_path / "two") == []
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


def test_a_machine_that_does_not_see_the_run_folder_ends_all(tiny_recipe_file: Path, tmp_path: Path) -> None:
    """A folder of that path with a copy of the run does not help: it must be the same disk."""
    script = tmp_path / "phase1.py"
    script.write_text(
        "import os\nfrom pathlib import Path\nfrom natix_hf import launch\n"
        "os.environ |= {'LOCAL_WORLD_SIZE': '1', 'GROUP_RANK': os.environ['RANK']}\n"
        "launch._LATE_S = 1\n"
        "if os.environ['RANK'] == '1':\n"
        "    exists = Path.exists\n"
        "    Path.exists = lambda path, **_: 'seen_by_every' not in path.name and exists(path)\n"
        "launch.phase_script(1)\n"
    )
    done = launch("cpu_2proc.yaml", script, tmp_path, "--recipe", str(tiny_recipe_file), *SETTINGS, "--run-dir", "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("natix-hf: ")]
    assert lines and all(tells(line, "machine 1", tmp_path / "run", "--run-dir") for line in lines)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"], "nothing was done, nothing is left"


def test_natix_hf_run_starts_no_other_machine(tiny_recipe_file: Path, tmp_path: Path) -> None:
    for name, fact in (("multinode.yaml", "recipes/phaseN.py"), ("fsdp_2gpu.yaml", "ddp_2gpu.yaml")):
        config = resource_folder("accelerate_configs") / name
        with conftest.refused(UsageError, config, fact):
            run_recipe(str(tiny_recipe_file), [1], tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_model_spread_over_devices_is_refused_before_any_work(tiny_recipe_file: Path, tmp_path: Path) -> None:
    arguments = ["--recipe", str(tiny_recipe_file), "--run-dir", "run"]
    done = launch("fsdp_2gpu.yaml", SCRIPT, tmp_path, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("natix-hf: ")]
    assert lines and all(tells(line, "FSDP", "ddp_2gpu.yaml") for line in lines)
    assert not (tmp_path / "run").exists()
