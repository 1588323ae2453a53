"""Messages of the OD API whose generated files are older than the protobuf that reads them.

The distribution on PyPI brings files that protoc before 3.19 wrote. They make each descriptor by
hand, which protobuf has refused since 4.0 ("Descriptors cannot be created directly"). What a file
says of its messages is in it in serialized form, too, and of that today's protobuf makes the same
classes: by `google.protobuf.internal.builder`, as the files do that today's protoc writes.
"""

import ast
import importlib
import re

from od_api_today import environment

_NAME = re.compile(r"object_detection\.protos\.\w+_pb2\Z")
_OLD = "_descriptor.FileDescriptor("
_SERIALIZED = re.compile(r"^  serialized_pb=(b'.*')$", re.MULTILINE)
_IMPORT = re.compile(r"^from (object_detection\.protos) import (\w+_pb2)", re.MULTILINE)


def is_one(fullname):
    """Returns whether a module holds messages of the OD API."""
    return _NAME.match(fullname) is not None


def refused():
    """Returns whether the protobuf of this environment refuses old files.

    Its implementation in Python (PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python) takes them.
    """
    found = environment.version("protobuf")
    if found is None or found < (4, 0):
        return False
    from google.protobuf.internal import api_implementation

    return api_implementation.Type() != "python"


def build(module, loader):
    """Fills the module with the classes of its file's messages.

    Returns:
        False, with nothing done, where the file can be executed as it is or is none of the kind
        that is known here.
    """
    if not refused():
        return False
    source = loader.get_source(module.__name__)
    serialized = _SERIALIZED.search(source) if _OLD in source else None
    if serialized is None:
        return False
    from google.protobuf import descriptor_pool
    from google.protobuf.internal import builder

    for package, name in _IMPORT.findall(source):
        importlib.import_module(package + "." + name)
    names = vars(module)
    pool = descriptor_pool.Default()
    file = pool.AddSerializedFile(ast.literal_eval(serialized.group(1)))
    if file is None:  # protobuf 4.x, by its C++ implementation, returns nothing
        file = pool.FindFileByName(module.__name__.replace(".", "/")[: -len("_pb2")] + ".proto")
    names["DESCRIPTOR"] = file
    builder.BuildMessageAndEnumDescriptors(file, names)
    builder.BuildTopDescriptorsAndMessages(file, module.__name__, names)
    return True
