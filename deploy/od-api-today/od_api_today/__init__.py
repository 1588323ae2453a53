"""Starts the unmodified TensorFlow Object Detection API on today's TensorFlow.

The wheel's `od_api_today.pth` calls `wait_for_object_detection` at each start of Python. Until
`object_detection` is imported that is all that happens: one comparison at each import. Then the
hooks of `od_api_today.hooks` are put in place, those that this environment needs.
"""

import sys

__version__ = "0.1.0"

PACKAGE = "object_detection"


class Waiting:
    """A finder of the OD API alone, which puts the hooks in place when that is executed."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """Returns None but for the OD API: then what the other finders find, with a hook."""
        if fullname != PACKAGE:
            return None
        from od_api_today import finder

        return finder.hooked_spec(cls, lambda: finder.taken_over(cls), fullname, path, target)


def wait_for_object_detection():
    """Sees to it that the hooks are in place before the OD API's first module is executed.

    Called again it changes nothing, nor after `object_detection` was imported.
    """
    if PACKAGE not in sys.modules and Waiting not in sys.meta_path:
        sys.meta_path.insert(0, Waiting)
