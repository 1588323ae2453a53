"""Reads the eval records in the OD API's order without decoding an image, and names what is bad.

The OD API reads with `dataset_builder.read_dataset` and parses with its decoder's
`keys_to_features`: so does this, and what it sees is what an evaluation sees. Where reading fails,
TensorFlow tells neither file nor record; they are looked for then.
"""

import collections
import re
import time

import tensorflow as tf
from object_detection import inputs
from object_detection.builders import dataset_builder, decoder_builder

from evaluators.od_api.pipeline import is_sequence
from evaluators.protocol import Refusal, one_line
from evaluators.reading import UNREADABLE

BOX = "image/object/bbox/"
SIDES = ("ymin", "xmin", "ymax", "xmax")
TEXT = "image/object/class/text"
LABEL = "image/object/class/label"
IMAGE = "image/encoded"
CODE = "bad_records"
# Small, since images are large: they are read, and dropped at once.
_BATCH = 16
# What newer TensorFlow says of its own inside before it says what is wrong.
_OF_DATASET = re.compile(
    r"Error in user-defined function passed to \S+ transformation with iterator: \S+: "
)
_MADE_ANEW = "make the records again, or copy them again"


class Place(collections.namedtuple("Place", "path number filename")):
    """Where a record lies: its file, its number there from 1 on, and its image's file name."""

    def __str__(self):
        name = " ({})".format(self.filename) if self.filename else ""
        return "record {}{} of {}".format(self.number, name, self.path)


class Batch:
    """Some records, parsed.

    Attributes:
        size: how many.
        fields: by key: (rows, columns, values) of what the OD API parses to lists, an array of
            what it parses to one value each. `IMAGE` is the image's size in bytes.
    """

    def __init__(self, paths, numbers, fields):
        self._paths, self._numbers = paths.numpy(), numbers.numpy()
        self.size = len(self._numbers)
        self.fields = {key: _arrays(value) for key, value in fields.items()}

    def place(self, row):
        """Returns the Place of one record."""
        name = self.fields["image/filename"][row]
        return Place(_text(self._paths[row]), int(self._numbers[row]), _text(name))


def _arrays(value):
    if isinstance(value, tf.SparseTensor):
        indices = value.indices.numpy()
        return indices[:, 0], indices[:, 1], value.values.numpy()
    return value.numpy()


def _text(value):
    return value.decode("utf-8", "replace")


def scan(pipeline, take, deadline=None, tell=None):
    """Hands all records of an evaluation to `take` in Batches, in the order of the evaluation.

    SequenceExamples are counted and not handed over.

    Args:
        pipeline: the Pipeline.
        take: called with each Batch.
        deadline: of `time.monotonic()`, where this must end.
        tell: called with the records read so far, after each batch.

    Returns:
        (records read, whether these are all).

    Raises:
        Refusal: a record cannot be read; its message names the file, the record and the field.
    """
    parsed = _batches(pipeline)
    count = 0
    try:
        for batch in parsed:
            if isinstance(batch, tuple):
                taken = Batch(*batch)
                take(taken)
                count += taken.size
            else:
                count += len(batch)
            if tell:
                tell(count)
            if deadline is not None and time.monotonic() > deadline:
                return count, False
    except UNREADABLE as error:
        features = _features(pipeline)
        raise culprit(
            pipeline, error, lambda record: tf.io.parse_single_example(record, features)
        ) from error
    return count, True


@tf.autograph.experimental.do_not_convert
def _batches(pipeline):
    records = _numbered(pipeline)
    if is_sequence(pipeline.eval_input):
        return records.map(lambda path, number, record: number).batch(_BATCH)
    features = _features(pipeline)

    def parse(paths, numbers, serialized):
        fields = tf.io.parse_example(serialized, features)
        fields[IMAGE] = tf.strings.length(fields[IMAGE])
        return paths, numbers, fields

    return records.batch(_BATCH).map(parse, num_parallel_calls=2).prefetch(2)


