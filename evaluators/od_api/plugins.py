"""Metrics of the user's own: functions in files or behind entry points, found, tried and called.

A plugin is a function of `images`, a list of `plugin_images.Image` (every image of the eval set,
each identity once), and `categories`, {id: name}. It returns a number or a dict of numbers by name.
What it returns for one image at the start decides which metrics it has: `NAME`, or `NAME/key` for
each key, where NAME is the function's or the entry point's. Code of others: whatever it raises
costs its own metrics and nothing else.
"""

import collections.abc
import hashlib
import math
import os
import pathlib
import sys
import traceback
import types
from importlib import metadata

from evaluators.protocol import Refusal, one_line
from evaluators.snapshot import Snapshot

ENTRY_POINT_GROUP = "checkpoint_watcher.metrics"
REASON_LENGTH = 300
NAMED = 5


class Plugin:
    """One function that computes metrics.

    Attributes:
        name: what its metrics are called, or begin with.
        given: what the operator wrote to name it.
        identity: text that differs where the code does; it goes into the fingerprint.
        metric_names: names of its metrics, sorted; empty before `try_out`.
    """

    def __init__(self, given, name, identity, function):
        if not callable(function):
            kind = type(function).__name__
            raise _refusal(given, "names a {}, not a function".format(kind), _HINT)
        self.given = given
        self.name = name
        self.identity = identity
        self.metric_names = []
        self._function = function
        self._file = getattr(getattr(function, "__code__", None), "co_filename", None)

    def try_out(self, images, categories):
        """Calls the function for the first time and learns its metrics' names.

        Raises:
            Refusal: it failed, or returned something other than metrics.
        """
        try:
            found = self._call(images, categories)
            reasons = {name: _number(value)[1] for name, value in found.items()}
        except BaseException as error:  # sys.exit() too: it would end the worker in silence
            raise _refusal(
                self.given,
                "failed on the first image: " + _describe(error, self._file),
                "it was given one image, and the ground truth of that as detections",
            ) from error
        wrong = ["{} {}".format(n, r) for n, r in sorted(reasons.items()) if r and r not in _NONE]
        if wrong or not found:
            raise _refusal(self.given, wrong[0] if wrong else "returned an empty dict", _RETURNS)
        unprintable = [name for name in found if not name.isprintable()]
        if unprintable:
            raise _refusal(self.given, "gave the name {!r}".format(unprintable[0]), _RETURNS)
        self.metric_names = sorted(found)

    def compute(self, images, categories):
        """Returns ({metric: float, None where there is no value}, [a sentence a reason])."""
        values = dict.fromkeys(self.metric_names)
        # The last line in worker.log of a plugin that hangs.
        print("running the metric plugin", self.given, file=sys.stderr, flush=True)
        try:
            found = self._call(images, categories)
            numbers = {name: _number(value) for name, value in found.items()}
        except BaseException as error:
            traceback.print_exc()
            return values, [_sentence(self.metric_names, _describe(error, self._file))]
        missing = (None, "was not returned")
        reasons = {}
        for name in self.metric_names:
            values[name], reason = numbers.get(name, missing)
            if reason:
                reasons.setdefault(reason, []).append(name)
        sentences = [_sentence(names, reason) for reason, names in reasons.items()]
        extra = sorted(set(numbers) - set(values))
        if extra:
            reason = "not returned for the first image, so left out"
            sentences.append(one_line("metric {}: {}".format(_few(extra), reason)))
        return values, sentences

    def _call(self, images, categories):
        """Returns {metric: what the function gave for it}."""
        result = self._function(images, categories)
        if isinstance(result, collections.abc.Mapping):
            return {"{}/{}".format(self.name, key): value for key, value in result.items()}
        return {self.name: result}


_HINT = "give FILE.py:FUNCTION, or the name of an entry point of the group " + ENTRY_POINT_GROUP
_RETURNS = "a metric plugin returns a number, or a dict of numbers by name"
# A trial may well have no value; a checkpoint that has none is told of.
_NONE = ("is nan", "is inf", "is -inf")


def load(wanted, snapshot=None):
    """Finds and imports plugins.

    Args:
        wanted: list of `FILE.py:FUNCTION`, relative to the working folder, or names of entry
            points.
        snapshot: the Snapshot of the run's files, None for none. What was copied there runs as if
            it lay where the user has it.

    Raises:
        Refusal: one is not there, cannot be imported, is no function, or has another's name.
    """
    snapshot = snapshot or Snapshot()
    modules = {}
    plugins = []
    for listed in wanted:
        source, _, name = listed.rpartition(":")
        given = "{}:{}".format(snapshot.original(source), name) if source else listed
        plugins.append(
            _of_file(given, source, modules) if _is_file(given) else _of_entry_point(given)
        )
        if plugins[-1].name in [plugin.name for plugin in plugins[:-1]]:
            raise _refusal(
                given,
                "has the name of another: {}".format(plugins[-1].name),
                "metrics are named after their function or entry point: rename one",
            )
    return plugins


