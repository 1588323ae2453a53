"""Holds memory of the first GPU that CUDA sees and keeps it busy: `holder.py BYTES`.

It prints one line of JSON, how and on which GPU, and ends when its standard input does. Through
torch where that is installed, as another framework would, else through CUDA's driver alone.
"""

import contextlib
import ctypes
import importlib.util
import json
import sys
import threading
import time
import uuid

# The GPU is busy for much of the time, and whoever asks it something is not kept waiting.
_PAUSE_SECONDS = 0.005


def hold(size, with_torch=False):
    """Takes so many bytes and writes to them until the process ends; returns how, and the UUID."""
    if with_torch and importlib.util.find_spec("torch"):
        return _hold_by_torch(size)
    return _hold_by_driver(size)


def _hold_by_torch(size):
    import torch

    held = torch.zeros(size // 4, dtype=torch.float32, device="cuda:0")

    def work():
        while True:
            held.add_(1)
            torch.cuda.synchronize()
            time.sleep(_PAUSE_SECONDS)

    threading.Thread(target=work, daemon=True).start()
    # Its own words for it differ from version to version; the driver's do not.
    return {"how": "torch " + torch.__version__, "uuid": _uuid(_driver())}


def _hold_by_driver(size):
    cuda = _driver()
    device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    _call(cuda.cuDeviceGet, ctypes.byref(device), 0)
    _call(cuda.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    _call(cuda.cuCtxSetCurrent, context)
    _call(cuda.cuMemAlloc_v2, ctypes.byref(pointer), ctypes.c_size_t(size))

    def work():
        _call(cuda.cuCtxSetCurrent, context)
        while True:
            _call(cuda.cuMemsetD32_v2, pointer, 1, ctypes.c_size_t(size // 4))
            _call(cuda.cuCtxSynchronize)
            time.sleep(_PAUSE_SECONDS)

    threading.Thread(target=work, daemon=True).start()
    return {"how": "CUDA's driver", "uuid": _uuid(cuda)}


def _driver():
    cuda = ctypes.CDLL("libcuda.so.1")
    _call(cuda.cuInit, 0)
    return cuda


def _uuid(cuda):
    found = ctypes.create_string_buffer(16)
    _call(cuda.cuDeviceGetUuid, found, 0)
    return f"GPU-{uuid.UUID(bytes=found.raw)}"


def _call(function, *arguments):
    code = function(*arguments)
    if code:
        raise OSError(f"{function.__name__} gave {code}")


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        said = hold(int(sys.argv[1]), with_torch=True)
    print(json.dumps(said), flush=True)
    sys.stdin.read()
