"""How much memory there is, is taken, and was taken."""

import os
import pathlib
import resource
import sys

LARGEST_CACHE_BYTES = 4 << 30


def default_cache_bytes():
    """Returns a quarter of the memory available now, at most LARGEST_CACHE_BYTES."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        free = LARGEST_CACHE_BYTES
    return min(LARGEST_CACHE_BYTES, free // 4)


def tensor_bytes(tensor):
    """Returns the bytes a tensor's values take; 64 for each string."""
    return tensor.shape.num_elements() * (tensor.dtype.size or 64)


def peak_memory_bytes():
    """Returns the most memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
