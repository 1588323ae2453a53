"""Which device of this host a watcher elsewhere gets."""

from __future__ import annotations

import os

from watcher.errors import ConfigError, WorkerError
from watcher.evaluation.device import Choice, choose
from watcher.evaluation.device_lock import other_evaluators
from watcher.evaluation.frames import Open
from watcher.evaluation.gpus import Listing, list_gpus


def find(wanted: Open) -> Choice | ConfigError | WorkerError:
    """Return the device, or why there is none: for good, or for now.

    Of `auto` it is a free one of those in CUDA_VISIBLE_DEVICES, as what placed the agent sets it,
    and never the CPU: whoever asks for another host's GPU has a CPU at home. A driver may take many
    seconds to answer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        listing = Listing() if wanted.device == "cpu" else list_gpus()
        if wanted.device != "auto":
            return choose(wanted.device, listing)[0]
        if visible and visible.startswith("MIG-") and "," not in visible:
            return choose(visible, listing)[0]
        others = other_evaluators(wanted.lock_dir, listing)
        (choice,) = choose("auto", listing, visible=visible, evaluators=others)
    except (ConfigError, WorkerError) as error:
        return error
    except OSError as error:
        return WorkerError(f"cannot look for a device: {error}")
    return choice if choice.is_gpu else WorkerError(f"auto: {choice.reason}")
