"""Ranks for tests: through `accelerate launch`, and the same without importing the libraries again for every rank.

Importing takes a rank ten seconds, more than most of these tests need altogether, so most ranks are forked from one
process that has imported them.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from natix_hf.launch import code_of
from natix_hf.resources import resource_folder

PHASES = ("phase0_data", "phase1_baseline", "phase2_threshold", "phase3_gate", "phase4_explora", "phase6_export")
PRELOADED = ["natix_hf.pipeline", *(f"natix_hf.phases.{name}" for name in PHASES)]
LIMIT_S = 300


def accelerate_launch(config: str, script: Path, folder: Path, *arguments: str) -> CompletedProcess[str]:
    """`accelerate launch` of a script from `folder`, with a packaged configuration."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(resource_folder("accelerate_configs") / config), str(script), *arguments]
    return _twice(
        lambda: subprocess.run(
            command, cwd=folder, env=dict(os.environ), capture_output=True, encoding="utf-8", timeout=LIMIT_S
        )
    )


def launch(config: str, script: Path, folder: Path, *arguments: str) -> CompletedProcess[str]:
    """The same, in a fraction of the time: accelerate's environment, torchrun's ranks, forked. As with torchrun the
    first rank that fails ends the others.

    What it cannot show: ranks that disagree because each hashes strings in its own way, and a crash at exit.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return accelerate_launch(config, script, folder, *arguments)
    return _twice(lambda: _forked_launch(config, script, folder, *arguments))


def _twice(run: Callable[[], CompletedProcess[str]]) -> CompletedProcess[str]:
    """One gloo run in five aborts at exit here: tried twice."""
    done = run()
    aborted = done.returncode == -signal.SIGABRT or "SIGABRT" in done.stderr
    return run() if aborted else done


def _forked_launch(config: str, script: Path, folder: Path, *arguments: str) -> CompletedProcess[str]:
    command = ["--main_process_port", "0", "--config_file", str(resource_folder("accelerate_configs") / config)]
    command += [str(script), *arguments]
    environment, world = _environment(command)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    streams = [folder / f".{name}-{time.monotonic_ns()}" for name in ("stdout", "stderr")]
    ranks = []
    for rank in range(world):
        own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})
        ranks.append(context.Process(target=_be_rank, args=(own, folder, streams, [str(script), *arguments])))
        ranks[-1].start()
    end = time.monotonic() + LIMIT_S
    try:
        while (alive := [rank for rank in ranks if rank.is_alive()]) and not any(rank.exitcode for rank in ranks):
            if not multiprocessing.connection.wait([rank.sentinel for rank in alive], end - time.monotonic()):
                raise TimeoutError(f"{script.name} has not ended within {LIMIT_S} s")
    finally:
        for rank in ranks:
            rank.terminate()
            rank.join(10)
            rank.kill()
            rank.join()
    failed = [rank.exitcode for rank in ranks if rank.exitcode]
    code = code_of(failed) if failed else 0
    out, err = (path.read_text(encoding="utf-8") if path.is_file() else "" for path in streams)
    return CompletedProcess(command, code, out, err)


def _environment(command: list[str]) -> tuple[dict[str, str], int]:
    """What accelerate sets for the file of its configuration and torchrun for its ranks, and how many there are."""
    from accelerate.commands import launch

    given, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(command))
    if given.num_processes == 1:
        return launch.prepare_simple_launcher_cmd_env(given)[1], 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": given.num_processes, "LOCAL_WORLD_SIZE": given.num_processes, "MASTER_ADDR": "127.0.0.1"}
    own |= {"MASTER_PORT": port}
    return launch.prepare_multi_gpu_env(given) | {name: str(value) for name, value in own.items()}, given.num_processes


def _be_rank(environment: dict[str, str], folder: Path, streams: list[Path], command: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # it was set to that of this process: a loader's workers too
    for number, path in zip((1, 2), streams, strict=True):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
