"""What is wrong with the eval records, in sentences: for the evaluator's start and for doctor."""

import collections
import difflib
import pathlib
import re

import tensorflow as tf
from object_detection.utils import config_util

from evaluators.od_api import records
from evaluators.od_api.pipeline import is_sequence
from evaluators.od_api.tally import LARGEST_COORDINATE, Tally
from evaluators.protocol import Refusal

_SHOWN = 5
_FILES = 50
_FRACTIONS = (
    "boxes are fractions of the image's width and height: divide pixels by them when the records"
    " are made"
)
_SHARD = re.compile(r"^(.*)-(\d{5,})-of-(\d{5,})(.*)$")


Finding = collections.namedtuple(
    "Finding", "check severity message remedy is_fatal", defaults=(False,)
)
Finding.__doc__ = """Something wrong; `severity` is doctor's: "error" or "warning".

`is_fatal`: an evaluation would break off, or give no score that means anything.
"""


def require_sound(pipeline):
    """Reads all eval records before the model is built; adds what is odd to the warnings.

    Returns:
        Their Tally.

    Raises:
        Refusal: they cannot be read, or no evaluation can be made of them.
    """
    found, tally, _, _ = examine(pipeline)
    for finding in found:
        if finding.is_fatal:
            raise Refusal(records.CODE, finding.message, finding.remedy)
    pipeline.warnings += ["{}: {}".format(f.message, f.remedy) for f in found]
    return tally


def examine(pipeline, deadline=None, tell=None):
    """Reads the eval records, and returns what is wrong with them.

    Args:
        pipeline, deadline, tell: as for `records.scan`.

    Returns:
        (Findings, the Tally, records read, whether these are all).

    Raises:
        Refusal: a record cannot be read.
    """
    tally = Tally(pipeline)
    count, is_whole = records.scan(pipeline, tally.add, deadline, tell)
    patterns = pipeline.eval_input.tf_record_input_reader.input_path
    found = []
    for pattern in patterns:
        if set(pattern) & set("*?["):  # a shard named by itself may be meant alone
            found += missing_shards(tf.io.gfile.glob(pattern))
    if count and not is_sequence(pipeline.eval_input):
        found += judge(tally, pipeline)
    return found, tally, count, is_whole


def judge(tally, pipeline):
    """Returns the Findings on what was added up. Pure."""
    found = _refused(tally)
    if not tally.boxes and not found:
        found.append(
            Finding(
                "eval set",
                "error",
                "no box in any of the {} eval records: there is no score without one".format(
                    tally.records
                ),
                "write {}xmin and its like, and class/text, into the records".format(records.BOX),
            )
        )
    if pipeline.label_map is None:
        return found + _odd(tally, pipeline)
    path = pipeline.eval_input.label_map_path
    return found + _texts(tally, path) + _labels(tally, pipeline, path) + _odd(tally, pipeline)


def _refused(tally):
    """Returns what the OD API's own evaluation breaks on."""
    told = {
        "no image": ("it has no {}".format(records.IMAGE), "", "see dataset_tools of the OD API"),
        "uneven": (
            "it has {{}} values of {}ymin, xmin, ymax and xmax".format(records.BOX),
            "",
            "write four coordinates for each box",
        ),
        "few": (
            "it has {{0}} boxes and {{1}} values of {} or else {}".format(
                records.TEXT, records.LABEL
            ),
            "",
            "write a class for each box",
        ),
        "turned": (
            "a box has a minimum above its maximum ({})",
            ", where the OD API breaks off",
            "swap them when the records are made",
        ),
        "beyond": (
            "{}",
            ", and above {:g} the OD API breaks off".format(LARGEST_COORDINATE),
            _FRACTIONS,
        ),
    }
    found = []
    for kind, (what, why, remedy) in told.items():
        seen = tally.seen.get(kind)
        if not seen:
            continue
        values = seen.value if isinstance(seen.value, (tuple, list)) else (seen.value,)
        if kind == "uneven":
            values = (", ".join(map(str, values)),)
        message = "{}: {}{}{}".format(seen.place, what.format(*values), why, _as_well(seen))
        found.append(Finding("eval set", "error", message, remedy, is_fatal=True))
    return found


def _as_well(seen):
    if seen.records == 1:
        return ""
    return "; so it is in {} records".format(seen.records)


