"""Draws a small detection data set and writes what trains on it, for each of the two trainers.

Runs in the training interpreter: `make_dataset.py OUT_DIR`. Rectangles and ellipses, one to four an
image, lie on 320 px JPEGs in `train.tfrecord` and `val.tfrecord`; `label_map.pbtxt` names the two
classes. The same arguments give the same bytes, whatever was in OUT_DIR before is replaced.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import string
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: TID251 - this is not the daemon
from PIL import Image, ImageDraw

CLASSES = ("rectangle", "ellipse")
IMAGE_PIXELS = 320
MAX_SHAPES = 4
MAX_OVERLAP = 0.1


def main() -> None:
    args = parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    write_records(args.out_dir / "train.tfrecord", args.train, random.Random(f"{args.seed} train"))
    write_records(args.out_dir / "val.tfrecord", args.val, random.Random(f"{args.seed} val"))
    write_label_map(args.out_dir / "label_map.pbtxt")
    for template in ("pipeline.config", "retinanet.yaml"):
        fill_in(template, args.out_dir, args.num_steps, args.decay_steps)
    print(f"{args.out_dir}: {args.train} images to train on, {args.val} to evaluate")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--train", type=int, default=200, metavar="N", help="training images")
    parser.add_argument("--val", type=int, default=64, metavar="N", help="evaluation images")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--num-steps", type=int, default=400, metavar="N", help="steps the trainer would run"
    )
    parser.add_argument(
        "--decay-steps",
        type=int,
        metavar="N",
        help="steps after which the learning rate has decayed to zero (default: --num-steps)",
    )
    return parser.parse_args()


def write_records(path: Path, count: int, rng: random.Random) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(count):
            jpeg, labels, boxes = draw_image(rng)
            name = f"{path.stem}-{number:05d}.jpg"
            writer.write(to_example(number, name, jpeg, labels, boxes).SerializeToString())


def draw_image(rng: random.Random) -> tuple[bytes, list[int], list[tuple[int, int, int, int]]]:
    """Returns a JPEG, the class ids of its shapes and their boxes (left, top, right, bottom)."""
    image = Image.new("RGB", (IMAGE_PIXELS, IMAGE_PIXELS), random_colour(rng, 150, 255))
    pen = ImageDraw.Draw(image)
    labels: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(rng.randint(1, MAX_SHAPES)):
        box = free_box(rng, boxes)
        if box is None:
            continue
        left, top, right, bottom = box
        label = rng.randrange(len(CLASSES))
        draw = (pen.rectangle, pen.ellipse)[label]
        # PIL draws the right and bottom edge too; a box ends where its shape does.
        draw((left, top, right - 1, bottom - 1), fill=random_colour(rng, 0, 140))
        labels.append(label + 1)
        boxes.append(box)
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=90)
    return data.getvalue(), labels, boxes


def random_colour(rng: random.Random, low: int, high: int) -> tuple[int, int, int]:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def free_box(
    rng: random.Random, taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Returns a box that hardly touches the taken ones, or None where a few tries found none."""
    for _ in range(20):
        width, height = rng.randint(64, 176), rng.randint(64, 176)
        left = rng.randint(0, IMAGE_PIXELS - width)
        top = rng.randint(0, IMAGE_PIXELS - height)
        box = (left, top, left + width, top + height)
        if all(overlap(box, other) <= MAX_OVERLAP for other in taken):
            return box
    return None


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Returns the shared area as a fraction of the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def to_example(
    number: int, name: str, jpeg: bytes, labels: list[int], boxes: list[tuple[int, int, int, int]]
) -> tf.train.Example:
    """Returns what the Object Detection API's TfExampleDecoder reads; boxes go from 0 to 1."""
    features = {
        "image/encoded": bytes_feature([jpeg]),
        "image/format": bytes_feature([b"jpeg"]),
        "image/filename": bytes_feature([name.encode()]),
        # A number, as Model Garden wants it.
        "image/source_id": bytes_feature([str(number).encode()]),
        "image/height": int_feature([IMAGE_PIXELS]),
        "image/width": int_feature([IMAGE_PIXELS]),
        "image/object/class/label": int_feature(labels),
        "image/object/class/text": bytes_feature([CLASSES[n - 1].encode() for n in labels]),
    }
    for position, edge in enumerate(("xmin", "ymin", "xmax", "ymax")):
        fractions = [box[position] / IMAGE_PIXELS for box in boxes]
        features[f"image/object/bbox/{edge}"] = tf.train.Feature(
            float_list=tf.train.FloatList(value=fractions)
        )
    return tf.train.Example(features=tf.train.Features(feature=features))


def bytes_feature(values: list[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def int_feature(values: list[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def write_label_map(path: Path) -> None:
    items = [
        f'item {{\n  id: {number}\n  name: "{name}"\n}}\n'
        for number, name in enumerate(CLASSES, start=1)
    ]
    path.write_text("".join(items))


def fill_in(name: str, out_dir: Path, num_steps: int, decay_steps: int | None) -> None:
    """Fills in a template beside this file, with the paths as OUT_DIR was given."""
    template = string.Template(Path(__file__).with_name(name).read_text())
    filled = template.substitute(
        data=out_dir.as_posix(), num_steps=num_steps, decay_steps=decay_steps or num_steps
    )
    (out_dir / name).write_text(filled)


if __name__ == "__main__":
    main()
