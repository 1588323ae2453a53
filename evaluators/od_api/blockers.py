"""What stands between the OD API and the packages it meets, told by their versions and files.

The OD API was written for TensorFlow 2.8. What has changed since is one tuple of `_BLOCKERS` each;
od-api-today (`deploy/od-api-today` of checkpoint-watcher's repository) removes all of them.
Nothing is imported here that takes long.
"""

import importlib.util
import os
import pathlib
import re
import sys

from evaluators.versions import version_of

TENSORFLOWS = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-rocm",
    "tensorflow-macos",
    "tensorflow-intel",
    "tensorflow-cpu-aws",
    "tf-nightly",
)
# What a start of the OD API imports: the module, and the distribution that brings it.
_NEEDS = (
    ("official", "tf-models-official"),
    ("tf_slim", "tf-slim"),
    ("lvis", "lvis"),
    ("pycocotools", "pycocotools"),
    ("PIL", "pillow"),
    ("cv2", "opencv-python-headless"),
    ("matplotlib", "matplotlib"),
    ("pandas", "pandas"),
    ("scipy", "scipy"),
    ("six", "six"),
    ("yaml", "PyYAML"),
    ("gin", "gin-config"),
)
# Whose own requirements, of years ago, would take TensorFlow away or fail to build.
_ALONE = ("tf-models-official", "lvis")
_GENERATED = re.compile(r"^# Protobuf Python Version: (\d[\d.]*)", re.MULTILINE)
# The newest there is: TensorFlow brought one of its own version along until 2.20.
_NEWEST_TENSORBOARD = (2, 21)
# The installed one may know no TensorFlow as new as this one.
_TODAY = "--upgrade od-api-today"
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


def remedies():
    """Returns what stands in the way: a list of (what it is, the command that mends it).

    Empty where TensorFlow or the OD API is not installed at all.
    """
    tensorflow = numbers(*TENSORFLOWS)
    if tensorflow is None or _folder("object_detection") is None:
        return []
    blocked = [] if hooked() else [told for told, stands in _BLOCKERS if stands(tensorflow)]
    # In the order in which a start meets them.
    return [*_protobuf(), *_mended_by_hooks(blocked), *lacking(tensorflow), *_needs()]


def after_import():
    """Returns what still stands in the way of a trainer where the OD API could be imported."""
    from tensorflow.python.ops import control_flow_ops

    tensorflow = numbers(*TENSORFLOWS) or (2, 0)
    blocked = []
    if not hasattr(control_flow_ops, "case") and _moved_control_flow(tensorflow):
        blocked.append(_MOVED)
    if _keras_3_is_tf_keras(tensorflow):
        blocked.append(_KERAS_3)
    return _mended_by_hooks(blocked) + lacking(tensorflow)


def _mended_by_hooks(blocked):
    return [("; ".join(blocked), install(_TODAY))] if blocked else []


def lacking(tensorflow):
    """Returns what no hook brings, in the same form: tf-keras and TensorBoard."""
    found = []
    legacy = numbers("tf-keras", "tf-keras-nightly")
    minor = "{}.{}".format(*tensorflow)
    if _keras_3() and legacy != tensorflow:
        has = "there is none" if legacy is None else "it is {}.{}".format(*legacy)
        what = "the OD API needs Keras 2, so tf-keras {0} beside TensorFlow {0}: ".format(minor)
        found.append((what + has, install("'tf-keras=={}.*'".format(minor))))
    if numbers("tensorboard", "tb-nightly") is None:
        found.append(
            (
                "there is no TensorBoard, and without it tf.summary.image raises in the trainer",
                install("'tensorboard=={}.{}.*'".format(*min(tensorflow, _NEWEST_TENSORBOARD))),
            )
        )
    return found


def _protobuf():
    """Yields that TensorFlow's messages were generated for a newer protobuf than there is."""
    there, wanted = version_of("protobuf"), _generated_for()
    if there is not None and (wanted is None or _parts(there) >= _parts(wanted)):
        return
    least = wanted or "3.20.3"
    has = "there is none" if there is None else "it is {}".format(there)
    what = "TensorFlow {} needs protobuf {} or newer, and {}"
    yield what.format(version_of(*TENSORFLOWS), least, has), install("'protobuf>={}'".format(least))


