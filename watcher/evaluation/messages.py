"""Messages: the evaluator protocol, version 2, as the watcher sends and reads it.

One struct a message; its tag is the message's `type`. They are the schema of the protocol:
`docs/reference/evaluator-protocol.schema.json` is made from them, and `evaluators/protocol.py` has
the same messages as plain classes for the other interpreter. `docs/reference/protocol.md` says who
sends which when. Fields that are not known here are ignored, so a worker may say more.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

PROTOCOL = 2

Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
Name = Annotated[str, Meta(min_length=1, max_length=1000)]
# The largest label maps have about 1,200 categories, with a dozen metrics each.
_MOST_ROWS = 100_000


class SnapshotFiles(Struct, frozen=True):
    """Where the run keeps the files that it began with.

    Attributes:
        folder: Where a worker copies what only it can find.
        originals: Of each copy that is there, what the user calls the file.
    """

    folder: str
    originals: dict[str, str] = {}


class Start(Struct, frozen=True, tag="start", kw_only=True):
    """The first request: what to measure with, and on what.

    Attributes:
        kind: Which kind of evaluation; a worker refuses one that it does not know.
        options: What the kind asks for beyond the common fields.
        device: `cpu`, `gpu:N` or a GPU's UUID; CUDA_VISIBLE_DEVICES shows it alone already.
        device_shared: Others use it at the same time, so a measured time says less.
        threads: At most so many threads, None for as many as there are cores.
        nice: Added to the worker's niceness.
        check: Prefix of a checkpoint that the set-up has to fit, else it is refused.
        snapshot: Of the run's files.
        artefacts_dir: Where to put files that outlive the worker; the watcher removes it.
        heartbeat_seconds: How often to say that the worker lives, None for not at all.
        replicates: How many of each metric to give, where the worker can.
    """

    protocol: int
    kind: str
    options: dict[str, Any] = {}
    device: str = "cpu"
    device_shared: bool = False
    threads: int | None = None
    nice: int | None = None
    check: str | None = None
    snapshot: SnapshotFiles | None = None
    artefacts_dir: str | None = None
    heartbeat_seconds: float | None = None
    replicates: int = 0


class Evaluate(Struct, frozen=True, tag="evaluate"):
    """Evaluate a checkpoint.

    Attributes:
        id: The lease's token; every message about this evaluation bears it.
        prefix: The checkpoint's path without the suffixes of its files.
        rest: Seconds to rest for each second of passes, for a trainer beside it.
        parts: Into how many parts the eval set is divided; all but the first are run by others.
    """

    id: Name
    prefix: str
    rest: float = 0.0
    parts: Annotated[int, Meta(ge=1)] = 1


class Part(Struct, frozen=True, tag="part"):
    """Run a part of the eval set, and write what was found; only for a worker whose `jobs` have it.

    Attributes:
        id: Every message about it bears it.
        prefix: The checkpoint's path, as of an evaluation.
        index: Which part, from 1: the first one, 0, is run by whoever evaluates the whole.
        of: How many parts there are: contiguous ones, as equal as that goes.
        path: Of the file to write, which appears whole or not at all.
        rest: As of an evaluation.
    """

    id: Name
    prefix: str
    index: Annotated[int, Meta(ge=1)]
    of: Annotated[int, Meta(ge=2)]
    path: str
    rest: float = 0.0


class PartFound(Struct, frozen=True, tag="part_found"):
    """A part of a running evaluation is there, or will not come.

    Attributes:
        id: That of the evaluation.
        path: Of the file; None where the worker is to run that part itself.
    """

    id: Name
    index: int
    path: str | None = None


class Average(Struct, frozen=True, tag="average"):
    """Write the average of checkpoints; only for a worker whose `jobs` have it.

    Attributes:
        id: Every message about it bears it.
        prefixes: Of the checkpoints, two or more, the newest last.
        prefix: Where to write; its folder is there.
        recompute_batch_norm: Of how many training images to compute the statistics of batch
            normalisation anew; null for the mean of those of the checkpoints.
    """

    id: Name
    prefixes: list[str]
    prefix: str
    recompute_batch_norm: Annotated[int, Meta(ge=1)] | None = None


class Cancel(Struct, frozen=True, tag="cancel"):
    """Give an evaluation up; only for a worker that can. It is answered all the same."""

    id: Name


class Stop(Struct, frozen=True, tag="stop"):
    """End now, with exit code 0."""


class Hello(Struct, frozen=True, tag="hello"):
    """The libraries are there.

    Attributes:
        protocol: The version that the worker speaks.
        versions: Of its libraries, by name; recorded with each evaluation.
    """

    protocol: int
    pid: int
    versions: dict[str, str] = {}


class Phase(Struct, frozen=True, tag="phase"):
    """A part of the start begins, `building the model` say."""

    name: str


class DeclaredMetric(Struct, frozen=True):
    """A metric that each result will have.

    Attributes:
        direction: Which value is better, None where it is neither by nature.
        unit: `ms` say, None for a plain number.
        short: What a user may write in its place.
        reproducible: False where two evaluations of one checkpoint may differ in it.
    """

    name: Name
    direction: Literal["max", "min"] | None = None
    unit: str | None = None
    short: list[str] = []
    reproducible: bool = True


class Category(Struct, frozen=True):
    """A category of the data; the id is what results call it by."""

    id: int
    name: str


class Capabilities(Struct, frozen=True):
    """What the worker can do beyond evaluating one checkpoint after another.

    Attributes:
        overlap: It may get the next checkpoint once it said `free`.
        cancel: It answers a cancelled evaluation soon.
        jobs: What it may be asked for.
    """

    overlap: bool = False
    cancel: bool = False
    jobs: tuple[str, ...] = ("evaluate",)


class Ready(Struct, frozen=True, tag="ready", kw_only=True):
    """The model is built, and checkpoints can come.

    Attributes:
        fingerprint: Identity of the evaluation; scores under another one do not compare.
        fingerprint_parts: What it is made of, for people.
        images: Size of the eval set.
        device: What it runs on, in words.
        machine: What of it may change the last bits of a number, by name; None where that is not
            told.
        categories: None where they are not known.
        taken: Files that it added to the snapshot, the user's path to its copy.
        warnings: Sentences for the log, at each start.
        notes: The same, once.
        details: What else is recorded with each evaluation.
    """

    fingerprint: Name
    images: Count
    metrics: list[DeclaredMetric]
    device: str = "cpu"
    machine: dict[Name, str] | None = None
    categories: list[Category] | None = None
    capabilities: Capabilities = Capabilities()
    fingerprint_parts: dict[str, Any] = {}
    taken: dict[str, str] = {}
    warnings: list[str] = []
    notes: list[str] = []
    details: dict[str, Any] = {}


class Error(Struct, frozen=True, tag="error"):
    """This set-up can never be evaluated; the worker ends with exit code 3."""

    code: str
    message: str
    hint: str | None = None
    detail: str | None = None


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """The worker lives. It is no progress."""


class Progress(Struct, frozen=True, tag="progress"):
    """So many images of so many went through the model."""

    id: Name
    done: Count
    total: Count


class Free(Struct, frozen=True, tag="free"):
    """The model may take the next checkpoint: of this one only metrics are left."""

    id: Name


class CategoryMetric(Struct, frozen=True):
    """A figure of one category, which is called by its id."""

    name: Name
    category: int
    value: float | None


class Artefact(Struct, frozen=True):
    """A file that an evaluation left.

    Attributes:
        kind: `picture`, `table` (figures of each image) or `file`.
        path: Where it is for the watcher; either this or `uri`.
        sha256: Of its content, in hexadecimal.
        image: What it shows, as `image_names` calls it; None where it is of no one image.
    """

    kind: str
    name: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    path: str | None = None
    uri: str | None = None
    image: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.uri is None):
            raise ValueError("Expected either `path` or `uri`")


class Result(Struct, frozen=True, tag="result", kw_only=True):
    """The whole eval set was measured.

    Attributes:
        images: How many were; another number than that of `ready` is no evaluation.
        metrics: By name, None where there is no finite value.
        timings: Seconds by part.
        cost: What the model costs, its latency say.
        warnings: Sentences for the log.
        replicates_follow: A `replicates` comes, which this does not wait for.
    """

    id: Name
    images: Count
    metrics: dict[Name, float | None]
    global_step: int | None = None
    category_metrics: Annotated[list[CategoryMetric], Meta(max_length=_MOST_ROWS)] = []
    timings: dict[str, float | None] = {}
    cost: dict[str, Any] | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    model_variables: int | None = None
    warnings: list[str] = []
    artefacts: list[Artefact] = []
    replicates_follow: bool = False


class Replicated(Struct, frozen=True):
    """A metric in every replicate.

    Attributes:
        category: Its id, None for an overall metric.
        objects: How many there are to find.
        low: Lower end of its interval, and `high` the upper one.
        values: Little-endian float32, one a replicate, NaN where it had nothing to find; in base64.
            None where they are too many to be told.
    """

    name: Name
    category: int | None
    objects: Count
    low: float
    high: float
    values: bytes | None = None


class Replicates(Struct, frozen=True, tag="replicates", kw_only=True):
    """What a result would be on other eval sets, as large and drawn from this one.

    Attributes:
        scheme: How they are drawn: of one scheme and number of images, replicate by replicate, all
            evaluations have the same draws.
        images: From how many.
        count: Of replicates.
        level: Of the intervals.
        influences: How much the main metric rises with each image's weight; as values are.
        image_names: What the images are called, in that order. Once is enough of a fingerprint.
    """

    id: Name
    scheme: str
    images: Count
    count: Count
    level: float
    metrics: Annotated[list[Replicated], Meta(max_length=_MOST_ROWS)] = []
    influences: bytes | None = None
    image_names: list[str] | None = None


class BatchNorm(Struct, frozen=True):
    """What the statistics of batch normalisation were computed anew of.

    Attributes:
        images: Of training; those of the last batch that was not full are left out.
        batch_size: In how large batches they went through the model.
        layers: Whose statistics were computed.
        frozen: Layers whose statistics training leaves alone, and so does this.
    """

    images: Count
    batch_size: Count
    layers: Count
    frozen: Count = 0


class PartWritten(Struct, frozen=True, tag="part_written"):
    """The part that was asked for is written.

    Attributes:
        images: How many it has.
        warnings: Sentences for the log.
    """

    id: Name
    images: Count
    warnings: list[str] = []


class Averaged(Struct, frozen=True, tag="averaged"):
    """The average is written, whole, at the prefix that was asked for.

    Attributes:
        variables: How many were averaged.
        batch_norm: Where that was asked for.
    """

    id: Name
    variables: Count
    batch_norm: BatchNorm | None = None


class Failed(Struct, frozen=True, tag="failed"):
    """This checkpoint gets no score; the worker lives on.

    Attributes:
        permanent: Another attempt would end the same way.
        detail: A traceback, for worker.log.
    """

    id: Name
    code: str
    message: str
    permanent: bool
    detail: str | None = None


Request = Start | Evaluate | Part | PartFound | Average | Cancel | Stop
Answer = Progress | Free | Result | Replicates | PartWritten | Averaged | Failed
Reply = Hello | Phase | Ready | Error | Heartbeat | Answer
