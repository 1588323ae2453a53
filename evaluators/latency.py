"""Latency: how long a pass of the model takes while nothing else of ours runs.

Between two checkpoints there is a moment when the images of one are through and the metrics of the
one before are sent. A few batches of the eval set, always the same, are passed through again then,
one at a time. The weights do not matter to it but for what is found, so that two checkpoints of one
model differ by little more than the spread.
"""

import itertools
import os
import pathlib
import resource
import time

from evaluators.memory import tensor_bytes

# As many batches are timed as take so long, and so often as it takes until the median is known to
# ENOUGH of it, or the time or the number of passes is used up.
SECONDS = 1.0
FEWEST_BATCHES, MOST_BATCHES = 3, 8
MOST_PASSES = 64
ENOUGH = 0.01
# They are kept in memory, also where the eval set is not.
BATCH_BYTES = 64 << 20
# Of other programs, beyond which a CPU counts as shared: cores, and their share of all.
OTHERS_CORES, OTHERS_SHARE = 0.25, 0.05


class Stopwatch:
    """Times passes of one model over the same batches again and again.

    Args:
        passes: pairs (function, images): each runs a batch of so many, and returns when it is
            through.
        on_cpu: whether the model runs on the CPU.
        device_shared: whether others were seen to compute on that GPU, None where nobody looked.
    """

    def __init__(self, passes, on_cpu, device_shared=False):
        self._passes = passes
        self._on_cpu = on_cpu
        self._device_shared = device_shared

    def measure(self, seconds=SECONDS):
        """Times the model as it is now and returns the figures, milliseconds an image.

        It takes about that long, and one pass of each batch at least.

        `latency_ms` is the median over `latency_passes` passes, `latency_ms_p90` their 90th
        percentile, `latency_ms_spread` from the 10th to the 90th. `latency_others_cores` is how
        many cores other programs kept busy meanwhile, None where that cannot be told.
        `latency_shared` says that the device was not ours alone, of a GPU as it was when the
        watcher began; None where that cannot be told.
        """
        self._passes[0][0]()  # out of the caches it fell
        began, others = time.perf_counter(), _Others()
        found = []
        while not _is_enough(found) and time.perf_counter() - began < seconds:
            for run, images in self._passes:
                start = time.perf_counter()
                run()
                found.append(1000 * (time.perf_counter() - start) / images)
        return {**figures(found), **self._sharing(others.cores())}

    def _sharing(self, cores):
        shared = self._device_shared
        if self._on_cpu:
            shared = None if cores is None else is_shared(cores, os.cpu_count() or 1)
        return {
            "latency_shared": shared,
            "latency_others_cores": None if cores is None else round(cores, 2),
        }


def figures(milliseconds):
    """Returns the figures of single passes, milliseconds an image each."""
    low, median, high = (quantile(milliseconds, part) for part in (0.1, 0.5, 0.9))
    return {
        "latency_ms": median,
        "latency_ms_p90": high,
        "latency_ms_spread": high - low,
        "latency_passes": len(milliseconds),
    }


def quantile(values, fraction):
    """Returns the value below which that fraction lies, in between two where it falls there."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = ordered[int(place)]
    return below + (place - int(place)) * (ordered[min(int(place) + 1, len(ordered) - 1)] - below)


def is_shared(others_cores, cores):
    """Tells whether others keep so many of a machine's cores busy that a pass takes longer."""
    return others_cores > max(OTHERS_CORES, OTHERS_SHARE * cores)


def wanted_batches(pass_seconds):
    """Returns how many batches to time, where a pass of one takes so long."""
    return min(max(int(SECONDS / pass_seconds), FEWEST_BATCHES), MOST_BATCHES)


def first_batches(batches, wanted):
    """Returns (features, labels, images) of the first batches, as many as may be kept."""
    found, kept_bytes = [], 0
    for features, labels in itertools.islice(iter(batches), wanted):
        tensors = [*features.values(), *labels.values()]
        kept_bytes += sum(map(tensor_bytes, tensors))
        if found and kept_bytes > BATCH_BYTES:
            break
        found.append((features, labels, len(tensors[0])))
    return found


def _is_enough(found):
    """Tells whether the standard error of the median is small, as of a normal distribution."""
    if not found or len(found) >= MOST_PASSES:
        return bool(found)
    quartiles = quantile(found, 0.75) - quantile(found, 0.25)
    return 0.93 * quartiles / len(found) ** 0.5 < ENOUGH * quantile(found, 0.5)


class _Others:
    """What other programs take of the CPUs, from when it was made."""

    def __init__(self):
        self._before = self._now()

    def cores(self):
        """Returns how many cores they kept busy, None where that cannot be told."""
        if self._before is None:
            return None
        now, busy, ours = (b - a for a, b in zip(self._before, self._now()))
        return max(0.0, (busy - ours) / now) if now > 0 else None

    def _now(self):
        """Returns seconds: of the clock, of all cores at work, and of those that were ours."""
        try:
            line = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
            # Without idle and iowait; a guest's time is in user and nice already.
            user, nice, system, _, _, irq, softirq, steal = map(int, line[1:9])
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), busy, usage.ru_utime + usage.ru_stime