def _texts(tally, path):
    """Returns what class texts the label map does not know, and what they cost."""
    unknown = {text.decode("utf-8", "replace"): n for text, n in tally.unknown.items() if text}
    found = []
    if unknown and not tally.classes:
        shown = ", ".join(
            '"{}"{}: {}'.format(text, _probably(text, tally), boxes)
            for text, (boxes, _) in _most(unknown)
        )
        message = (
            "no class of the eval records ({}) is in the label map ({}), so the OD API drops all {}"
            " boxes: {}".format(records.TEXT, path, tally.boxes, shown)
        )
        return [Finding("labels", "error", message, _SPELLING, is_fatal=True)]
    for text, (boxes, images) in _most(unknown):
        likely = meant(text, tally.names)
        lost = likely is not None and not tally.classes[tally.names[likely]]
        message = (
            'class "{}" of the eval records ({}) is not in the label map ({}){}: the OD API drops'
            " {} of {} boxes, in {} image{}{}".format(
                text,
                records.TEXT,
                path,
                "" if likely is None else ', which has "{}"'.format(likely),
                boxes,
                tally.boxes,
                images,
                "" if images == 1 else "s",
                ", and this class has no other" if lost else "",
            )
        )
        found.append(Finding("labels", "error" if lost else "warning", message, _SPELLING))
    if len(unknown) > _SHOWN:
        text = "{} more class texts are not in the label map".format(len(unknown) - _SHOWN)
        found.append(Finding("labels", "warning", text, _SPELLING))
    return found + _empty_texts(tally, path)


_SPELLING = (
    "spell it the same in records and label map (as name or display_name); the trainer drops such"
    " boxes too"
)


def _empty_texts(tally, path):
    boxes, images = tally.unknown.get(b"", (0, 0))
    if not boxes:
        return []
    number = tally.names.get("", -1)
    effect = "drops them" if number < 0 else "takes them for class {}".format(number)
    message = "{} is empty for {} boxes in {} images: the OD API {}, whatever {} says".format(
        records.TEXT, boxes, images, effect, records.LABEL
    )
    remedy = "write the names of the label map ({}), or leave the field out".format(path)
    return [Finding("labels", "error", message, remedy)]


def _most(counts):
    return sorted(counts.items(), key=lambda item: -item[1][0])[:_SHOWN]


def _probably(text, tally):
    likely = meant(text, tally.names)
    return "" if likely is None else ' (the label map has "{}")'.format(likely)


def meant(text, names):
    """Returns the name that a text was probably meant to be, or None. Pure.

    One that differs in case, a plural's s, or spaces, hyphens and underscores; else one that is
    much alike.
    """
    plain = {_plain(name): name for name in names if name}
    if _plain(text) in plain:
        return plain[_plain(text)]
    close = difflib.get_close_matches(_plain(text), plain, 1, 0.75)
    return plain[close[0]] if close else None


def _plain(text):
    words = re.sub(r"[\W_]+", " ", text.casefold()).strip()
    return words[:-1] if len(words) > 3 and words.endswith("s") else words


def _labels(tally, pipeline, path):
    """Returns what labels are not in the label map, where the OD API looks at labels."""
    if not tally.labels:
        return []
    try:
        classes = config_util.get_number_of_classes(pipeline.configs["model"])
    except ValueError:  # an architecture that has no such field
        classes = None
    message = (
        "the eval records have class {}, which is not in the label map ({}): {} of {} boxes".format(
            _few(tally.labels), path, sum(tally.labels.values()), tally.boxes
        )
    )
    mixed = [n for n in tally.labels if n == 0 or (classes is not None and n > classes)]
    if mixed:
        message += ", and the OD API takes {} for class 1".format(_few(mixed))
    remedy = "make records and label map from the same list of classes; ids start at 1"
    return [Finding("labels", "error", message, remedy)]


def _few(numbers):
    return ", ".join(map(str, sorted(numbers)[:_SHOWN]))


