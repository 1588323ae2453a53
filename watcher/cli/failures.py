"""How the command line ends: what went wrong as an error line and a hint line, and an exit code."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import click

from watcher.cli.meant import in_order
from watcher.errors import AlreadyRunning, WatcherError, WorkLeft

EXIT_ERROR = 1
EXIT_ALREADY_RUNNING = 3
EXIT_UNFINISHED = 4
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits(3)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_CODES = {AlreadyRunning: EXIT_ALREADY_RUNNING, WorkLeft: EXIT_UNFINISHED}

DEBUG_VARIABLE = "CHECKPOINT_WATCHER_DEBUG"


def debug_option() -> click.Option:
    """Make the `--debug` that every command takes; the environment hands it on to processes."""

    def remember(_context: object, _parameter: object, given: bool) -> None:
        if given:
            os.environ[DEBUG_VARIABLE] = "1"

    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show a traceback with an error.",
    )


def _debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def prepare_streams() -> None:
    """Make standard output and error ready for any name, and for having been closed.

    A descriptor that is closed would be taken by the next file opened, the database say.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    # File names are bytes: they leave as they came, so that a script can use them.
    codecs.register_error("checkpoint-watcher", _as_it_came)
    with contextlib.suppress(AttributeError):
        # Python itself takes UTF-8 in the C locale; what we draw heeds the encoding.
        encoding = "ascii" if _wants_ascii() else None
        sys.stdout.reconfigure(encoding=encoding, errors="checkpoint-watcher")  # type: ignore[union-attr]
    threading.excepthook = _thread_failed


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        if isinstance(error, UnicodeEncodeError) and _wants_ascii():
            with contextlib.suppress(UnicodeError):
                return os.fsencode(error.object[error.start : error.end]), error.end
        return codecs.lookup_error("replace")(error)


def _wants_ascii() -> bool:
    """True where the C locale was asked for by name, and nothing says UTF-8."""
    # As the process got it: Python sets LC_CTYPE itself where it finds the C locale.
    try:
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    variables = dict(one.split(b"=", 1) for one in given if b"=" in one)
    if any(variables.get(name) for name in (b"PYTHONUTF8", b"PYTHONIOENCODING")):
        return False
    locale = (variables.get(name) for name in (b"LC_ALL", b"LC_CTYPE", b"LANG"))
    return next((value for value in locale if value), b"") in (b"C", b"POSIX")


def end(error: BaseException) -> int:
    """Say on standard error what ended a command, and return its exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, click.Abort) and isinstance(error.__cause__, KeyboardInterrupt)
    ):
        return EXIT_INTERRUPTED
    if isinstance(error, click.Abort):
        return EXIT_ERROR
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        # Click's own text has them by the alphabet, and these are by their likeness.
        near = did_you_mean(error.possibilities)
        error = click.UsageError(error.message + near, error.ctx)
    if isinstance(error, click.UsageError) and error.ctx:
        extra = re.fullmatch(r"Got unexpected extra arguments? \((.*)\)", error.message)
        if extra and "pipeline_config" in error.ctx.params:
            given = error.ctx.params.get("model_dir")
            meant = in_order(error.ctx.command_path, given, extra[1].split())
            error = click.UsageError(f"{error.message}.{meant}", error.ctx)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if _debugging():
        traceback.print_exception(error)
    if isinstance(error, WatcherError):
        _say(error.message, error.hint)
        return _CODES.get(type(error), EXIT_ERROR)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}", "--debug shows what was being done")
        return EXIT_ERROR
    _say_fault(error)
    return EXIT_FAULT


def did_you_mean(near: Sequence[str]) -> str:
    """Return the end of a sentence that offers names, the likeliest first; empty for none."""
    if not near:
        return ""
    names = [repr(name) for name in near]
    return f" Did you mean {', '.join(names[:-1])}{' or ' if names[1:] else ''}{names[-1]}?"


def reader_left() -> bool:
    """Tell whether the reader of standard output, `head` say, has seen enough and is gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(what & select.POLLERR for _, what in poll.poll(0))


def close_output() -> OSError | None:
    """Flush standard output, and return what kept it from being written but for its reader."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try once more at its own end, and complain in its own way.
        left = reader_left()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None if left else OSError(error.errno, error.strerror, "standard output")
    return None


def _say(message: str, hint: str | None) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"error: {message}", err=True)
        if hint:
            click.echo(f"hint: {hint}", err=True)


def _say_fault(error: BaseException) -> None:
    name, text = type(error).__name__, " ".join(str(error).split())
    message = f"a fault of checkpoint-watcher: {name}: {text[:300]}"
    if _debugging():
        _say(message, "please report it with what is above")
    elif kept := _keep(error):
        _say(message, f"please report it with {kept}, where it came from; --debug shows that here")
    else:
        _say(message, "run it again with --debug, and please report it with what that shows")


def _keep(error: BaseException) -> str | None:
    """Write the traceback into a file: what a long run met may not come again."""
    import tempfile  # which takes its time, and is hardly ever needed

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="checkpoint-watcher-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exception(error, file=file)
            return file.name
    except (OSError, UnicodeError):
        return None


def _thread_failed(arguments: threading.ExceptHookArgs) -> None:
    value: BaseException | None = arguments.exc_value
    if value is None or isinstance(value, SystemExit):
        return
    if _debugging():
        trace: TracebackType | None = arguments.exc_traceback
        traceback.print_exception(arguments.exc_type, value, trace)
    _say_fault(value)
