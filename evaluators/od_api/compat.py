"""What differs between training environments: imports, versions, repairs."""

import contextlib
import importlib
import importlib.util
import sys

from evaluators.od_api import blockers
from evaluators.protocol import Refusal
from evaluators.versions import version_of

# NumPy 2.0 dropped the last, NumPy 1.24 the others.
NUMPY_ALIASES = {
    "float": float,
    "int": int,
    "bool": bool,
    "object": object,
    "str": str,
    "NAN": float("nan"),
}


def import_libraries():
    """Imports TensorFlow and the Object Detection API and returns their versions by name.

    Raises:
        Refusal: one of them cannot be imported here.
    """
    put_hooks_in_place()
    python = sys.executable  # as it was named: where a link leads to is no environment
    tensorflow = _import("tensorflow", "no_tensorflow", python)
    restore_numpy_aliases()
    for module in ("object_detection.protos.pipeline_pb2", "object_detection.model_lib_v2"):
        _import(module, "no_object_detection", python)
    tensorflow.get_logger().setLevel("WARNING")
    import numpy

    return {
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
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
