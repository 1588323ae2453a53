"""The training environment: what `evaluators/od_api/doctor.py` finds in it, and how it is asked."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import msgspec

from watcher.config.carrier import LocalSettings
from watcher.config.evaluator import MODEL_GARDEN, ModelGardenSettings, is_file
from watcher.config.run import RunSettings
from watcher.config.settings import EvaluatorSettings
from watcher.doctor.finding import Finding, Severity
from watcher.evaluation.model_garden import ModelGarden
from watcher.evaluation.snapshot import Snapshot
from watcher.evaluation.worker import device_environment
from watcher.files.scratch import Scratch
from watcher.files.scratch import environment as environment_of
from watcher.launch.kinds import evaluated_by

_EVALUATORS = Path(__file__).resolve().parents[2] / "evaluators"
PROGRAM = _EVALUATORS / "od_api" / "doctor.py"
GARDEN_PROGRAM = _EVALUATORS / "model_garden" / "doctor.py"
_LIMIT_BYTES = 1 << 20
_NOISE_BYTES = 8 << 20  # TensorFlow says a lot on standard error
_Ended = Literal["closed", "late", "endless"]
_ENDING_SECONDS = 2.0
_LATE = "did not finish looking"
# The table in docs/reference/environments.md: Python, TensorFlow, tf-models-official.
RUN = (
    ("3.9", "2.8.4", "2.8.0"),
    ("3.10", "2.13.1", "2.13.2"),
    ("3.11", "2.13.1", "2.15.0"),
    ("3.11", "2.14.1", "2.14.2"),
    ("3.11", "2.15.1", "2.15.0"),
    ("3.11", "2.16.2", "2.16.0"),
    ("3.11", "2.17.1", "2.17.0"),
    ("3.11", "2.18.1", "2.18.0"),
    ("3.11", "2.19.1", "2.19.1"),
    ("3.12", "2.19.1", "2.19.1"),
    ("3.11", "2.20.0", "2.20.0"),
    ("3.12", "2.20.0", "2.20.0"),
    ("3.11", "2.21.0", "2.20.0"),
    ("3.12", "2.21.0", "2.20.0"),
    ("3.13", "2.21.0", "2.20.0"),
)

# The same of Model Garden's evaluations.
GARDEN_RUN = (
    ("3.10", "2.13.1", "2.13.2"),
    ("3.11", "2.13.1", "2.15.0"),
    ("3.11", "2.20.0", "2.20.0"),
    ("3.11", "2.21.0", "2.20.0"),
)


class Answer(msgspec.Struct, frozen=True):
    """What the training interpreter said.

    Attributes:
        facts: Values by name; what came before a crash or the time limit is in it.
        findings: Its own.
    """

    facts: dict[str, Any] = msgspec.field(default_factory=dict)
    findings: list[Finding] = msgspec.field(default_factory=list)


def ask(
    run: RunSettings,
    evaluator: EvaluatorSettings,
    carrier: LocalSettings,
    device: str,
    seconds: float,
    tell: Callable[[str], None] = lambda text: None,
    check: Path | None = None,
) -> Answer:
    """Run the program in the training interpreter, and end it after so many seconds.

    Args:
        run: Which one.
        evaluator: What is measured.
        carrier: Where a worker runs.
        device: Where an evaluation would run; the process sees this one alone.
        seconds: Time limit.
        tell: Called with how far it is, about once a second while it reads the records.
        check: Prefix of a checkpoint that the configuration has to fit.
    """
    wanted = carrier.python or sys.executable
    interpreter = shutil.which(wanted)
    if not carrier.working_path.is_dir():
        return Answer()  # the check of the folder tells it
    if interpreter is None:
        return _none(
            f"python ({wanted}) does not exist or cannot be executed",
            "give --python the interpreter of the training environment, /path/to/env/bin/python",
        )
    program, fields = _questions(run, evaluator)
    request = {
        **fields,
        "device": device,
        "check": str(check.absolute()) if check else None,
        "seconds": seconds,
        "nice": 10,  # a trainer may be running here
    }
    try:
        with Scratch() as scratch:
            variables = {**device_environment(device), **environment_of(scratch.take("doctor"))}
            command = [str(Path(interpreter).absolute()), str(program)]
            folder = carrier.working_path
            output, noise, ending = _talk(command, folder, request, variables, seconds, tell)
    except OSError as error:
        return _none(
            f"cannot start the interpreter {interpreter}: {error.strerror}", "check --python"
        )
    if isinstance(evaluator, ModelGardenSettings):
        modules = "tensorflow, official.vision.registry_imports"
        return read(output, noise, ending, interpreter, modules)
    return read(output, noise, ending, interpreter)


def lacking(
    run: RunSettings, evaluator: EvaluatorSettings, carrier: LocalSettings
) -> list[Finding]:
    """Say which files are not there that were given, and that an evaluation is set up from."""
    folder = carrier.working_path
    if isinstance(evaluator, ModelGardenSettings) and not evaluator.config_file:
        return []  # the trainer writes it
    return [
        Finding(
            "pipeline",
            "error",
            f"{one.setting} ({one.path}) does not exist or is not a file",
            "give the file that the trainer got",
        )
        for one in evaluator.inputs(run.model_path)
        if one.required and not is_file(str(folder / one.path))
    ]


def _questions(run: RunSettings, evaluator: EvaluatorSettings) -> tuple[Path, dict[str, Any]]:
    """Return the program that looks, and what it is told of the evaluation."""
    if isinstance(evaluator, ModelGardenSettings):
        kind = ModelGarden(evaluator, run.model_path, "", Snapshot())
        return GARDEN_PROGRAM, {name: _absolute(value) for name, value in kind.options.items()}
    names = ("eval_input", "eval_batch_size", "sample_1_of_n", "coco_backend")
    fields = {name: getattr(evaluator, name) for name in names}
    return PROGRAM, {
        "pipeline_config": str(Path(evaluator.pipeline_config).absolute()),
        **fields,
    }


def _absolute(value: Any) -> Any:
    """Return an option whose files do not depend on where it is read."""
    if isinstance(value, list):
        return [_absolute(one) for one in value]
    return str(Path(value).absolute()) if isinstance(value, str) and is_file(value) else value


def _none(why: str, remedy: str) -> Answer:
    return Answer(findings=[Finding("environment", "error", why, remedy)])


def read(
    output: bytes,
    noise: bytes,
    ending: str,
    interpreter: str,
    modules: str = "tensorflow, object_detection.model_lib_v2",
) -> Answer:
    """Turn what the program wrote into an answer. Pure.

    Args:
        output: Its reply pipe.
        noise: The end of its standard error.
        ending: How it ended, in words.
        interpreter: For the messages.
        modules: What an evaluation imports.
    """
    answer, done = Answer(), False
    for line in output.splitlines():
        try:
            message = json.loads(line)
            if message["type"] == "fact":
                answer.facts[str(message["name"])] = message["value"]
            elif message["type"] == "finding":
                severity = message["severity"]
                known = cast(Severity, severity if severity in get_args(Severity) else "warning")
                check, said = str(message["check"]), str(message["message"])
                answer.findings.append(Finding(check, known, said, message["remedy"]))
            else:
                done = done or message["type"] == "done"
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    if not done:
        last = noise.decode(errors="replace").strip().splitlines()[-1:]
        late = ending.startswith(_LATE)  # what it printed last is not the cause
        said = f" ({last[0].strip()[:200]})" if last and not late else ""
        remedy = f"{interpreter} -c 'import {modules}'"
        if late:
            remedy = f"on a busy machine give a larger --time-limit, such as 300; or see {remedy}"
        else:
            remedy = f"run it by hand: {remedy}"
        answer.findings.extend(
            _none(f"the interpreter {interpreter} {ending}{said}", remedy).findings
        )
    return answer


def environment(facts: Mapping[str, Any], evaluator: str | None = None) -> list[Finding]:
    """Compare the versions with those that this evaluator was run with. Pure."""
    versions = facts.get("versions")
    if not isinstance(versions, dict):
        return []
    python = ".".join(str(versions.get("python")).split(".")[:2])
    tensorflow, models = versions.get("tensorflow"), versions.get("tf_models_official")
    text = (
        f"Python {versions.get('python')}, TensorFlow {tensorflow}, tf-models-official {models},"
        f" NumPy {versions.get('numpy')}"
    )
    were_run = GARDEN_RUN if evaluator == MODEL_GARDEN else RUN
    if (python, tensorflow, models) in were_run:
        return [Finding("environment", "ok", f"{text}: a combination that was run")]
    if tensorflow in {known for _, known, _ in were_run}:
        message = f"{text}: this TensorFlow was run, though not in this combination"
        return [Finding("environment", "note", message)]
    return [
        Finding(
            "environment",
            "warning",
            f"{text}: this evaluator was not run with this TensorFlow",
            f"compare one score with {evaluated_by(evaluator).suite}'s own evaluation;"
            " 'Environments that were run' in the documentation has those that were",
        )
    ]


def coco_backend(facts: Mapping[str, Any]) -> list[Finding]:
    """Say what computes COCO metrics. Pure."""
    backend, sets = facts.get("coco_backend"), facts.get("metrics_sets")
    if backend is None or not any(str(name).startswith("coco_") for name in sets or ()):
        return []
    return [Finding("coco backend", "ok", f"{backend} computes the COCO metrics")]


def _talk(
    command: Sequence[str],
    folder: Path,
    request: Mapping[str, Any],
    variables: Mapping[str, str],
    seconds: float,
    tell: Callable[[str], None],
) -> tuple[bytes, bytes, str]:
    """Return the output, the end of the error output, and how it ended."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={"TF_CPP_MIN_LOG_LEVEL": "1", **os.environ, **variables},
        start_new_session=True,
    )
    assert process.stdin and process.stdout and process.stderr
    atexit.register(_kill, process)  # Ctrl-C ends doctor and not what it waits for
    try:
        # Smaller than a pipe, so this does not wait for a reader.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
        texts, ended = _listen(process.stdout.fileno(), process.stderr.fileno(), seconds, tell)
        if ended == "closed":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_SECONDS)
        code = process.poll() if ended == "closed" else None
    finally:
        _kill(process)
        atexit.unregister(_kill)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING_SECONDS)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                stream.close()
    return texts[0], texts[1], _ending(code, ended, seconds)


