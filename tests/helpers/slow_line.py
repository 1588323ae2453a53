"""A launcher for the tests: `python slow_line.py BYTES_PER_SECOND COMMAND...`, a line as slow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

rate, command = float(sys.argv[1]), sys.argv[2:]
process = subprocess.Popen(command, stdin=subprocess.PIPE)
assert process.stdin


def pump() -> None:
    """Pass our input on, so many bytes a second."""
    assert process.stdin
    while data := os.read(0, 8192):
        process.stdin.write(data)
        process.stdin.flush()
        time.sleep(len(data) / rate)
    process.stdin.close()


threading.Thread(target=pump, daemon=True).start()
sys.exit(process.wait())
