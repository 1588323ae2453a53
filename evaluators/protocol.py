"""The evaluator protocol, version 2, on the worker's side: its messages, and how they travel.

A class a message: its `TYPE` is the message's `type`, its attributes are the other fields. What
each means, and who sends it when, is in docs/reference/protocol.md. The watcher has the same ones
as structs of its own (`watcher/evaluation/messages.py`), from which the schema is made.

`Refusal` and `Failure` are the errors that travel as messages.
"""

import dataclasses
import json
import math
import os
import re
import sys
import threading
import traceback
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

PROTOCOL = 2
# A message is read in a table or a line of a log; what is longer goes to stderr as well.
LONGEST_MESSAGE = 400


class Message:
    """What one side tells the other, a line of JSON."""

    TYPE = ""


@dataclass
class Start(Message):
    """The first request: what to measure with, and on what."""

    TYPE = "start"
    protocol: int
    kind: str
    options: Dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    device_shared: bool = False
    threads: Optional[int] = None
    nice: Optional[int] = None
    check: Optional[str] = None
    snapshot: Optional[Dict[str, Any]] = None
    artefacts_dir: Optional[str] = None
    heartbeat_seconds: Optional[float] = None
    replicates: int = 0

    def set_up(self):
        """Returns the common fields and the kind's options in one dict."""
        return {**self.options, **{k: v for k, v in vars(self).items() if k != "options"}}


@dataclass
class Evaluate(Message):
    """Asks for the evaluation of a checkpoint."""

    TYPE = "evaluate"
    id: str
    prefix: str
    rest: float = 0.0
    parts: int = 1


@dataclass
class Part(Message):
    """Asks to run a part of the eval set, and to write what was found to a file."""

    TYPE = "part"
    id: str
    prefix: str
    index: int
    of: int
    path: str
    rest: float = 0.0


@dataclass
class PartFound(Message):
    """Tells where another worker's file of a part is, or that none will come."""

    TYPE = "part_found"
    id: str
    index: int
    path: Optional[str] = None


@dataclass
class Average(Message):
    """Asks for the average of checkpoints, the newest of which is last."""

    TYPE = "average"
    id: str
    prefixes: List[str]
    prefix: str
    recompute_batch_norm: Optional[int] = None


@dataclass
class Cancel(Message):
    """Gives an evaluation up; it is answered all the same."""

    TYPE = "cancel"
    id: str


@dataclass
class Stop(Message):
    """Ends the worker at once."""

    TYPE = "stop"


@dataclass
class Hello(Message):
    """The libraries are there."""

    TYPE = "hello"
    protocol: int
    pid: int
    versions: Dict[str, str] = field(default_factory=dict)


@dataclass
class Phase(Message):
    """A part of the start begins."""

    TYPE = "phase"
    name: str


@dataclass
class DeclaredMetric:
    """A metric that each result will have."""

    name: str
    direction: Optional[str] = None
    unit: Optional[str] = None
    short: List[str] = field(default_factory=list)
    reproducible: bool = True


@dataclass
class Category:
    """A category of the data; results call it by its id."""

    id: int
    name: str


@dataclass
class Capabilities:
    """What a worker can do beyond evaluating one checkpoint after another."""

    overlap: bool = False
    cancel: bool = False
    jobs: List[str] = field(default_factory=lambda: ["evaluate"])


@dataclass
class Ready(Message):
    """Checkpoints can come."""

    TYPE = "ready"
    fingerprint: str
    images: int
    metrics: List[DeclaredMetric]
    device: str = "cpu"
    machine: Optional[Dict[str, str]] = None
    categories: Optional[List[Category]] = None
    capabilities: Capabilities = field(default_factory=Capabilities)
    fingerprint_parts: Dict[str, Any] = field(default_factory=dict)
    taken: Dict[str, str] = field(default_factory=dict)
    warnings: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    details: Dict[str, Any] = field(default_factory=dict)


@dataclass
class Error(Message):
    """This set-up can never be evaluated."""

    TYPE = "error"
    code: str
    message: str
    hint: Optional[str] = None
    detail: Optional[str] = None


@dataclass
class Heartbeat(Message):
    """The worker lives."""

    TYPE = "heartbeat"


@dataclass
class Progress(Message):
    """So many images went through the model."""

    TYPE = "progress"
    id: str
    done: int
    total: int


@dataclass
class Free(Message):
    """The model may take the next checkpoint."""

    TYPE = "free"
    id: str


@dataclass
class CategoryMetric:
    """A figure of one category."""

    name: str
    category: int
    value: Optional[float]


@dataclass
class Artefact:
    """A file that an evaluation left, by path or URI."""

    kind: str
    name: str
    sha256: str
    path: Optional[str] = None
    uri: Optional[str] = None
    image: Optional[str] = None


