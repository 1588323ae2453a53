"""COCO's metrics by pycocotools, which the other backends are held to, or by what imitates it."""

import numpy as np
from pycocotools import coco, cocoeval
from pycocotools import mask as mask_tools


def evaluate(truth, detections):
    """Returns arrays of precision and recall, see `coco.precision_and_recall`."""
    known, found = datasets(coco.COCO, truth, detections)
    return arrays(cocoeval.COCOeval(known, found, iouType=truth.iou_type))


def arrays(evaluator):
    """Returns what a COCOeval computes, as arrays of precision and recall."""
    evaluator.evaluate()
    evaluator.accumulate()
    found = evaluator.eval
    shape = found["counts"]
    recall_shape = (shape[0], *shape[2:])
    precision = np.asarray(found["precision"]).reshape(shape)
    return precision, np.asarray(found["recall"]).reshape(recall_shape)


def images_of(truth):
    """Returns the images as a COCO data set has them."""
    return [{"id": i, "height": h, "width": w} for i, (h, w) in truth.images.items()]


def datasets(factory, truth, detections):
    """Returns ground truth and detections as two data sets of dicts."""
    images = images_of(truth)
    pairs = []
    for columns, last in ((truth.columns, "iscrowd"), (detections, "score")):
        annotations = _annotations(columns, last, truth.with_masks)
        dataset = factory()
        dataset.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": truth.categories,
        }
        dataset.createIndex()
        pairs.append(dataset)
    return pairs


def _annotations(columns, last, with_masks):
    table = columns.table()
    annotations = []
    for number, row in enumerate(table.tolist(), start=1):
        image, x, y, width, height, value, category, area = row
        annotation = {
            "id": number,
            "image_id": int(image),
            "category_id": int(category),
            "bbox": [x, y, width, height],
            "area": area if last == "iscrowd" or columns.areas_count else width * height,
            "iscrowd": int(value) if last == "iscrowd" else 0,
            last: int(value) if last == "iscrowd" else value,
        }
        annotations.append(annotation)
    if with_masks:
        for annotation, code in zip(annotations, columns.rles):
            annotation["segmentation"] = code
            if last == "score" and not columns.areas_count:
                annotation["area"] = float(mask_tools.area(code))
    return annotations
