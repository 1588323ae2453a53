"""Prints what od-api-today has made of this environment, as one line of JSON: `today_state.py`.

With `messages`, only the messages of the OD API, by file: their descriptors.
"""

import importlib
import json
import os
import pathlib
import re
import sys

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def messages():
    """Returns each message file's descriptor and the names that its module has."""
    import object_detection
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    folder = pathlib.Path(object_detection.__file__).parent / "protos"
    found = {}
    for path in sorted(folder.glob("*_pb2.py")):
        module = importlib.import_module("object_detection.protos." + path.stem)
        names = sorted(name for name in vars(module) if name[0].isupper())
        extensions = [name for name in vars(module) if name.islower() and name[0] != "_"]
        shown = [name for name in extensions if not name.endswith("pb2")]
        described = str(FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))
        # As protobuf writes it back, a default of 0.00001 is 1e-05.
        plain = re.sub(r'(default_value: ")([-\d.e]+)(?=")', _plain, described)
        found[path.stem] = [plain, names, sorted(shown)]
    return found


def _plain(match):
    return match.group(1) + repr(float(match.group(2)))


def state():
    """Returns what the OD API finds, and what others do not find of it."""
    import object_detection.models.keras_models.resnet_v1 as resnet_v1
    import tensorflow as tf
    from google.protobuf.internal import api_implementation
    from object_detection import exporter_lib_v2, inputs, model_lib_v2  # noqa: F401
    from tensorflow.python.ops import control_flow_ops

    v1 = importlib.import_module("tensorflow.compat.v1")
    return {
        "tensorflow": [int(number) for number in tf.__version__.split(".")[:2]],
        "protobuf": api_implementation.Type(),
        "eval": inputs.tf_estimator.ModeKeys.EVAL,
        "estimator": type(inputs.tf_estimator).__module__,
        "lent estimator": type(getattr(v1, "estimator", None)).__module__,
        "case": callable(control_flow_ops.case),
        "moved": "__getattr__" in vars(control_flow_ops),
        "layers": tf.keras.layers.Layer.__module__.partition(".")[0],
        "resnet": resnet_v1.resnet.__name__.partition(".")[0],
        "keras": getattr(sys.modules.get("keras.applications"), "__name__", None),
    }


json.dump(messages() if sys.argv[1:] else state(), ANSWER)