def _generated_for():
    """Returns the version of protobuf whose compiler wrote TensorFlow's messages.

    It is in them since protobuf 5, which refuses to read those of a later one.
    """
    path = (_folder("tensorflow") or pathlib.Path()) / "core" / "framework" / "attr_value_pb2.py"
    try:
        found = _GENERATED.search(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found.group(1) if found else None


def _needs():
    """Yields what else the OD API imports at its start and is not there."""
    missing = [name for module, name in _NEEDS if importlib.util.find_spec(module) is None]
    parts = [
        (" ".join(name for name in missing if name not in _ALONE), ""),
        (" ".join(name for name in missing if name in _ALONE), "--no-deps "),
    ]
    if missing:
        what = "the OD API imports what is not installed ({})".format(", ".join(missing))
        yield what, " && ".join(install(option + names) for names, option in parts if names)


def _parts(version):
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def hooked():
    """Returns whether od-api-today is at work in this process."""
    return any(
        getattr(finder, "__module__", "") == "od_api_today.finder" and finder.__name__ == "Finder"
        for finder in sys.meta_path
    )


def install(package):
    """Returns the command that installs a package into this environment."""
    if importlib.util.find_spec("pip") is None:
        return "uv pip install --python {} {}".format(sys.executable, package)
    return "{} -m pip install {}".format(sys.executable, package)


def numbers(*distributions):
    """Returns (major, minor) of the first that is installed, None when none is."""
    found = re.match(r"(\d+)\.(\d+)", version_of(*distributions) or "")
    return (int(found.group(1)), int(found.group(2))) if found else None


def _folder(package):
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return pathlib.Path(places[0]) if places else None


def _says(package, file, text):
    """Returns whether a file of a package says that: not where it was patched by hand."""
    path = (_folder(package) or pathlib.Path()) / file
    try:
        return text in path.read_text(encoding="utf-8")
    except OSError:
        return False


def _keras_3():
    keras = numbers("keras")
    return keras is not None and keras >= (3, 0)


def _old_messages(_tensorflow):
    protobuf = numbers("protobuf")
    if protobuf is None or protobuf < (4, 0):
        return False
    if os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION") == "python":
        return False
    return _says("object_detection", "protos/pipeline_pb2.py", "_descriptor.FileDescriptor(")


def _moved_control_flow(tensorflow):
    return tensorflow >= (2, 14) and _says(
        "tf_slim", "data/tfexample_decoder.py", "control_flow_ops.case("
    )


def _no_estimator(tensorflow):
    return tensorflow >= (2, 16) and _says(
        "object_detection", "inputs.py", "from tensorflow.compat.v1 import estimator"
    )


def _keras_3_is_tf_keras(tensorflow):
    return (
        tensorflow >= (2, 16)
        and _keras_3()
        and os.environ.get(_LEGACY_KERAS) not in ("1", "true", "True")
    )


def _resnet_of_keras_3(tensorflow):
    file = "models/keras_models/resnet_v1.py"
    return (
        tensorflow >= (2, 16)
        and _keras_3()
        and _says("object_detection", file, "from keras.applications import")
    )


def _no_tensorflow_io(_tensorflow):
    file = "meta_architectures/deepmac_meta_arch.py"
    return importlib.util.find_spec("tensorflow_io") is None and _says(
        "object_detection", file, "import tensorflow_io"
    )


_MOVED = "TensorFlow 2.14 moved control_flow_ops.case, which tf_slim calls"
_KERAS_3 = "since TensorFlow 2.16 tf.keras is Keras 3"
# In the order in which a start meets them.
_BLOCKERS = (
    ("protobuf 4 and newer refuse the OD API's message files", _old_messages),
    (_MOVED, _moved_control_flow),
    ("TensorFlow 2.16 has no estimator, which the OD API imports", _no_estimator),
    (_KERAS_3, _keras_3_is_tf_keras),
    ("the OD API's ResNets would be built from Keras 3", _resnet_of_keras_3),
    ("there is no tensorflow_io, which all models import", _no_tensorflow_io),
)
