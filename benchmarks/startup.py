"""What a user waits for: `import natix_hf` and `natix-hf --help`, beside `import transformers` and a bare interpreter.

    python benchmarks/startup.py [--rounds 15]

Every figure is the wall time of a fresh process, started round by round in turn, the first round (cold files,
bytecode) left out; medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from results import record

COMMANDS = {
    "bare python": [sys.executable, "-c", "pass"],
    "import natix_hf": [sys.executable, "-c", "import natix_hf"],
    "natix-hf --help": [str(Path(sys.executable).with_name("natix-hf")), "--help"],
    "import transformers": [sys.executable, "-c", "import transformers"],
}


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, command in COMMANDS.items():
            took = seconds(command)
            if turn:
                times[name].append(took)
    middle = {name: median(took) for name, took in times.items()}
    peer = middle["import transformers"]
    record(
        "startup",
        ", ".join(f"`{name}` {took * 1000:.0f} ms" for name, took in middle.items())
        + f"; `import transformers` takes {peer / middle['import natix_hf']:.1f} times as long as `import natix_hf`, "
        f"{peer / middle['natix-hf --help']:.1f} times as long as `natix-hf --help`; medians of {rounds}",
    )


if __name__ == "__main__":
    main()
