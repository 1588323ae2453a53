"""The machine that an evaluation runs on, as named parts: what may change the last bits of a score.

They are told apart from the fingerprint. Two machines that are equal in all of them give the same
numbers; of two that differ in one that has to be seen (`docs/explanation/true-scores.md`).
"""

import ctypes
import os
import pathlib
import platform
import re

# What TensorFlow, Eigen, oneDNN and NumPy choose their kernels by, on x86 and on ARM. A CPU's name
# is too fine, since two of one instruction set run the same kernels, and says nothing of what a
# hypervisor hides; a level such as "AVX-512" is too coarse, since oneDNN has kernels of their own
# for VNNI, BF16 and AMX. How many threads there are is no part: that changed no bit where it was
# tried, and each other number of cores would have to be proved.
_INSTRUCTIONS = re.compile(
    r"sse4_[12]|ssse3|f16c|fma|(avx|amx).*|(asimd|sve).*|sme(?!p).*|fphp|bf16|i8mm"
)
# Variables by which a user has them choose others, or another arithmetic.
_VARIABLES = (
    "DNNL_MAX_CPU_ISA",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TF_CUDNN_DETERMINISTIC",
    "TF_CUDNN_USE_AUTOTUNE",
    "TF_DETERMINISTIC_OPS",
    "TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)
_CPUINFO = pathlib.Path("/proc/cpuinfo")
_DRIVER = pathlib.Path("/proc/driver/nvidia/version")
_MAPS = pathlib.Path("/proc/self/maps")


def parts(device):
    """Returns the parts by name, each a text; TensorFlow is imported and its devices configured.

    Args:
        device: "cpu" or the GPU's model, as `device.configure_devices` names it.
    """
    found = {
        "device": device,
        "instructions": instructions(),
        # A GPU's evaluation runs on the CPU in part: reading images, and what has no other kernel.
        "onednn": _onednn(),
        "environment": " ".join(
            "{}={}".format(name, os.environ[name]) for name in _VARIABLES if os.environ.get(name)
        ),
        **(_of_gpu() if device != "cpu" else {}),
    }
    return {name: text for name, text in found.items() if text}


def instructions(cpuinfo=_CPUINFO):
    """Returns the CPU's architecture and those of its instruction sets that kernels are chosen by.

    Where the system does not list them it is the architecture alone.
    """
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        text = ""
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    names = listed.group(1).split() if listed else []
    return " ".join([platform.machine(), *sorted(set(filter(_INSTRUCTIONS.fullmatch, names)))])


def _onednn():
    """Returns whether TensorFlow computes with oneDNN: as built, as the CPU has it, as it is set.

    Up to where the user limits oneDNN is in `environment`.
    """
    try:
        from tensorflow.python.util import _pywrap_util_port

        return "on" if _pywrap_util_port.IsMklEnabled() else "off"
    except (ImportError, AttributeError):  # of TensorFlow's inside, and of some versions
        return os.environ.get("TF_ENABLE_ONEDNN_OPTS", "")


def _of_gpu():
    import tensorflow as tf

    built = tf.sysconfig.get_build_info()
    try:
        driver = re.search(r"\s(\d+(?:\.\d+)+)\s", _DRIVER.read_text())
    except OSError:
        driver = None
    return {
        # What is loaded counts, and may be newer than what TensorFlow was built with.
        "cuda": _loaded_version("libcudart.so") or built.get("cuda_version"),
        "cudnn": _loaded_version("libcudnn.so") or built.get("cudnn_version"),
        "driver": driver and driver.group(1),
    }


def _loaded_version(library):
    """Returns the version that a library loaded by TensorFlow says it has, None where it has none.

    One that is linked into TensorFlow is not there to be asked.
    """
    try:
        paths = re.findall(r"\s(/\S*/" + re.escape(library) + r"\S*)$", _MAPS.read_text(), re.M)
        loaded = ctypes.CDLL(paths[0])
        if library.startswith("libcudnn"):
            loaded.cudnnGetVersion.restype = ctypes.c_size_t
            return str(loaded.cudnnGetVersion())
        number = ctypes.c_int()
        if loaded.cudaRuntimeGetVersion(ctypes.byref(number)):
            return None
    except (OSError, IndexError, AttributeError):
        return None
    return "{}.{}".format(number.value // 1000, number.value % 1000 // 10)
