"""Which versions this environment has, without importing what they are versions of."""

import functools
import os
import re
import sys

# The newest TensorFlow that the hooks were run with.
NEWEST = (2, 21)
# TensorFlow 2.21 brings none.
NEWEST_TENSORBOARD = (2, 20)
FORCE = "OD_API_TODAY_FORCE"
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
    if found is None:
        return []
    keras, legacy = version("keras"), version("tf-keras", "tf-keras-nightly")
    wrong = []
    if keras is not None and keras >= (3, 0) and legacy != found:
        wrong.append(
            (
                "the OD API needs Keras 2, so tf-keras {}.{} beside TensorFlow {}.{}, and".format(
                    *found, *found
                )
                + (" there is none" if legacy is None else " it is {}.{}".format(*legacy)),
                "pip install 'tf-keras=={}.{}.*'".format(*found),
            )
        )
    if version("tensorboard", "tb-nightly") is None and found >= (2, 0):
        newest = min(found, NEWEST_TENSORBOARD)
        wrong.append(
            (
                "there is no TensorBoard, without which tf.summary.image raises",
                "pip install 'tensorboard=={}.{}.*'".format(*newest),
            )
        )
    return wrong


def unknown_tensorflow():
    """Returns why the hooks leave this TensorFlow alone, None where they do not."""
    found = tensorflow()
    if found is None or found <= NEWEST or os.environ.get(FORCE):
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