def _numbered(pipeline):
    """Returns (path, number from 1 on, record) of all records, in the OD API's order."""
    reader = pipeline.eval_input

    def read(path):
        records = tf.data.TFRecordDataset(path, buffer_size=8 * 1000 * 1000)
        return records.enumerate(1).map(lambda number, record: (path, number, record))

    found = dataset_builder.read_dataset(read, reader.tf_record_input_reader.input_path[:], reader)
    if reader.sample_1_of_n_examples > 1:
        found = found.shard(reader.sample_1_of_n_examples, 0)
    return found


def _od_decoder(pipeline):
    """Returns the OD API's decoder; without a label map that can be read it looks nothing up."""
    reader = type(pipeline.eval_input)()
    reader.CopyFrom(pipeline.eval_input)
    if pipeline.label_map is None:
        reader.ClearField("label_map_path")
    return decoder_builder.build(reader)


def _features(pipeline):
    """Returns what the OD API parses of a record, without the masks and points of its objects."""
    features = _od_decoder(pipeline).keys_to_features
    wanted = {TEXT, LABEL, *(BOX + side for side in SIDES)}
    return {
        key: feature
        for key, feature in features.items()
        if key in wanted or isinstance(feature, tf.io.FixedLenFeature)
    }


def spread(pipeline, count, wanted, deadline):
    """Decodes about `wanted` of `count` records as the OD API does, those that lie evenly apart.

    Raises:
        Refusal: one does not decode.
    """
    decode = _decoder(pipeline)
    some = _numbered(pipeline).shard(max(1, count // wanted), 0).take(wanted)
    for path, number, record in some:
        try:
            decode(record)
        except UNREADABLE as error:
            raise _refusal(path, number, record, error) from error
        if time.monotonic() > deadline:
            return


def explain(pipeline, error):
    """Returns the Refusal of an eval set that could not be read to its end."""
    decode = _decoder(pipeline)
    largest = max(category["id"] for category in pipeline.label_map.categories)

    def work(record):
        return inputs.transform_input_data(
            decode(record),
            model_preprocess_fn=lambda image: (image, tf.shape(image)[tf.newaxis, 1:]),
            image_resizer_fn=_as_it_is,
            num_classes=largest,
        )

    return culprit(pipeline, error, decode if is_sequence(pipeline.eval_input) else work)


def _as_it_is(image, masks=None):
    return (image, tf.shape(image)) if masks is None else (image, masks, tf.shape(image))


def _decoder(pipeline):
    return tf.function(
        _od_decoder(pipeline).decode,
        input_signature=[tf.TensorSpec([], tf.string)],
    )


def culprit(pipeline, error, work):
    """Returns a Refusal that names the file or the record which is to blame for an error.

    Reads all records again until it is found.

    Args:
        pipeline: the Pipeline.
        error: what TensorFlow raised.
        work: what is done with a record, its serialized text given, and may raise.
    """
    for path in pipeline.record_files:
        refusal = _bad_file(path)
        if refusal:
            return refusal
    done = _numbered(pipeline).map(lambda path, number, record: work(record))
    count = 0
    try:
        for _ in done:
            count += 1
    except UNREADABLE as found:
        for path, number, record in _numbered(pipeline).skip(count).take(1):
            return _refusal(path, number, record, found)
    return Refusal(CODE, "the eval records cannot be read: {}".format(one_line(error)), _MADE_ANEW)


def _bad_file(path):
    """Returns the Refusal of a file that is none of whole TFRecords, None for a good one."""
    if tf.io.gfile.isdir(path):
        return Refusal(
            CODE,
            "input_path ({}) of the eval_input_reader is a folder".format(path),
            'name the files in it: input_path: "{}/*"'.format(path.rstrip("/")),
        )
    count = 0
    try:
        for _ in tf.data.TFRecordDataset(path):
            count += 1
    except tf.errors.DataLossError as error:
        return _damaged(path, count, "truncated" in str(error))
    except UNREADABLE as error:
        text = "records ({}) cannot be read: {}".format(path, one_line(error))
        return Refusal(CODE, text, "check the file and who may read it")
    return None


def _damaged(path, count, is_cut):
    if count and is_cut:
        text = "records ({}): cut short after record {}".format(path, count)
        return Refusal(CODE, text, _MADE_ANEW)
    if count:
        text = "record {} of {} is damaged: its checksum does not match".format(count + 1, path)
        return Refusal(CODE, text, _MADE_ANEW)
    with tf.io.gfile.GFile(path, "rb") as file:
        start = file.read(2)
    if start == b"\x1f\x8b":
        text = "records ({}) are compressed (GZIP), and the OD API reads them plain".format(path)
        return Refusal(CODE, text, "gunzip < {0} > {0}.plain".format(path))
    if len(start) == 2 and start[0] == 0x78 and int.from_bytes(start, "big") % 31 == 0:
        text = "records ({}) are compressed (ZLIB), and the OD API reads them plain".format(path)
        return Refusal(CODE, text, "write them without a compression_type")
    text = "records ({}): {}no TFRecord file".format(path, "cut short, or " if is_cut else "")
    return Refusal(CODE, text, _MADE_ANEW)


def _refusal(path, number, record, error):
    """Returns the Refusal of a record with which `error` was raised."""
    record = record.numpy()
    path, number = _text(path.numpy()), int(number)
    try:
        fields = tf.train.Example.FromString(record).features.feature
        name = _text(b"".join(fields["image/filename"].bytes_list.value[:1]))
    except Exception:  # each implementation of protobuf has its own, and some pass on others
        fields, name = None, ""
    place = Place(path, number, name)
    text = _OF_DATASET.sub("", one_line(error))
    if fields is None or "Could not parse example" in text:
        hint = "the OD API reads tf.train.Example: was the file made for another program?"
        return Refusal(CODE, "{} is no tf.train.Example".format(place), hint)
    key = re.match(r"Key: (\S+)\. +(.*)", text)
    if key:
        return _bad_field(place, fields, *key.groups())
    encoded = b"".join(fields[IMAGE].bytes_list.value)
    try:
        tf.io.decode_image(encoded)
    except UNREADABLE as undecoded:
        text = "{}: {} ({} bytes) does not decode: {}".format(
            place, IMAGE, len(encoded), _sentence(undecoded)
        )
        return Refusal(CODE, text, "leave the image out, or put a whole one in its place")
    return Refusal(CODE, "{} cannot be read: {}".format(place, text), _MADE_ANEW)


def _bad_field(place, fields, key, why):
    kind = fields[key].WhichOneof("kind")
    values = list(getattr(fields[key], kind).value) if kind else []
    shown = [_text(value) if isinstance(value, bytes) else str(value) for value in values[:3]]
    shown = ", ".join(shown + ["..."] * (len(values) > 3))
    types = re.search(r"Expected type: (\w+), Actual type: (\w+)", why)
    if types:
        why = "is of type {1}, and the OD API reads {0}".format(*types.groups())
    elif "Can't parse" in why:
        why = "holds {} values, and the OD API reads one".format(len(values))
    text = "{}: {} ({}) {}".format(place, key, shown[:100], why)
    return Refusal(CODE, text, "write this field as the OD API's dataset_tools do")


def _sentence(error):
    return one_line(error).split(". ")[0].rstrip(".")


def first_records(paths):
    """Returns the first record of each file, by its bytes; files that cannot be read are left out.

    Returns:
        A dict from the record's bytes to the file's path.
    """
    found = {}
    for path in paths:
        try:
            for record in tf.data.TFRecordDataset(path).take(1):
                found[record.numpy()] = path
        except UNREADABLE:
            continue
    return found