def _is_file(given):
    return ":" in given or given.endswith(".py") or os.sep in given


def _of_file(given, source, modules):
    path, _, name = given.rpartition(":")
    if not path:
        raise _refusal(given, "names no function", "write FILE.py:FUNCTION")
    path = str(pathlib.Path(path).absolute())
    if path not in modules:
        name_of_module = "checkpoint_watcher_plugin_%d" % len(modules)
        modules[path] = _import_file(given, source, path, name_of_module)
    module, sha256 = modules[path]
    if not hasattr(module, name):
        own = [n for n, f in sorted(vars(module).items()) if isinstance(f, types.FunctionType)]
        raise _refusal(
            given,
            "names a function that is not there: {}".format(name or "(none)"),
            "{} has {}".format(path, ", ".join(own) or "none"),
        )
    return Plugin(given, name, sha256, getattr(module, name))


def _import_file(given, source, path, name):
    """Runs a file as the module at `path`; returns it and the sha256 of exactly what was run."""
    try:
        code = pathlib.Path(source).read_bytes()
    except OSError as error:
        raise Refusal(
            "missing_file",
            "metric_plugin ({}) cannot be read: {}: {}".format(given, path, error.strerror),
            "a relative path starts at the folder the watcher was started in",
        ) from error
    module = types.ModuleType(name)
    module.__file__ = path
    # Data classes, pickle and others look their module up by name.
    sys.modules[name] = module
    try:
        exec(compile(code, path, "exec"), module.__dict__)
    except BaseException as error:
        raise _cannot_import(given, error, path) from error
    return module, hashlib.sha256(code).hexdigest()


def _of_entry_point(given):
    found = _entry_points()
    matching = [key for key in found if key[1] == given]
    if len(matching) != 1:
        names = ", ".join("{} ({})".format(name, owner) for owner, name in sorted(found)) or "none"
        raise _refusal(
            given,
            "is an entry point of several distributions"
            if matching
            else "is no entry point in the training environment",
            "the group {} has: {}; for a file write FILE.py:FUNCTION".format(
                ENTRY_POINT_GROUP, names
            ),
        )
    point, version = found[matching[0]]
    try:
        function = point.load()
    except BaseException as error:
        raise _cannot_import(given, error) from error
    identity = "{} {} {}".format(matching[0][0], version, point.value)
    return Plugin(given, given, identity, function)


def _entry_points():
    """Returns {(distribution, entry point): (the point, the distribution's version)}.

    Through the distributions, since `entry_points()` does not say whose they are before 3.10.
    """
    found = {}
    for distribution in metadata.distributions():
        for point in distribution.entry_points:
            if point.group == ENTRY_POINT_GROUP:
                key = (str(distribution.metadata["Name"]), point.name)
                # Of two installed versions the first on the path is the one imported.
                found.setdefault(key, (point, distribution.version))
    return found


def _number(value):
    """Returns (float, None), or (None, why it is no value)."""
    if isinstance(value, (str, bytes, bytearray)):
        return None, "is a {}, not a number".format(type(value).__name__)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None, "is a {}, not a number".format(type(value).__name__)
    return (number, None) if math.isfinite(number) else (None, "is {}".format(number))


def _sentence(names, reason):
    return one_line("metric {} has no value: {}".format(_few(names), reason))


def _few(names):
    more = ", and {} more".format(len(names) - NAMED) if len(names) > NAMED else ""
    return _cut(", ".join(names[:NAMED])) + more


def _cut(text):
    text = one_line(text)
    return text if len(text) <= REASON_LENGTH else text[:REASON_LENGTH] + "..."


def _describe(error, file):
    """Returns an error in one line, with the last line of that file on the way to it."""
    if isinstance(error, SyntaxError):  # which says where it is
        return "SyntaxError: " + _cut(error)
    text = _cut(traceback.format_exception_only(type(error), error)[0])
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return text + (" ({}, line {})".format(pathlib.Path(file).name, lines[-1]) if lines else "")


def _cannot_import(given, error, file=None):
    return _refusal(
        given,
        "cannot be imported: " + _describe(error, file),
        "it runs in the training environment and may use what is installed there",
    )


def _refusal(given, what, hint):
    return Refusal("bad_metric_plugin", "metric_plugin ({}) {}".format(given, what), hint)