def _odd(tally, pipeline):
    """Returns what the OD API evaluates otherwise than was probably meant."""
    told = {
        "nan": (
            "{} of {} boxes have a coordinate that is no number: the OD API drops them",
            "look at what writes them: a width or height of 0 that is divided by, often",
        ),
        "outside": (
            "{} of {} boxes reach outside of their image",
            "cut boxes off at the image's edge, at 0 and 1, when the records are made",
        ),
        "flat": (
            "{} of {} boxes have no area: no detection can match them",
            "leave them out of the records",
        ),
        "twice": (
            "{} of {} boxes are in their image a second time: a detection matches one alone",
            "leave them out of the records",
        ),
    }
    found = []
    for kind, (what, remedy) in told.items():
        seen = tally.seen.get(kind)
        if seen:
            message = "{} ({}: {})".format(
                what.format(seen.boxes, tally.boxes), seen.place, seen.value
            )
            found.append(Finding("eval set", "warning", message, remedy))
    return found + _too_many(tally, pipeline)


def _too_many(tally, pipeline):
    found = []
    seen = tally.seen.get("over")
    if seen:
        message = (
            "{} has {} boxes, and max_number_of_boxes of the eval_input_reader is {}: the OD API"
            " drops what is more, {} of {} boxes in {} images".format(
                *(seen.place, seen.value, pipeline.eval_input.max_number_of_boxes),
                *(seen.boxes, tally.boxes, seen.records),
            )
        )
        remedy = "set it in the eval_input_reader of pipeline.config, to the most that an image has"
        found.append(Finding("eval set", "warning", message, remedy))
    seen = tally.seen.get("more")
    if seen:
        message = (
            "{} has {} boxes and {} values of {} or else {}: are they the boxes' own?{}".format(
                seen.place, *seen.value, records.TEXT, records.LABEL, _as_well(seen)
            )
        )
        found.append(Finding("labels", "warning", message, "write one class for each box"))
    return found


def same_ids(tally):
    """Returns the Finding on image ids that several records share. Pure."""
    again = sum(tally.source_ids.values()) - len(tally.source_ids)
    if not again:
        return []
    (name, times), *_ = tally.source_ids.most_common(1)
    shown = name.decode("utf-8", "replace")
    if again == tally.records - 1:
        message = 'image/source_id is "{}" in all {} records: the metrics count one image'.format(
            shown, tally.records
        )
    else:
        message = (
            'image/source_id is another record\'s in {} of {} records ("{}" in {}): the metrics'
            " count one of each".format(again, tally.records, shown, times)
        )
    return [
        Finding("eval set", "warning", message, "give each image an image/source_id of its own")
    ]


def missing_shards(paths):
    """Returns a Finding for each set of files of which some are missing. Pure.

    They are named `NAME-00003-of-00010`, from 00000 on.
    """
    groups = collections.defaultdict(set)
    for path in paths:
        parts = _SHARD.match(path)
        if parts:
            before, number, total, after = parts.groups()
            groups[before, total, after].add(int(number))
    found = []
    for (before, total, after), there in sorted(groups.items()):
        missing = [
            "{}-{:0{}d}-of-{}{}".format(before, number, len(total), total, after)
            for number in range(int(total))
            if number not in there
        ]
        if missing:
            more = len(missing) - _SHOWN
            message = "{} of {} files of the eval records: missing {}{}".format(
                len(there),
                int(total),
                ", ".join(missing[:_SHOWN]),
                " and {} more".format(more) if more > 0 else "",
            )
            remedy = "copy what is missing, or name in input_path the files that are meant"
            found.append(Finding("eval set", "warning", message, remedy))
    return found


def training_records(pipeline):
    """Returns the Findings on eval records that are the training records too."""
    reader = pipeline.configs["train_input_config"].tf_record_input_reader
    theirs = [path for pattern in reader.input_path for path in tf.io.gfile.glob(pattern)]
    same = [path for path in pipeline.record_files if any(_is_same(path, one) for one in theirs)]
    remedy = "evaluate on images that are not trained on: input_path of the eval_input_reader"
    if same:
        message = "the eval records ({}) are training records: scores tell how well it learned by"
        message = (message + " heart").format(", ".join(same[:_SHOWN]))
        return [Finding("eval set", "warning", message, remedy)]
    ours = records.first_records(pipeline.record_files[:_FILES])
    known = records.first_records(theirs[:_FILES])
    for record in ours.keys() & known.keys():
        message = "the eval records ({}) begin with the same image as the training records ({})"
        message = message.format(ours[record], known[record])
        return [Finding("eval set", "warning", message, remedy)]
    return []


def _is_same(one, other):
    try:
        return pathlib.Path(one).samefile(other)
    except OSError:  # not on a file system of this machine
        return one == other
