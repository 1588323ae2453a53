"""Which COCO backend is taken where no package but pycocotools is there, as a JSON object.

Runs in the training interpreter, without TensorFlow. `fused` is what is taken where pycocotools
was compiled to compute an IoU in other steps.
"""

import json
import os
import pathlib
import sys

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
import numpy as np  # noqa: E402
from evaluators import coco  # noqa: E402
from evaluators.coco import overlaps  # noqa: E402

answer = {
    "hotcoco": coco.usable("hotcoco"),
    "chosen": coco.choose_backend("auto"),
    "exact": coco.choose_backend("auto") in coco.EXACT_BACKENDS,
}
iou = overlaps.mask_tools.iou
overlaps.mask_tools.iou = lambda *boxes: np.nextafter(iou(*boxes), 0)
overlaps.equal_pycocotools.cache_clear()
answer["fused"] = coco.choose_backend("auto")
json.dump(answer, ANSWER)
ANSWER.close()
