"""`python -m od_api_today -m MODULE ...` or `... SCRIPT ...`: starts it with the hooks in place.

For where the wheel's `.pth` file is not read: PYTHONPATH, `pip install --target`, `python -S`.
Without anything to start it tells what the OD API stands before in this environment.
"""

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
    if arguments[:1] == ["-m"] and len(arguments) > 1:
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments and not arguments[0].startswith("-"):
        sys.argv = arguments
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = str(pathlib.Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")
    elif arguments:
        print(USAGE, file=sys.stderr)
        return 2
    else:
        return report(active)
    return 0


def report(active):
    """Prints what this environment has and lacks; returns 1 where it lacks something."""
    names = ("tensorflow", "keras", "tf-keras", "protobuf", "numpy", "pillow", "tensorboard")
    versions = {name: environment.version_text(name) for name in names}
    versions["tensorflow"] = environment.version_text(*environment.TENSORFLOWS)
    print(USAGE)
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
    wrong = environment.lacking()
    for line in [unknown] if unknown else ["{}: {}".format(*one) for one in wrong]:
        print(line)
    return 1 if unknown or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
