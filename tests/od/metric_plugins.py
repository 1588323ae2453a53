"""Metric plugins that the tests give to the worker, run in the training interpreter.

Those of the average precision follow COCO's definition box by box, with nothing of COCO's code; the
others misbehave: when called with one image, as at the start, they behave.
"""

import os
import subprocess
import sys
import time

import numpy as np


def ap50(images, categories):
    """COCO's average precision at IoU 0.5 of boxes, by brute force."""
    return average_precision(images, categories, box_overlap)


def mask_ap50(images, categories):
    """The same of masks."""
    for image in images:
        image.masks = [m.astype(bool) for m in (image.detection_masks, image.groundtruth_masks)]
    return average_precision(images, categories, mask_overlap)


def mask_places(images, categories):
    """How many masks there are, and the share of them that lie in their own box."""
    found = {}
    for side in ("groundtruth", "detection"):
        inside = []
        for image in images:
            masks = getattr(image, side + "_masks")
            assert masks.shape[1:] == (image.height, image.width)
            for mask, box in zip(masks, getattr(image, side + "_boxes")):
                places = np.argwhere(mask)
                if len(places):
                    low, high = places.min(axis=0), places.max(axis=0) + 1
                    inside.append(np.all(low >= box[:2] - 2) and np.all(high <= box[2:] + 2))
        found[side] = len(inside)
        found[side + "_inside"] = np.mean(inside) if inside else 1.0
    return found


def counts(images, categories):
    """What there is, by name."""
    found = {
        "images": len(images),
        "pixels": sum(image.height * image.width for image in images),
        "masks": sum(image.groundtruth_masks is not None for image in images),
        "detections": sum(len(image.detection_scores) for image in images),
    }
    for flag in ("is_crowd", "difficult", "group_of"):
        found[flag] = sum(int(vars(image)["groundtruth_" + flag].sum()) for image in images)
    for number, name in categories.items():
        found[name] = sum(int((image.groundtruth_classes == number).sum()) for image in images)
    return found


def ponders(images, categories):
    """Keeps Python's lock busy for a second, as a slow metric does."""
    until = time.perf_counter() + (len(images) > 1)
    while time.perf_counter() < until:
        pass
    return 0


def records(images, categories):
    """The same from the records of the working folder, read without the OD API."""
    import tensorflow as tf

    found = dict.fromkeys(["images", "pixels", "is_crowd", "difficult", "group_of"], 0)
    found.update(dict.fromkeys(categories.values(), 0))
    for record in tf.data.TFRecordDataset("val.tfrecord"):
        feature = tf.train.Example.FromString(record.numpy()).features.feature
        found["images"] += 1
        sides = [feature["image/" + side].int64_list.value[0] for side in ("height", "width")]
        found["pixels"] += sides[0] * sides[1]
        for flag in ("is_crowd", "difficult", "group_of"):
            found[flag] += sum(feature["image/object/" + flag].int64_list.value)
        for label in feature["image/object/class/label"].int64_list.value:
            found[categories[label]] += 1
    return found


def box_overlap(image, found, true):
    """IoU of two boxes; of a crowd, the part of the detection that lies in it."""
    a, b = (
        np.asarray(box, np.float64)
        for box in (image.detection_boxes[found], image.groundtruth_boxes[true])
    )
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    both = height * width
    total = areas[0] if image.groundtruth_is_crowd[true] else sum(areas) - both
    return both / total if total else 0.0


def mask_overlap(image, found, true):
    """The same of two masks."""
    a, b = image.masks[0][found], image.masks[1][true]
    both = (a & b).sum()
    total = a.sum() if image.groundtruth_is_crowd[true] else (a | b).sum()
    return both / total if total else 0.0


def average_precision(images, categories, overlap):
    """Mean over categories with objects of the precision at 101 recalls."""
    found = []
    for category in categories:
        rows, wanted = [], 0
        for image in sorted(images, key=lambda image: image.image_id):
            true = np.flatnonzero(image.groundtruth_classes == category)
            wanted += int((~image.groundtruth_is_crowd[true]).sum())
            rows += judged(image, category, true, overlap)
        if wanted:
            found.append(np.mean(precisions(rows, wanted)))
    return float(np.mean(found)) if found else -1.0


def judged(image, category, true, overlap):
    """[(score, hit)] of one image's detections, those in a crowd left out."""
    rows, taken = [], set()
    detections = np.flatnonzero(image.detection_classes == category)
    for d in sorted(detections, key=lambda d: -image.detection_scores[d])[:100]:
        overlaps = {t: overlap(image, d, t) for t in true}
        good = [t for t in true if overlaps[t] >= 0.5]
        own = [t for t in good if not image.groundtruth_is_crowd[t] and t not in taken]
        if own:
            taken.add(max(own, key=lambda t: overlaps[t]))
        if own or not any(image.groundtruth_is_crowd[t] for t in good):
            rows.append((float(image.detection_scores[d]), bool(own)))
    return rows


def precisions(rows, wanted):
    """Precision at the recalls 0, 0.01 ... 1, each the best at that recall or beyond."""
    hits, points = 0, []
    for number, (_, hit) in enumerate(sorted(rows, key=lambda row: -row[0]), start=1):
        hits += hit
        points.append((hits / wanted, hits / number))
    return [
        max((precision for recall, precision in points if recall >= wish), default=0.0)
        for wish in np.linspace(0, 1, 101)
    ]


def vandal(images, categories):
    """Changes all it gets."""
    for image in images:
        for value in vars(image).values():
            if isinstance(value, np.ndarray) and value.size:
                value[...] = 0
    categories.clear()
    images.clear()
    return 1


def chatterbox(images, categories):
    """Prints everywhere, and runs a program that reads what it can."""
    print('{"type": "result"}', flush=True)
    os.write(1, b"not JSON\n")
    sys.stderr.write("a plugin was here\n")
    return len(subprocess.run(["cat"], stdout=subprocess.PIPE, check=True).stdout)


def raises(images, categories):
    """Raises an error."""
    return [0.5][len(images) - 1]


def bad_text(images, categories):
    """Raises with half a surrogate pair, over many lines and without end."""
    if len(images) > 1:
        raise RuntimeError("\ud800\n" * 10_000)
    return 0


def leaves(images, categories):
    """Ends the process, or thinks so."""
    return 0.5 if len(images) == 1 else sys.exit(7)


def nothing(images, categories):
    """Has no value but for one image."""
    return 0.5 if len(images) == 1 else float("nan")


def words(images, categories):
    """Returns text."""
    return 0.5 if len(images) == 1 else "0.5"


def changes_its_mind(images, categories):
    """Returns other names than at first."""
    return {"first": 1, "kept": len(images)} if len(images) == 1 else {"kept": 2, "later": 3}
