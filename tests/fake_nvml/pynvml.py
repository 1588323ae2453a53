"""A stand-in for nvidia-ml-py, put on PYTHONPATH: answers as that does, from a JSON file.

FAKE_NVML names the file: a list of GPUs, each with `uuid`, `name`, `free`, `total` (bytes),
`computing` (process ids, null when the driver cannot tell) and `mig`; or a string, the error that
NVML starts with.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

NVML_DEVICE_MIG_ENABLE = 1


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_NoPermission(NVMLError):
    pass


def _gpus():
    return json.loads(Path(os.environ["FAKE_NVML"]).read_text())


def nvmlInit():
    if isinstance(_gpus(), str):
        raise NVMLError(_gpus())


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetUUID(handle):
    return _gpus()[handle]["uuid"]


def nvmlDeviceGetName(handle):
    return _gpus()[handle].get("name", "Fake GPU")


def nvmlDeviceGetMemoryInfo(handle):
    gpu = _gpus()[handle]
    total = gpu.get("total", 16 << 30)
    free = gpu.get("free", total)
    return SimpleNamespace(total=total, free=free, used=total - free)


def nvmlDeviceGetComputeRunningProcesses(handle):
    computing = _gpus()[handle].get("computing", [])
    if computing is None:
        raise NVMLError_NotSupported("Not Supported")
    return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in computing]


def nvmlDeviceGetMigMode(handle):
    if "mig" not in _gpus()[handle]:
        raise NVMLError_NotSupported("Not Supported")
    return [int(_gpus()[handle]["mig"]), 0]
