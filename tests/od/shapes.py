"""Writes small detection data sets of drawn shapes: `shapes.py FOLDER < SETS`.

SETS is JSON, from a name to its options: `images`, `seed`, `size` (height and width), `vary_size`
(every second image is turned), `empty_every` (so many images have one without any box), `anonymous`
(no source_id), `flags` (whether some boxes are marked) and `garden` (what Model Garden asks for
beside: a number as source_id, the image's class, the class of each pixel, and NAME.json, COCO's
annotations).

Runs in the training interpreter. Each image carries rectangles and ellipses as JPEG, with boxes,
classes, instance masks (PNG), keypoints, and the flags the metrics treat apart: crowd, difficult
and group-of boxes, classes verified as absent or not exhaustively marked, and every tenth image
without any box. The same seed gives the same bytes.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

NAMES = ("rect", "ellipse")
FREQUENCIES = ("FREQUENT", "RARE")
KEYPOINTS = ("top", "bottom", "left", "right")


def draw_shape(image, rng):
    """Draws one shape into `image` in place and returns (class id, box in pixels, mask)."""
    height, width = image.shape[:2]
    label = int(rng.integers(1, 3))
    box_height = int(rng.integers(height // 8, height // 2))
    box_width = int(rng.integers(width // 8, width // 2))
    top = int(rng.integers(0, height - box_height))
    left = int(rng.integers(0, width - box_width))
    rows, columns = np.mgrid[0:height, 0:width]
    if label == 1:
        mask = (rows >= top) & (rows < top + box_height)
        mask &= (columns >= left) & (columns < left + box_width)
    else:
        mask = (
            ((rows - top - box_height / 2) / (box_height / 2)) ** 2
            + ((columns - left - box_width / 2) / (box_width / 2)) ** 2
        ) <= 1
    image[mask] = rng.integers(0, 256, 3)
    return label, (top, left, top + box_height, left + box_width), mask.astype(np.uint8)


def _bytes(values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(v) for v in values]))


def _floats(values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=[float(v) for v in values]))


def object_features(shapes, height, width, flags):
    """Returns the per-object features; `flags` has one row (crowd, difficult, group) an object."""
    boxes = np.array([box for _, box, _ in shapes], np.float64).reshape(-1, 4)
    y_centre, x_centre = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    points_x = np.stack([x_centre, x_centre, boxes[:, 1], boxes[:, 3]], axis=1) / width
    points_y = np.stack([boxes[:, 0], boxes[:, 2], y_centre, y_centre], axis=1) / height
    masks = [tf.io.encode_png(mask[:, :, None]).numpy() for _, _, mask in shapes]
    return {
        "image/object/bbox/ymin": _floats(boxes[:, 0] / height),
        "image/object/bbox/xmin": _floats(boxes[:, 1] / width),
        "image/object/bbox/ymax": _floats(boxes[:, 2] / height),
        "image/object/bbox/xmax": _floats(boxes[:, 3] / width),
        "image/object/class/label": _ints(label for label, _, _ in shapes),
        "image/object/class/text": _bytes([NAMES[label - 1].encode() for label, _, _ in shapes]),
        "image/object/mask": _bytes(masks),
        "image/object/is_crowd": _ints(flags[:, 0]),
        "image/object/difficult": _ints(flags[:, 1]),
        "image/object/group_of": _ints(flags[:, 2]),
        "image/object/keypoint/x": _floats(points_x.ravel()),
        "image/object/keypoint/y": _floats(points_y.ravel()),
        "image/object/keypoint/visibility": _ints([2] * points_x.size),
        "image/object/keypoint/text": _bytes([name.encode() for name in KEYPOINTS] * len(shapes)),
    }


def source_ids(name, images):
    """Returns the images' source ids.

    They rise by the hash that the OD API takes for an image's identity. COCO takes images in that
    order, which decides between equal scores: it is the order of the records here.
    """
    names = ["{}-{}".format(name, index) for index in range(images)]
    hashes = tf.strings.to_hash_bucket_fast(names, 1 << 31).numpy()
    return [names[index].encode() for index in np.argsort(hashes)]


def garden_features(index, shapes, height, width):
    """Returns what Model Garden's records of images and of their pixels' classes hold."""
    pixels = np.zeros((height, width), np.uint8)
    for label, _, mask in shapes:
        pixels[mask > 0] = label
    return {
        "image/source_id": _bytes([str(index + 1).encode()]),
        "image/class/label": _ints([shapes[0][0] if shapes else 0]),
        "image/segmentation/class/encoded": _bytes([tf.io.encode_png(pixels[:, :, None]).numpy()]),
    }


def annotations(drawn, size):
    """Returns the shapes of each image of one size as COCO's annotation file has them."""
    found = []
    for image, shapes in enumerate(drawn, start=1):
        for label, (top, left, bottom, right), _ in shapes:
            box = [left, top, right - left, bottom - top]
            said = {"id": len(found) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            found.append({**said, "bbox": box, "area": box[2] * box[3]})
    numbers = range(1, len(drawn) + 1)
    return {
        "images": [{"id": number, "height": size[0], "width": size[1]} for number in numbers],
        "annotations": found,
        "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES, start=1)],
    }


def example(index, name, source_id, rng, size, empty, flags, garden):
    """Returns one drawn tf.train.Example, and its shapes."""
    height, width = size
    image = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    count = 0 if empty else rng.integers(1, 5)
    shapes = [draw_shape(image, rng) for _ in range(count)]
    flags = (rng.random((count, 3)) < 0.15) & flags
    name = "{}-{}.jpg".format(name, index).encode()
    features = {
        "image/height": _ints([height]),
        "image/width": _ints([width]),
        "image/filename": _bytes([name]),
        "image/source_id": _bytes([source_id]),
        "image/format": _bytes([b"jpeg"]),
        "image/encoded": _bytes([tf.io.encode_jpeg(image, quality=95).numpy()]),
    }
    features.update(object_features(shapes, height, width, flags))
    labels = {label for label, _, _ in shapes}
    features["image/neg_category_ids"] = _ints({1, 2} - labels)
    features["image/not_exhaustive_category_ids"] = _ints(sorted(labels) if index % 4 == 3 else [])
    if not source_id and index % 2:  # empty and not there are the same to the OD API
        del features["image/source_id"]
    if garden:
        features.update(garden_features(index, shapes, height, width))
    return tf.train.Example(features=tf.train.Features(feature=features)), shapes


def write_label_map(path):
    """Writes the label map of the two shapes, with their keypoints and LVIS frequencies."""
    items = []
    for number, (name, frequency) in enumerate(zip(NAMES, FREQUENCIES), start=1):
        points = "".join(
            '  keypoints {{ id: {} label: "{}" }}\n'.format(i, p) for i, p in enumerate(KEYPOINTS)
        )
        items.append(
            "item {{\n  id: {}\n  name: '{}'\n  frequency: {}\n{}}}\n".format(
                number, name, frequency, points
            )
        )
    path.write_text("".join(items))


def draw(
    folder,
    name,
    images=40,
    seed=1,
    size=(160, 160),
    vary_size=False,
    empty_every=10,
    anonymous=False,
    flags=True,
    garden=False,
):
    """Writes `NAME.tfrecord` and `label_map.pbtxt` into the folder; see above for `garden`."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    ids = [b""] * images if anonymous else source_ids(name, images)
    every = []
    with tf.io.TFRecordWriter(str(folder / (name + ".tfrecord"))) as writer:
        for index, source_id in enumerate(ids):
            turned = size[::-1] if vary_size and index % 2 else size
            empty = bool(empty_every) and index % empty_every == 0
            drawn, shapes = example(index, name, source_id, rng, turned, empty, flags, garden)
            writer.write(drawn.SerializeToString())
            every.append(shapes)
    write_label_map(folder / "label_map.pbtxt")
    if garden:
        (folder / (name + ".json")).write_text(json.dumps(annotations(every, size)))


def draw_all(folder, sets):
    """Writes the sets, a dict from the name of each to its options."""
    for name, options in sets.items():
        draw(folder, name, **options)


if __name__ == "__main__":
    draw_all(sys.argv[1], json.load(sys.stdin))
