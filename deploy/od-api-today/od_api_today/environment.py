"""Which versions this environment has, without importing what they are versions of."""

import functools
import importlib.util
import os
import pathlib
import re
import shlex
import sys

# The newest TensorFlow that the hooks were run with.
NEWEST = (2, 21)
# The newest there is: TensorFlow brings none along since 2.21.
NEWEST_TENSORBOARD = (2, 21)
FORCE = "OD_API_TODAY_FORCE"
# What a trainer and the exporters import: the module, and the distribution that brings it.
NEEDS = (
    ("object_detection", "tf-models-research-object-detection"),
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
ALONE = ("tf-models-research-object-detection", "tf-models-official", "lvis")
# The distributions that bring the package `tensorflow`.
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
_GENERATED = re.compile(r"^# Protobuf Python Version: (\d[\d.]*)", re.MULTILINE)
_LEFT = re.compile(r"(.+?)-(\d[^-]*)(?:-py[\d.]+)?\.(?:dist|egg)-info\Z")
_told = set()


def version(*distributions):
    """Returns the (major, minor) of the first that is installed, None when none is."""
    text = version_text(*distributions)
    numbers = re.match(r"(\d+)(?:\.(\d+))?", text or "")
    return (int(numbers.group(1)), int(numbers.group(2) or 0)) if numbers else None


def version_text(*distributions):
    """Returns the version of the first that is installed, None when none is."""
    return next((installed()[name] for name in distributions if name in installed()), None)


@functools.lru_cache(maxsize=None)
def installed():
    """Returns the version of each installed distribution, by its name with dashes.

    Read off the names of the folders that installers leave beside the packages: importlib.metadata
    would take longer than all hooks together.
    """
    found = {}
    for folder in sys.path:
        try:
            with os.scandir(folder or ".") as entries:
                names = sorted(entry.name for entry in entries)
        except OSError:
            continue
        for one in filter(None, map(_LEFT.match, names)):
            name = re.sub("[-_.]+", "-", one.group(1)).lower()
            found.setdefault(name, one.group(2))
    return found


def tensorflow():
    """Returns TensorFlow's (major, minor), None where none is installed."""
    return version(*TENSORFLOWS)


def lacking():
    """Returns what no hook can bring: (what is wrong, the command that mends it) of each."""
    found = tensorflow()
    return [*_protobuf(), *_keras(found), *_tensorboard(found)] if found else []


def needs():
    """Returns what else the OD API imports at its start and does not find, in the same form."""
    missing = [name for module, name in NEEDS if importlib.util.find_spec(module) is None]
    # Their own requirements, of years ago, would take TensorFlow away or fail to build.
    alone = [name for name in missing if name in ALONE]
    others = [name for name in missing if name not in ALONE]
    commands = [install(*others)] if others else []
    commands += [install("--no-deps", *alone)] if alone else []
    what = "the OD API imports what is not installed ({})".format(", ".join(missing))
    return [(what, " && ".join(commands))] if missing else []


def install(*packages):
    """Returns the command that installs packages into this environment."""
    python = shlex.quote(sys.executable)
    pip = [python, "-m", "pip", "install"]
    if importlib.util.find_spec("pip") is None:
        pip = ["uv", "pip", "install", "--python", python]
    return " ".join([*pip, *map(shlex.quote, packages)])


def _protobuf():
    """Yields that TensorFlow's messages were generated for a newer protobuf than there is."""
    there, wanted = version_text("protobuf"), _generated_for()
    if there is not None and (wanted is None or _numbers(there) >= _numbers(wanted)):
        return
    least = wanted or "3.20.3"
    has = "there is none" if there is None else "it is {}".format(there)
    what = "TensorFlow {} needs protobuf {} or newer, and {}"
    yield (
        what.format(version_text(*TENSORFLOWS), least, has),
        install("protobuf>={}".format(least)),
    )


def _generated_for():
    """Returns the version of protobuf whose compiler wrote TensorFlow's messages.

    It is in them since protobuf 5, which refuses to read those of a later one.
    """
    spec = importlib.util.find_spec("tensorflow")
    for folder in spec.submodule_search_locations or () if spec else ():
        file = pathlib.Path(folder, "core", "framework", "attr_value_pb2.py")
        try:
            found = _GENERATED.search(file.read_text(encoding="utf-8"))
        except OSError:
            continue
        if found:
            return found.group(1)
    return None


def _keras(found):
    keras, legacy = version("keras"), version("tf-keras", "tf-keras-nightly")
    if keras is None or keras < (3, 0) or legacy == found:
        return
    has = "there is none" if legacy is None else "it is {}.{}".format(*legacy)
    what = "the OD API needs Keras 2, so tf-keras {0}.{1} beside TensorFlow {0}.{1}, and {2}"
    yield what.format(*found, has), install("tf-keras=={}.{}.*".format(*found))


def _tensorboard(found):
    if version("tensorboard", "tb-nightly") is None:
        newest = min(found, NEWEST_TENSORBOARD)
        yield (
            "there is no TensorBoard, without which tf.summary.image raises",
            install("tensorboard=={}.{}.*".format(*newest)),
        )


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)[:3]]


def unknown_tensorflow():
    """Returns why the hooks leave this TensorFlow alone, None where they do not."""
    found = tensorflow()
    if found is None or found <= NEWEST or os.environ.get(FORCE, "0") not in ("", "0"):
        return None
    return (
        "this is TensorFlow {}, and the hooks know those up to {}.{}: they do nothing."
        " {}=1 in the environment lets them try".format(
            version_text(*TENSORFLOWS), NEWEST[0], NEWEST[1], FORCE
        )
    )


def tell(message):
    """Writes a line to stderr, each message once."""
    if message not in _told:
        _told.add(message)
        print("od-api-today: " + message, file=sys.stderr)
