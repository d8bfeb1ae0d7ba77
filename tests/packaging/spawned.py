"""`spawned.py RECIPE RUN_DIR [KEY=VALUE ...]`: phase 1 as macOS and Windows run it.

There every worker is a new process that is sent its work by pickle.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

if __name__ == "__main__":
    import multiprocess  # the fork of multiprocessing that `datasets` uses

    from natix_hf.data import decode
    from natix_hf.pipeline import run_recipe

    for library in (multiprocessing, multiprocess):
        library.set_start_method("spawn")
    decode._ROWS_A_WORKER = 50  # so that the few rows of a test are decoded by two workers, where there are two cores
    decode.os.cpu_count = lambda: 2  # type: ignore[attr-defined]
    run_recipe(sys.argv[1], [1], Path(sys.argv[2]), overrides=sys.argv[3:])
    print(multiprocessing.get_start_method(), multiprocess.get_start_method())
