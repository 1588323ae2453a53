"""Starts the unmodified TensorFlow Object Detection API on today's TensorFlow.

The wheel's `od_api_today.pth` calls `wait_for_object_detection` at each start of Python. Until
`object_detection` is imported that is all that happens: one comparison at each import. Then the
hooks of `od_api_today.hooks` are put in place, those that this environment needs.
"""

import sys

__version__ = "0.1.0"

PACKAGE = "object_detection"


class Waiting:
    """A finder of modules that finds none, and puts the hooks in place before the OD API."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        """Returns None but for the OD API: then what the hooks' own finder finds."""
        if fullname != PACKAGE:
            return None
        from od_api_today import finder

        return finder.take_over(Waiting).find_spec(fullname, path, target)


def wait_for_object_detection():
    """Sees to it that the hooks are in place before the OD API's first module is executed.

    Called again it changes nothing, nor after `object_detection` was imported.
    """
    from_finder = sys.modules.get("od_api_today.finder")
    if Waiting not in sys.meta_path and from_finder is None:
        sys.meta_path.insert(0, Waiting)
