"""What differs between training environments: imports, versions, devices, repairs."""

import contextlib
import importlib
import importlib.util
import os
import pathlib

from evaluators.od_api import blockers
from evaluators.od_api.versions import version_of
from evaluators.protocol import Refusal

# NumPy 2.0 dropped the last, NumPy 1.24 the others.
NUMPY_ALIASES = {
    "float": float,
    "int": int,
    "bool": bool,
    "object": object,
    "str": str,
    "NAN": float("nan"),
}


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


def import_libraries():
    """Imports TensorFlow and the Object Detection API and returns their versions by name.

    Raises:
        Refusal: one of them cannot be imported here.
    """
    put_hooks_in_place()
    python = os.sys.executable  # as it was named: where a link leads to is no environment
    tensorflow = _import("tensorflow", "no_tensorflow", python)
    restore_numpy_aliases()
    for module in ("object_detection.protos.pipeline_pb2", "object_detection.model_lib_v2"):
        _import(module, "no_object_detection", python)
    tensorflow.get_logger().setLevel("WARNING")
    import numpy

    return {
        "python": "{}.{}.{}".format(*os.sys.version_info[:3]),
        "tensorflow": tensorflow.__version__,
        "object_detection": version_of("tf-models-research-object-detection", "object-detection"),
        "tf_models_official": version_of("tf-models-official", "tf-models-nightly"),
        "pycocotools": version_of("pycocotools"),
        "numpy": numpy.__version__,
    }


def put_hooks_in_place():
    """Lets od-api-today, where it is installed, prepare this process before TensorFlow is there.

    Its hooks wait for `object_detection`, whose top module is empty. Where its .pth file is not
    read, they are called here.
    """
    with contextlib.suppress(ImportError):
        import od_api_today

        od_api_today.wait_for_object_detection()
    with contextlib.suppress(ImportError):
        importlib.import_module("object_detection")


def restore_numpy_aliases():
    """Puts `np.float` and its like back, which the OD API's metrics use and NumPy 1.24 dropped.

    Only this process sees it. Each alias was the value itself, so no number changes.
    """
    import numpy

    for name, value in NUMPY_ALIASES.items():
        if name not in vars(numpy):
            setattr(numpy, name, value)


def restore_font_sizes():
    """Puts `getsize` of Pillow's fonts back, with which the OD API places labels.

    Pillow 10 dropped it, and with that the OD API's drawing raises. By Pillow's own advice it is
    the width of the text's box, and the height down to that box's lower edge.
    """
    from PIL import ImageFont

    def getsize(font, text, *arguments, **options):
        left, _, right, bottom = font.getbbox(text, *arguments, **options)
        return right - left, bottom

    for kind in (ImageFont.ImageFont, ImageFont.FreeTypeFont):
        if not hasattr(kind, "getsize"):
            kind.getsize = getsize


@contextlib.contextmanager
def empty_source_ids():
    """Lets input pipelines that are built meanwhile pass an empty source_id on as it is.

    The OD API puts a random number there, another one at each reading.
    """
    from object_detection import inputs

    name = "_replace_empty_string_with_random_number"
    replaced = getattr(inputs, name)
    setattr(inputs, name, lambda source_id: source_id)
    try:
        yield
    finally:
        setattr(inputs, name, replaced)


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


def _import(module, code, python):
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken environment raises anything, not only ImportError
        top = module.split(".")[0]
        present = importlib.util.find_spec(top) is not None
        state = "cannot be imported in" if present else "is not installed in"
        why, command = next(iter(blockers.remedies()), (None, None))
        raise Refusal(
            code,
            "{} {} {}: {}".format(top, state, python, _because(error, why)),
            command or "give --python the interpreter of the environment that trains",
        ) from error


def _because(error, why):
    named = "{}: {}".format(type(error).__name__, error)
    return "{} ({})".format(why, named.splitlines()[0]) if why else named
