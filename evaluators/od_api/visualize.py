"""The OD API's side-by-side pictures: detections on the left, ground truth on the right.

Drawn by the OD API's own function from its own evaluation dict, under the names its own loop gives
them, and left as PNG files in a folder that the daemon names, and takes them away from. A
score never depends on them: what cannot be drawn is told, and left out from then on.
"""

import hashlib
import pathlib
import shutil
import tempfile

import tensorflow as tf
from object_detection import inputs, model_lib_v2
from object_detection.core import standard_fields
from object_detection.utils import label_map_util

from evaluators.od_api import compat
from evaluators.protocol import Artefact

FIELDS = standard_fields.InputDataFields
# What one evaluation may leave behind; pictures beyond are left out.
MOST_BYTES = 64 << 20
# Evaluations whose pictures nobody took yet: the oldest make room.
MOST_FOLDERS = 4


class Visualizer:
    """Draws the first images of an eval set with the detections of each checkpoint.

    `eager_eval_loop` draws every image of the first `num_visualizations` batches, and names them by
    batch and place. Here it is as many, named so, whatever batch size runs.

    Args:
        pipeline: the Pipeline.
        eval_set: the EvalSet, which has the original pixels of those images.
        sets: the MetricSets, which make the OD API's evaluation dict.
        batches: how many batches of the pipeline's size to draw; 0 draws nothing.
        names: returns what images are called, by their identities.
        parent: where a folder for them is made, None for the temporary folder.
    """

    def __init__(self, pipeline, eval_set, sets, batches, names, parent=None):
        self._config = pipeline.configs["eval_config"]
        self._batch_size = pipeline.pipeline_batch_size
        self._images = batches * self._batch_size
        self._sets = sets
        self._names = names
        self._pixels = eval_set.original_pixels(self._images) if self._images else []
        self._index = label_map_util.create_category_index(sets.categories)
        self._edges = [(edge.start, edge.end) for edge in self._config.keypoint_edge] or None
        self._folder = None
        self._number = 0
        if self._pixels:
            compat.restore_font_sizes()
            try:
                self._folder = pathlib.Path(tempfile.mkdtemp(prefix="pictures-", dir=parent))
            except OSError as error:
                pipeline.warnings.append("no pictures for TensorBoard: {}".format(error))

    def wants(self, images):
        """Says whether an image is to be drawn when that many came before it."""
        return self._folder is not None and images < self._images

    def draw(self, batches):
        """Draws one checkpoint's pictures.

        Args:
            batches: (detections, features, labels) of the first batches, those that `wants` took.

        Returns:
            ([an Artefact for each PNG file, named after its tag], None) or ([], why there is none).
        """
        if not batches or self._folder is None:
            return [], None
        try:
            with tf.device("/CPU:0"):
                return self._draw(batches), None
        except Exception as error:
            self._folder = None
            return [], "the detections cannot be drawn: {}: {}".format(
                type(error).__name__, str(error)[:200]
            )

    def _draw(self, batches):
        self._number += 1
        folder = self._folder / str(self._number)
        _make_room(self._folder)
        folder.mkdir()
        written, drawn = 0, []
        for (detections, features, labels), pixels in zip(batches, self._pixels):
            images = self._names(features[inputs.HASH_KEY].numpy())
            for place, picture in enumerate(self._pictures(detections, features, labels, pixels)):
                if len(drawn) >= self._images:
                    break
                png = tf.io.encode_png(picture[0]).numpy()
                written += len(png)
                if written > MOST_BYTES:
                    return drawn
                name = "eval_side_by_side_{}_{}".format(*divmod(len(drawn), self._batch_size))
                path = folder / (name + ".png")
                path.write_bytes(png)
                sha256 = hashlib.sha256(png).hexdigest()
                drawn.append(Artefact("picture", name, sha256, str(path), image=images[place]))
        return drawn

    def _pictures(self, detections, features, labels, pixels):
        features = {**features, FIELDS.original_image: pixels}
        eval_dict = self._sets.eval_dict(detections, labels, features)
        return model_lib_v2.vutils.draw_side_by_side_evaluation_image(
            eval_dict,
            category_index=self._index,
            max_boxes_to_draw=self._config.max_num_boxes_to_visualize,
            min_score_thresh=self._config.min_score_threshold,
            use_normalized_coordinates=False,
            keypoint_edges=self._edges,
        )


def _make_room(parent):
    folders = sorted((p for p in parent.iterdir() if p.is_dir()), key=lambda p: int(p.name))
    for folder in folders[: max(0, len(folders) - MOST_FOLDERS + 1)]:
        shutil.rmtree(str(folder), ignore_errors=True)
