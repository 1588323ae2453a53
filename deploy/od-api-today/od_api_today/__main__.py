"""`python -m od_api_today -m MODULE ...` or `... SCRIPT ...`: starts it with the hooks in place.

For where the wheel's `.pth` file is not read: PYTHONPATH, `pip install --target`, `python -S`.
Without anything to start it tells what the OD API stands before in this environment.
"""

import importlib.util
import pathlib
import runpy
import sys

import od_api_today
from od_api_today import environment

USAGE = "usage: python -m od_api_today [-m MODULE | SCRIPT] [ARGUMENT ...]"


def main(arguments):
    """Runs what the arguments name, and returns the exit status where it returns."""
    active = od_api_today.Waiting in sys.meta_path
    od_api_today.wait_for_object_detection()
    if not arguments:
        return report(active)
    if arguments[0] in ("-h", "--help"):
        print(USAGE + "\nWithout arguments: what this environment has, and what it lacks.")
        return 0
    if arguments[0] == "-m" and len(arguments) > 1:
        return run_module(arguments[1:])
    if arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    return run_script(arguments)


def run_module(arguments):
    """Runs a module as `python -m` does."""
    try:
        there = importlib.util.find_spec(arguments[0]) is not None
    except ModuleNotFoundError as error:
        there = error.name is None or not (arguments[0] + ".").startswith(error.name + ".")
        if there:  # its package is there, and lacks something itself
            raise
    if not there:
        print("od-api-today: there is no module {}".format(arguments[0]), file=sys.stderr)
        return 1
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    return 0


def run_script(arguments):
    """Runs a file as `python FILE` does."""
    path = pathlib.Path(arguments[0])
    if not path.exists():
        print("od-api-today: there is no file {}".format(path), file=sys.stderr)
        return 1
    sys.argv = arguments
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(path.resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


def report(active):
    """Prints what this environment has and lacks; returns 1 where it lacks something."""
    names = ("tensorflow", "keras", "tf-keras", "protobuf", "numpy", "pillow", "tensorboard")
    versions = {name: environment.version_text(name) for name in names}
    versions["tensorflow"] = environment.version_text(*environment.TENSORFLOWS)
    print(
        ", ".join(
            "{} {}".format(name, found or "not installed") for name, found in versions.items()
        )
    )
    if active:
        print("the hooks are put in place at each start of this Python")
    else:
        print("the hooks are put in place only for what is started with: python -m od_api_today")
    unknown = environment.unknown_tensorflow()
    wrong = environment.lacking() + environment.needs()
    for line in [unknown] if unknown else ["{}: {}".format(*one) for one in wrong]:
        print(line)
    return 1 if unknown or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
