"""Prints what od-api-today has made of this environment, as one line of JSON: `today_state.py`.

With `messages`, only the messages of the OD API, by file: their descriptors.
"""

import importlib
import json
import os
import pathlib
import re
import struct
import sys
import types

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
        names = sorted(name for name, value in vars(module).items() if _is_shown(name, value))
        described = str(FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))
        # As protobuf writes a default back, it may be in the digits of its 32 bits.
        plain = re.sub(r'(default_value: ")([-\d.e]+)(?=")', _plain, described)
        found[path.stem] = [plain, names]
    return found


def _plain(match):
    (number,) = struct.unpack("f", struct.pack("f", float(match.group(2))))
    return match.group(1) + repr(number)


def _is_shown(name, value):
    """Whether it is a message, an enum or an extension, or what belongs to one."""
    return name[0] != "_" and not isinstance(value, types.ModuleType)


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
