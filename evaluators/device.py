"""The device that a worker computes on, and how the process is set up for it."""

import contextlib
import os
import pathlib

from evaluators.protocol import Refusal


def prepare_process(request):
    """Applies what must be set before TensorFlow is imported: niceness and quiet logs."""
    if request.get("nice"):
        lower_priority(int(request["nice"]))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


def lower_priority(increment):
    """Makes the process nicer by that much, and its session too where Linux schedules by session.

    With autogroups (a kernel setting that most machines have on) niceness counts among the
    processes of one session only, and the daemon gives the worker a session of its own: it would
    get as much of the CPU as the trainer.
    """
    niceness = os.nice(increment)
    if os.getsid(0) != os.getpid():
        return
    with contextlib.suppress(OSError):  # no Linux, no autogroups, or no right to
        pathlib.Path("/proc/self/autogroup").write_text(str(niceness))


def configure_devices(request):
    """Sets thread counts and memory growth; returns the device's name, "cpu" without a GPU.

    Raises:
        Refusal: a GPU was asked for and TensorFlow sees none. It would fall back to the CPU in
            silence, and take it from the trainer.
    """
    import tensorflow as tf

    threads = request.get("threads")
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(int(threads))
        tf.config.threading.set_inter_op_parallelism_threads(int(threads))
    # model_main_tf2 sets it too; operations without a GPU kernel need it.
    tf.config.set_soft_device_placement(True)
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    wanted = request.get("device") or "cpu"
    if not gpus and wanted != "cpu":
        raise Refusal(
            "no_device",
            "device ({}) is not visible to TensorFlow in this environment".format(wanted),
            "check nvidia-smi and the CUDA libraries of that environment, or choose cpu",
        )
    if not gpus:
        return "cpu"
    details = tf.config.experimental.get_device_details(gpus[0])
    return details.get("device_name", gpus[0].name)


def numbers_of_device():
    """Returns what the device does to the numbers of an evaluation, None on the CPU.

    A GPU adds in another order than the CPU, and from compute capability 8.0 on TensorFlow
    multiplies with TF32, of 10 bits instead of 23, unless it is told not to: scores of the two do
    not compare.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    details = tf.config.experimental.get_device_details(gpus[0])
    allowed = tf.config.experimental.tensor_float_32_execution_enabled()
    return device_numbers(details.get("compute_capability"), allowed)


def device_numbers(compute_capability, tf32_allowed):
    """Returns how a GPU of this compute capability, (major, minor) or None, computes."""
    tf32 = bool(tf32_allowed and compute_capability and tuple(compute_capability) >= (8, 0))
    return {"kind": "gpu", "tf32": tf32}


def peak_gpu_memory_bytes():
    """Returns the most memory TensorFlow ever held on the first GPU, None without one."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