def _kill(process: subprocess.Popen[bytes]) -> None:
    # Once it is waited for, its group's number may be another's.
    if process.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


def _ending(code: int | None, ended: _Ended, seconds: float) -> str:
    if code is None:
        return {
            "closed": "closed its output and went on",
            "late": f"{_LATE} within {seconds:g} s",
            "endless": "printed more than any answer has, so that it was ended:"
            " something in it prints without end",
        }[ended]
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code} before it had looked at everything"


def _listen(
    out: int, error: int, seconds: float, tell: Callable[[str], None]
) -> tuple[tuple[bytes, bytes], _Ended]:
    """Read both pipes until they are closed, time is up, or more was printed than any answer is."""
    deadline = time.monotonic() + seconds
    texts, noise = {out: b"", error: b""}, 0
    is_open = {out, error}
    while is_open:
        ready, _, _ = select.select(list(is_open), [], [], max(0.0, deadline - time.monotonic()))
        if len(texts[out]) > _LIMIT_BYTES or noise > _NOISE_BYTES:
            return (texts[out], texts[error]), "endless"
        if not ready or time.monotonic() > deadline:
            return (texts[out], texts[error]), "late"
        for descriptor in ready:
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                is_open.discard(descriptor)
            texts[descriptor] += chunk
            noise += len(chunk)
            if descriptor == out and (progress := _progress(texts[out])):
                tell(progress)
        texts[error] = texts[error][-4096:]
    return (texts[out], texts[error]), "closed"


def _progress(output: bytes) -> str | None:
    """Return what the last line says where it tells of progress. Pure."""
    try:
        message = json.loads(output[: output.rfind(b"\n") + 1].splitlines()[-1])
        return str(message["text"]) if message["type"] == "progress" else None
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        return None
