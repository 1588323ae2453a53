"""A stand-in for `tests/gpu/holder.py`: says in FAKE_NVML_HELD that it holds memory, and has none.

FAKE_NVML_GREEDY: it says that it computes on another GPU than it was shown.
"""

import json
import os
import sys
from pathlib import Path


def hold(size):
    """Says that this process holds so many bytes of the GPU in CUDA_VISIBLE_DEVICES."""
    uuid = os.environ.get("FAKE_NVML_GREEDY") or os.environ["CUDA_VISIBLE_DEVICES"]
    note = Path(os.environ["FAKE_NVML_HELD"], str(os.getpid()))
    # Whole at once: another process may read it any moment.
    draft = note.parent.with_name(f"draft-{os.getpid()}")
    draft.write_text(f"{uuid} {size}")
    draft.rename(note)
    return {"how": "a stand-in", "uuid": uuid}


if __name__ == "__main__":
    print(json.dumps(hold(int(sys.argv[1]))), flush=True)
    sys.stdin.read()
