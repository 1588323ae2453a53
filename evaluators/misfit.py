"""What tells a checkpoint from the model of the configuration, in one line. Pure."""

import re

UNMATCHED = "unmatched_variables"
# The last layers of the OD API's box predictors, `keras_class_head.py` and `keras_box_head.py`.
_HEAD = re.compile(
    r"^model/(.*)_prediction_heads/(class|box)_\w+/(.*)_(?:class_predictor|box_encoder)_layers/(\d+)"
    r"/bias/\.ATTRIBUTES/VARIABLE_VALUE$"
)
_BOX = 4
HINT = (
    "give the pipeline.config that the trainer runs with; a run of another model needs a MODEL_DIR"
    " of its own"
)


def differences(expected, found, config="pipeline.config"):
    """Returns {key: sentence} of what differs, the shapes first, then the names, each sorted.

    Args:
        expected: {key: (shape, type's name)} of the model.
        found: the same of the checkpoint.
        config: the name of the file that says what the model is.
    """
    shapes = {
        key: "{} is {} in the checkpoint and {} by {}".format(
            _named(key), _shown(found[key]), _shown(expected[key]), config
        )
        for key in sorted(expected)
        if key in found and found[key] != expected[key]
    }
    missing = {key: _named(key) + " is missing" for key in sorted(expected) if key not in found}
    strange = {
        key: _named(key) + " is not of this model" for key in sorted(found) if key not in expected
    }
    return {**shapes, **missing, **strange}


def explain(differing, expected, found, classes=None, config="pipeline.config"):
    """Returns what a checkpoint is that differs, as the end of a sentence.

    Args:
        differing: what `differences` gives, not empty.
        expected, found: as for `differences`.
        classes: how many the configuration says, None where the architecture has no such number.
        config: the name of the file that says what the model is.
    """
    pairs = [(key, expected.get(key), found.get(key)) for key in differing]
    theirs = classes and classes_of(pairs, classes)
    if theirs:
        return other_classes(theirs, classes, config)
    first, more = next(iter(differing.values())), len(differing) - 1
    said = "does not match the model of {} in {} variable{} ({}{})"
    rest = "; and {} more".format(more) if more else ""
    return said.format(config, len(differing), "s" if more else "", first, rest)


def other_classes(theirs, classes, config="pipeline.config"):
    """Returns what a checkpoint is that has so many classes, and the configuration others."""
    said = "has {} class{}, {} says {}"
    return said.format(theirs, "" if theirs == 1 else "es", config, classes)


def classes_of_heads(shapes, slots_before=1):
    """Returns how many classes a checkpoint has by itself, None where its heads do not tell.

    An SSD's class head has so many channels for each box, with one more for the background, and its
    box head has four; a Faster R-CNN's second stage classifies one box at a time.

    Args:
        shapes: {key: shape} of the checkpoint.
        slots_before: how many of a box's channels are of no class.
    """
    heads = {}
    for key, shape in shapes.items():
        found = _HEAD.match(key)
        if found and len(shape) == 1:
            where, kind, which, layer = found.groups()
            layers = heads.setdefault((where, which), {}).setdefault(kind, {})
            layers[int(layer)] = shape[0]
    second = {at for at in heads if "_maskrcnn_box_predictor" in at[0]}
    counts = set()
    for at in second or heads:
        sizes = {kind: layers[max(layers)] for kind, layers in heads[at].items()}
        if sizes.keys() != {"class", "box"}:
            return None
        boxes = 1.0 if at in second else sizes["box"] / _BOX
        counts.add(sizes["class"] / boxes - slots_before)
    (count,) = counts if len(counts) == 1 else (0,)
    return int(count) if count >= 1 and count == int(count) else None


def classes_of(pairs, classes):
    """Returns how many classes explain every difference, None where no one number does.

    A predictor's last dimension is a multiple of the classes, or of one more for the background.

    Args:
        pairs: (key, (shape, type) of the model, the same of the checkpoint).
        classes: how many the model has.
    """
    common = None
    for _, ours, theirs in pairs:
        if not ours or not theirs or ours[1] != theirs[1]:
            return None
        ours, theirs = list(ours[0]), list(theirs[0])
        if len(ours) != len(theirs) or not ours or ours[:-1] != theirs[:-1]:
            return None
        possible = {
            theirs[-1] * (classes + others) // ours[-1] - others
            for others in (0, 1)
            if ours[-1] % (classes + others) == 0
            and theirs[-1] % (ours[-1] // (classes + others)) == 0
        }
        common = possible if common is None else common & possible
    likely = sorted(number for number in common or () if number > 0)
    return likely[0] if len(likely) == 1 else None


def _named(key):
    return key.replace("/.ATTRIBUTES/VARIABLE_VALUE", "")


def _shown(shape_and_type):
    shape, kind = shape_and_type
    return "{}[{}]".format(kind, ", ".join(map(str, shape)))
