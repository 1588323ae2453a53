"""Executes modules of the OD API with their hooks around them."""

import contextlib
import sys

from od_api_today import environment, hooks, protos


class Finder:
    """A finder of the modules that have hooks: what the others find, with a `HookedLoader`."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """Returns the module's spec, None for a module without a hook."""
        around = hooks.AROUND.get(fullname)
        if around is None and not protos.is_one(fullname):
            return None
        return hooked_spec(cls, around, fullname, path, target)


class HookedLoader:
    """A module's own loader, but for the moment in which the module is executed."""

    def __init__(self, loader, around):
        self._loader = loader
        self._around = around

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        """Executes the module. From then on it has its own loader alone."""
        module.__spec__.loader = module.__loader__ = self._loader
        if self._around is not None:
            with self._around():
                self._loader.exec_module(module)
        elif not protos.build(module, self._loader):
            self._loader.exec_module(module)


def hooked_spec(asked, around, fullname, path, target):
    """Returns what the finders but `asked` find, to be executed with `around` around it."""
    for finder in sys.meta_path:
        find = None if finder is asked else getattr(finder, "find_spec", None)
        spec = find(fullname, path, target) if find else None
        if spec is not None:
            if spec.loader is not None:
                spec.loader = HookedLoader(spec.loader, around)
            return spec
    return None


@contextlib.contextmanager
def taken_over(waiting):
    """Puts the hooks' finder in the place of `waiting`, before the OD API is executed.

    Under a TensorFlow that the hooks do not know, that is told once, and nothing comes there.
    """
    unknown = environment.unknown_tensorflow()
    if waiting in sys.meta_path:
        place = sys.meta_path.index(waiting)
        sys.meta_path[place : place + 1] = [] if unknown else [Finder]
    if unknown:
        environment.tell(unknown)
    else:
        hooks.at_once()
    yield
