"""Identifies an evaluation: two scores compare only when their fingerprints are equal."""

import hashlib
import json

import tensorflow as tf

from evaluators.protocol import Failure

CHUNK_BYTES = 4 << 20


def file_sha256(path):
    """Returns the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)


def digest(parts):
    """Returns the fingerprint: the hex sha256 of the parts as JSON with sorted keys."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class FileStates:
    """Notices that files changed on disk since they were first seen."""

    def __init__(self, paths):
        self._seen = {path: self._state(path) for path in paths}

    def changed(self):
        """Returns the paths whose length or time of change differs, or which are gone."""
        return [path for path, state in self._seen.items() if self._state(path) != state]

    def require_unchanged(self):
        """Raises Failure where a file changed: a score would be of another eval set."""
        changed = self.changed()
        if changed:
            raise Failure(
                "dataset_changed",
                "changed since the evaluator started: " + ", ".join(changed),
                permanent=False,
            )

    @staticmethod
    def _state(path):
        try:
            stat = tf.io.gfile.stat(path)
        except tf.errors.OpError:
            return None
        return stat.length, stat.mtime_nsec
