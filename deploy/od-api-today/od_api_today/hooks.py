"""What the OD API wants and today's packages no longer have, one hook each.

Each looks first for the real thing, and does nothing where that is there. Those of `AROUND` are
context managers around the execution of one module; where what they give would be seen by others,
it is taken back with it.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import types

from od_api_today import environment

LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
# Where TensorFlow 2.14 has put what `control_flow_ops` had.
MOVED = {
    "Assert": "control_flow_assert",
    "case": "control_flow_case",
    "cond": "cond",
    "no_op": "gen_control_flow_ops",
    "while_loop": "while_loop",
}
# NumPy 1.24 dropped the first, NumPy 2.0 `NAN`. `bool` is NumPy's own again since 2.0.
NUMPY_ALIASES = {
    "bool": bool,
    "float": float,
    "int": int,
    "object": object,
    "str": str,
    "NAN": float("nan"),
}


def at_once():
    """Applies what must be there before the OD API's first module is executed."""
    for wrong, command in environment.lacking():
        environment.tell("{}: {}".format(wrong, command))
    legacy_keras()
    numpy_aliases()
    if "tf_slim" in sys.modules:
        with moved_control_flow():
            pass


def legacy_keras():
    """Keras 3 (TensorFlow 2.16 and newer): lets `tf.keras` be Keras 2, from tf-keras.

    TensorFlow asks the environment variable when `tf.keras` is first used.
    """
    keras = environment.version("keras")
    if keras is None or keras < (3, 0) or LEGACY_KERAS in os.environ:
        return
    if importlib.util.find_spec("tf_keras") is None:
        return
    os.environ[LEGACY_KERAS] = "1"
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and keras_is_taken(tensorflow):
        environment.tell(
            "tf.keras is Keras 3 already in this process, the OD API needs Keras 2: import"
            " object_detection before the first use of tf.keras, or start with {}=1".format(
                LEGACY_KERAS
            )
        )


def keras_is_taken(tensorflow):
    """Returns whether `tf.keras` has been used, and stays what it was then."""
    return getattr(vars(tensorflow).get("keras"), "_tfll_initialized", True)


def numpy_aliases():
    """NumPy 1.24 and newer: puts back the aliases of builtins that the OD API's metrics use."""
    import numpy

    for name, value in NUMPY_ALIASES.items():
        if name not in vars(numpy):
            setattr(numpy, name, value)


@contextlib.contextmanager
def moved_control_flow():
    """TensorFlow 2.14 and newer: lets `control_flow_ops` have what was moved out of it.

    tf_slim uses it when it is called, so this stays.
    """
    from tensorflow.python.ops import control_flow_ops

    def moved(name):
        if name not in MOVED:
            raise AttributeError("module {!r} has no attribute {!r}".format(here, name))
        return getattr(importlib.import_module("tensorflow.python.ops." + MOVED[name]), name)

    here = control_flow_ops.__name__
    if any(name not in vars(control_flow_ops) for name in MOVED):
        vars(control_flow_ops).setdefault("__getattr__", moved)
    yield


@contextlib.contextmanager
def estimator():
    """TensorFlow 2.16 and newer: lends `tensorflow.compat.v1` an `estimator`.

    TF2 training takes nothing of it but its `ModeKeys`.
    """
    # As the OD API names it: `tensorflow.compat` may show another object by the same name.
    v1 = importlib.import_module("tensorflow.compat.v1")
    with contextlib.ExitStack() as lent:
        if not _has(v1, "estimator"):
            v1.estimator = _Estimator("tensorflow.compat.v1.estimator")
            lent.callback(delattr, v1, "estimator")
        yield


class _Estimator(types.ModuleType):
    """What is left of TensorFlow's estimators."""

    class ModeKeys:
        """As in tensorflow-estimator 2.15."""

        TRAIN = "train"
        EVAL = "eval"
        PREDICT = "infer"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            "TensorFlow has no estimators since 2.16, so no tf.estimator.{} either: of the OD API,"
            " what needs TF1 does not run".format(name)
        )


@contextlib.contextmanager
def keras_applications():
    """Keras 3 (TensorFlow 2.16 and newer): lends tf-keras as `keras` to the ResNets.

    They say `from keras.applications import resnet`, and would put Keras 3's layers in a model of
    Keras 2.
    """
    lend = os.environ.get(LEGACY_KERAS) in ("1", "true", "True")
    with contextlib.ExitStack() as lent:
        if lend and importlib.util.find_spec("tf_keras") is not None:
            import tf_keras.applications

            _lend_module(lent, "keras.applications", tf_keras.applications)
        yield


@contextlib.contextmanager
def tensorflow_io():
    """Python 3.13 and newer: lends a `tensorflow_io` where none is installed, nor can be.

    DeepMAC alone uses it, for one loss, and all models import DeepMAC.
    """
    with contextlib.ExitStack() as lent:
        if importlib.util.find_spec("tensorflow_io") is None:
            _lend_module(lent, "tensorflow_io", _TensorFlowIO("tensorflow_io"))
        yield


class _TensorFlowIO(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ModuleNotFoundError(
            "No module named 'tensorflow_io', which DeepMAC's color loss needs: it has no wheel for"
            " Python {}.{}".format(*sys.version_info[:2]),
            name="tensorflow_io",
        )


@contextlib.contextmanager
def font_sizes():
    """Pillow 10 and newer: puts `getsize` of fonts back, with which labels are placed.

    By Pillow's own advice it is the width of the text's box, and the height down to that box's
    lower edge.
    """
    from PIL import ImageFont

    def getsize(font, text, *arguments, **options):
        left, _, right, bottom = font.getbbox(text, *arguments, **options)
        return right - left, bottom

    for kind in (ImageFont.ImageFont, ImageFont.FreeTypeFont):
        if not hasattr(kind, "getsize"):
            kind.getsize = getsize
    yield


def _has(module, name):
    try:
        getattr(module, name)
    except (AttributeError, ImportError):
        return False
    return True


def _lend_module(lent, name, module):
    """Gives a module in place of another until `lent` is closed."""
    absent = object()
    before = sys.modules.get(name, absent)

    def take_back():
        if before is absent:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before

    sys.modules[name] = module
    lent.callback(take_back)


# By the module around whose execution they are.
AROUND = {
    "tf_slim": moved_control_flow,
    "object_detection.inputs": estimator,
    "object_detection.model_lib": estimator,
    "object_detection.meta_architectures.deepmac_meta_arch": tensorflow_io,
    "object_detection.models.keras_models.resnet_v1": keras_applications,
    "object_detection.utils.visualization_utils": font_sizes,
}
