"""What people call the images, whose identities are hashes."""

import tensorflow as tf
from object_detection import inputs

from evaluators.od_api.dataset import FIRST_NUMBERED


class ImageNames:
    """Names of images by their identities.

    Args:
        source_ids: bytes, the `image/source_id` of the records.
    """

    def __init__(self, source_ids):
        self._source_ids = list(source_ids)

    def of(self, identities):
        """Returns the source_id of each image; of one without, its place in reading order."""
        hashes = tf.strings.to_hash_bucket_fast(self._source_ids or [b""], inputs.HASH_BINS)
        texts = (one.decode("utf-8", "replace") for one in self._source_ids)
        names = dict(zip(hashes.numpy().tolist(), texts))
        return [
            "image {}".format(one - FIRST_NUMBERED + 1)
            if one >= FIRST_NUMBERED
            else names.get(one, str(one))
            for one in map(int, identities)
        ]
