#!/usr/bin/env python3
"""The stub worker, with memory of the GPU that it is shown: given to the daemon as its `--python`.

GPU_HOLDER is the file that takes the memory, GPU_BYTES how much; GPU_LOG gets a line for each
worker, its process id and the GPU's UUID as CUDA says it.
"""

import os
import runpy
import sys
from pathlib import Path

STUB = Path(__file__).resolve().parents[1] / "workers" / "stub_worker.py"

if __name__ == "__main__":
    holder = runpy.run_path(os.environ["GPU_HOLDER"])
    uuid = holder["hold"](int(os.environ["GPU_BYTES"]))["uuid"]
    with Path(os.environ["GPU_LOG"]).open("a") as log:
        log.write(f"{os.getpid()} {uuid}\n")
    sys.argv[0] = str(STUB)
    runpy.run_path(str(STUB), run_name="__main__")
