"""Writes records with something wrong in them, made from `val.tfrecord`; `kept` counts boxes.

Imported by the programs that ask about them, in the training interpreter.
"""

import collections
import pathlib

import numpy as np
import tensorflow as tf
from object_detection import inputs
from object_detection.builders import dataset_builder

BOX = "image/object/bbox/"
TEXT = "image/object/class/text"
LABEL = "image/object/class/label"
NAN = float("nan")


def put(example, key, values):
    """Replaces a feature; the type is that of the values."""
    feature = example.features.feature[key]
    feature.Clear()
    values = list(values)
    if values:
        kinds = {bytes: feature.bytes_list, float: feature.float_list, int: feature.int64_list}
        kinds[type(values[0])].value.extend(values)


def get(example, key):
    """Returns a feature's values."""
    feature = example.features.feature[key]
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def change(key, function):
    """Returns a fault that changes all values of one feature."""

    def spoil(index, example):
        put(example, key, [function(value) for value in get(example, key)])

    return spoil


def one(number, *changed):
    """Returns a fault of record `number` alone: keys and the new values, or their first one."""

    def spoil(index, example):
        if index != number:
            return
        for key, value in changed:
            values = value if isinstance(value, list) else [value, *get(example, key)[1:]]
            put(example, key, values)

    return spoil


def drop(*keys):
    """Returns a fault that leaves features out."""

    def spoil(index, example):
        for key in keys:
            example.features.feature.pop(key, None)

    return spoil


def pixels(index, example):
    """Coordinates in pixels of an image of 160 x 160."""
    for side in ("ymin", "xmin", "ymax", "xmax"):
        change(BOX + side, lambda value: 160 * value)(index, example)


def late(index, example):
    """A label that is in no label map, after many records that are right."""
    drop(TEXT)(index, example)
    one(225, (LABEL, 9))(index, example)


def twice(index, example):
    """Each box a second time."""
    for key in (TEXT, LABEL, *(BOX + side for side in ("ymin", "xmin", "ymax", "xmax"))):
        put(example, key, 2 * get(example, key))


FAULTS = {
    "pixels": pixels,
    "beyond": one(41, (BOX + "xmax", 1.1818783)),
    "turned": one(41, (BOX + "ymin", 0.9), (BOX + "ymax", 0.1)),
    "nan": one(41, (BOX + "xmin", NAN)),
    "outside": one(41, (BOX + "xmin", -0.25)),
    "flat": one(41, (BOX + "xmin", 0.5), (BOX + "xmax", 0.5)),
    "twice": twice,
    "misspelled": change(TEXT, lambda text: b"Ellipses" if text == b"ellipse" else text),
    "all misspelled": change(TEXT, bytes.title),
    "some misspelled": one(41, (TEXT, b"elipse")),
    "another": one(41, (TEXT, b"triangle")),
    "empty texts": one(41, (TEXT, b"")),
    "from zero": change(LABEL, lambda label: label - 1),
    "labels": drop(TEXT),
    "late": late,
    "no class": drop(TEXT, LABEL),
    "few texts": one(41, (TEXT, [b"rect"])),
    "one id": change("image/source_id", lambda name: b"image.jpg"),
    "no box": drop(TEXT, LABEL, *(BOX + side for side in ("ymin", "xmin", "ymax", "xmax"))),
    "uneven": one(41, (BOX + "xmin", [0.5] * 9)),
    "no image": one(41, ("image/encoded", [])),
    "garbage": one(40, ("image/encoded", b"no image")),
    "crowd": one(41, ("image/object/is_crowd", [0, 1])),
    "type": one(41, (BOX + "xmin", [1] * 3)),
    "two names": one(41, ("image/filename", [b"a.jpg", b"b.jpg"])),
}


def write(fault):
    """Writes FAULT.tfrecord, or what the fault is about, into the current folder."""
    records = [record.numpy() for record in tf.data.TFRecordDataset("val.tfrecord")]
    name = fault + ".tfrecord"
    if fault in FAULTS:
        examples = [tf.train.Example.FromString(record) for record in records]
        if fault == "late":
            examples = [tf.train.Example.FromString(record) for record in records * 4]
        for index, example in enumerate(examples):
            FAULTS[fault](index, example)
        save(name, [example.SerializeToString() for example in examples])
    elif fault == "cut":
        pathlib.Path(name).write_bytes(pathlib.Path("val.tfrecord").read_bytes()[:-9])
    elif fault == "empty":
        save(name, [])
    elif fault in ("GZIP", "ZLIB"):
        save(name, records, fault)
    elif fault == "no example":
        save(name, [*records[:3], b"\xff\xfe no protocol buffer", *records[3:]])
    elif fault == "damaged":
        save(name, records)
        data = bytearray(pathlib.Path(name).read_bytes())
        data[16 + len(records[0]) + 100] ^= 1
        pathlib.Path(name).write_bytes(data)
    elif fault == "shards":
        for number in (0, 1, 2, 4):
            part = records[12 * number : 12 * number + 12]
            save("shards-{:05d}-of-00005".format(number), part)
    elif fault == "folder":
        pathlib.Path(name).mkdir(exist_ok=True)
    elif fault == "copied":
        save(name, records[:20])
    else:
        raise ValueError(fault)


def save(name, records, compression=""):
    """Writes a TFRecord file."""
    with tf.io.TFRecordWriter(name, compression) as writer:
        for record in records:
            writer.write(record)


def kept(reader):
    """Returns how many boxes of each class the OD API itself keeps, by its own input pipeline."""

    def transform(tensors):
        tensors = inputs.transform_input_data(
            tensors,
            model_preprocess_fn=lambda image: (image, tf.constant([[160, 160, 3]])),
            image_resizer_fn=lambda image, masks=None: (image, tf.shape(image)),
            num_classes=2,
        )
        tensors = inputs.pad_input_data_to_static_shapes(
            tensors, reader.max_number_of_boxes, 2, [160, 160]
        )
        return tensors["num_groundtruth_boxes"], tensors["groundtruth_classes"]

    found = collections.Counter()
    for count, classes in dataset_builder.build(reader, 1, transform):
        found.update((np.argmax(classes[0, : int(count[0])], axis=1) + 1).tolist())
    return {str(label): number for label, number in sorted(found.items())}
