"""Non-maximum suppression of few boxes: Model Garden's own results, without its empty tiles.

Model Garden suppresses boxes of one category by tiles of 512 and compares each with all others in
the tile, be they there or not: boxes below the score threshold are zeros that suppress nothing. A
trained detector leaves a few dozen of 5,000. Here the zeros behind the last box are left out.

Its results are those of its own steps, also where these are no greedy suppression: it asks for an
overlap of more than 0.5, whatever the threshold is, and ends when the sum of a tile's overlaps has
changed by no more than 0.5. That sum is rounded, so where rounding could decide it is taken over
the whole tile, as Model Garden does.
"""

import numpy as np
import tensorflow as tf

TILE = 512
# Beyond what rounding does to the sums of a tile: 262,144 numbers, each rounded to 6e-8 of the sum.
ROUNDING = 0.05
TRIED_THRESHOLDS = (0.3, 0.5, 0.7)
TRIED_BOXES = (3, 60, 600)
TRIED_KEPT = 100


def install():
    """Lets Model Garden leave empty tiles out, if that gives what its own way gives here.

    Returns:
        Whether it does: False where this version has no such function, or it found other boxes.
    """
    try:
        from official.vision.ops import box_ops, nms

        theirs = nms.sorted_non_max_suppression_padded
        ours = _shortened(theirs, box_ops.bbox_overlap)
        if nms.NMS_TILE_SIZE != TILE or not all(map(np.array_equal, _try(theirs), _try(ours))):
            return False
    except (ImportError, AttributeError, TypeError, ValueError, tf.errors.OpError):
        return False
    nms.sorted_non_max_suppression_padded = ours
    return True


def _shortened(theirs, overlaps_of):
    """Returns a function of the arguments and results of `sorted_non_max_suppression_padded`."""

    def suppress(scores, boxes, max_output_size, iou_threshold):
        is_there = tf.reduce_any(tf.not_equal(boxes, 0), axis=[0, 2])
        places = tf.range(1, tf.shape(boxes)[1] + 1)
        count = tf.reduce_max(tf.where(is_there, places, tf.zeros_like(places)))
        shortest = tf.minimum(max_output_size, tf.shape(boxes)[1])

        def few():
            front = tf.maximum(count, 1)
            found = (scores[:, :front], boxes[:, :front], max_output_size, iou_threshold)
            return suppress_in_one_tile(*found, overlaps_of)

        def many():
            front = tf.maximum(count, shortest)
            return theirs(scores[:, :front], boxes[:, :front], max_output_size, iou_threshold)

        found_scores, found_boxes = tf.cond(count <= TILE, few, many)
        shape = [boxes.shape[0], max_output_size]
        return tf.ensure_shape(found_scores, shape), tf.ensure_shape(found_boxes, [*shape, 4])

    return suppress


def suppress_in_one_tile(scores, boxes, max_output_size, iou_threshold, overlaps_of):
    """Suppresses boxes as Model Garden does, of which no image has more than a tile.

    Args:
        scores: [batch, boxes], falling.
        boxes: [batch, boxes, 4]; one of zeros is none.
        max_output_size: how many to keep.
        iou_threshold: an overlap from which on a box suppresses later ones.
        overlaps_of: Model Garden's `bbox_overlap`.

    Returns:
        Scores [batch, max_output_size] and boxes [batch, max_output_size, 4], zeros at the end.
    """
    scores, boxes = tf.cast(scores, tf.float32), tf.cast(boxes, tf.float32)
    count = tf.shape(boxes)[1]
    places = tf.range(count)
    overlaps = overlaps_of(boxes, boxes)
    is_later = places[tf.newaxis, :] > places[:, tf.newaxis]
    overlaps *= tf.cast(tf.logical_and(is_later, overlaps >= iou_threshold), tf.float32)
    _, overlaps = tf.while_loop(
        lambda goes_on, _: goes_on, _suppress_again, [tf.constant(True), overlaps]
    )
    is_kept = tf.reduce_any(boxes > 0, axis=2) & (tf.reduce_sum(overlaps, axis=1) <= 0)
    # The kept ones first, in their order.
    order = tf.cast(is_kept, tf.int32) * (count - places)
    missing = tf.maximum(max_output_size - count, 0)
    order = tf.pad(order, [[0, 0], [0, missing]])
    found = count - tf.math.top_k(order, max_output_size)[0]
    found = tf.minimum(found, count - 1)
    kept = tf.reduce_sum(tf.cast(is_kept, tf.int32), axis=1)
    is_found = tf.range(max_output_size)[tf.newaxis, :] < kept[:, tf.newaxis]
    kept_boxes = tf.gather(boxes, found, batch_dims=1)
    kept_scores = tf.gather(scores, found, batch_dims=1)
    return (
        tf.where(is_found, kept_scores, tf.zeros_like(kept_scores)),
        tf.where(is_found[..., tf.newaxis], kept_boxes, tf.zeros_like(kept_boxes)),
    )


def _suppress_again(_, overlaps):
    """One more of Model Garden's steps; returns whether another follows, and what overlaps yet."""
    can_suppress = tf.cast(tf.reduce_max(overlaps, axis=1) <= 0.5, tf.float32)
    strongest = tf.reduce_max(can_suppress[:, :, tf.newaxis] * overlaps, axis=1)
    left = tf.cast(strongest <= 0.5, tf.float32)[:, :, tf.newaxis] * overlaps
    removed = tf.reduce_sum(overlaps - left, axis=[1, 2])
    bound = ROUNDING * tf.reduce_sum(overlaps, axis=[1, 2])
    is_sure = tf.reduce_any(removed > 1 + bound) | tf.reduce_all(tf.equal(removed, 0))
    goes_on = tf.cond(
        is_sure,
        lambda: tf.reduce_any(removed > 0),
        lambda: tf.reduce_any(_sum_of_tile(overlaps) - _sum_of_tile(left) > 0.5),
    )
    return goes_on, left


def _sum_of_tile(overlaps):
    missing = TILE - tf.shape(overlaps)[1]
    return tf.reduce_sum(tf.pad(overlaps, [[0, 0], [0, missing], [0, missing]]), axis=[1, 2])


def _try(function):
    """Yields what it finds among boxes that overlap, few and many."""
    draws = np.random.RandomState(1)
    traced = tf.function(function, reduce_retracing=True)
    for threshold in TRIED_THRESHOLDS:
        for count in TRIED_BOXES:
            corners = draws.rand(2, count, 2) * 4
            boxes = np.concatenate([corners, corners + 0.5 + draws.rand(2, count, 2)], axis=2)
            boxes[0, count // 2 :] = 0
            scores = -np.sort(-draws.rand(2, count), axis=1)
            given = tf.constant(scores, tf.float32), tf.constant(boxes, tf.float32)
            for one in traced(*given, TRIED_KEPT, tf.constant(threshold)):
                yield one.numpy()