@dataclass
class Result(Message):
    """The whole eval set was measured."""

    TYPE = "result"
    id: str
    images: int
    metrics: Dict[str, Optional[float]]
    global_step: Optional[int] = None
    category_metrics: List[CategoryMetric] = field(default_factory=list)
    timings: Dict[str, Optional[float]] = field(default_factory=dict)
    cost: Optional[Dict[str, Any]] = None
    peak_memory_bytes: Optional[int] = None
    peak_gpu_memory_bytes: Optional[int] = None
    model_variables: Optional[int] = None
    warnings: List[str] = field(default_factory=list)
    artefacts: List[Artefact] = field(default_factory=list)
    replicates_follow: bool = False


@dataclass
class Replicated:
    """A metric in every replicate; of a category where `category` is its id."""

    name: str
    category: Optional[int]
    objects: int
    low: float
    high: float
    values: Optional[str] = None


@dataclass
class Replicates(Message):
    """What a result would be on other eval sets, drawn from this one."""

    TYPE = "replicates"
    id: str
    scheme: str
    images: int
    count: int
    level: float
    metrics: List[Replicated] = field(default_factory=list)
    influences: Optional[str] = None
    image_names: Optional[List[str]] = None


@dataclass
class BatchNorm:
    """Of what the statistics of batch normalisation were computed anew, and of how many layers."""

    images: int
    batch_size: int
    layers: int
    frozen: int = 0


@dataclass
class PartWritten(Message):
    """The part that was asked for is written."""

    TYPE = "part_written"
    id: str
    images: int
    warnings: List[str] = field(default_factory=list)


@dataclass
class Averaged(Message):
    """The average is written."""

    TYPE = "averaged"
    id: str
    variables: int
    batch_norm: Optional[BatchNorm] = None


@dataclass
class Failed(Message):
    """This checkpoint gets no score."""

    TYPE = "failed"
    id: str
    code: str
    message: str
    permanent: bool
    detail: Optional[str] = None


_REQUESTS = {kind.TYPE: kind for kind in (Start, Evaluate, Part, PartFound, Average, Cancel, Stop)}


def read_request(line):
    """Returns the request of a line, bytes of JSON; fields that are not known are left out.

    A `start` of another protocol comes back with that number and no more.

    Raises:
        ValueError: it is none.
    """
    said = json.loads(line.decode("utf-8"))
    kind = _REQUESTS.get(said.get("type")) if isinstance(said, dict) else None
    if kind is None:
        raise ValueError("expected one of {}, got {!r:.80}".format(", ".join(_REQUESTS), said))
    if kind is Start and said.get("protocol") != PROTOCOL:
        return Start(said.get("protocol"), "")
    known = {one.name for one in dataclasses.fields(kind)}
    try:
        return kind(**{name: value for name, value in said.items() if name in known})
    except TypeError as error:
        raise ValueError("a wrong {}: {}".format(kind.TYPE, error)) from error


class Refusal(Exception):
    """Raised at start-up when this set-up cannot be evaluated; ends the worker."""

    def __init__(self, code, message, hint=""):
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Failure(Exception):
    """Raised when one checkpoint gets no score; the worker lives on.

    `permanent` says that another attempt at the same checkpoint would end the same way.
    """

    def __init__(self, code, message, permanent):
        super().__init__(message)
        self.code = code
        self.message = message
        self.permanent = permanent


# What TensorFlow puts around its messages: its own nodes, devices and operations.
_NODES = re.compile(r"\[\[\s*\{\{[^\]]*\]\]|\{\{[^{}]*\}\}|\[Op:\w+\]( name:)?")


def one_line(text):
    """Returns the text in one line, without the names of TensorFlow's own nodes."""
    return " ".join(_NODES.sub(" ", str(text)).split())


def brief(text):
    """Returns the text in one line of bounded length; of a longer one stderr gets all."""
    line = one_line(text)
    if len(line) <= LONGEST_MESSAGE:
        return line
    print(text, file=sys.stderr, flush=True)
    return line[: LONGEST_MESSAGE - 4].rsplit(" ", 1)[0] + " ..."


def finite(value):
    """Returns the value as a float, or None where it is not finite and JSON has no word for it."""
    number = float(value)
    return number if math.isfinite(number) else None


def last_traceback():
    """Returns the traceback of the exception being handled."""
    return traceback.format_exc()


class Replies:
    """Writes reply lines to the pipe the daemon reads; safe from several threads."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        # Makes a text about copies of the run's files one about the user's own.
        self.named = str
        self._lock = threading.Lock()

    def send(self, message):
        """Sends one message."""
        self.write(message.TYPE, **vars(message))

    def write(self, kind, **fields):
        """Writes one line of JSON, of the type `kind`."""
        fields = dict(type=kind, **fields)
        line = json.dumps(fields, allow_nan=False, ensure_ascii=False, default=vars) + "\n"
        # An error's text may hold half a surrogate pair, which is no text to the reader.
        data = line.encode("utf-8", "replace")
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def refuse(self, refusal, detail=None):
        """Sends a start-up error."""
        message, hint = (one_line(self.named(text)) for text in (refusal.message, refusal.hint))
        self.send(Error(refusal.code, message, hint, detail))

    def fail(self, request_id, failure, detail=None):
        """Sends the news that one checkpoint got no score."""
        message = brief(self.named(failure.message))
        self.send(Failed(request_id, failure.code, message, failure.permanent, detail))
