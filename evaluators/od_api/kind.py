"""The kind `od-api`: what `worker.py` asks for, from the Object Detection API."""

from evaluators.kinds import Kind


class ObjectDetection(Kind):
    """Evaluates as the Object Detection API does."""

    JOBS = (*Kind.JOBS, "part")
    LIBRARIES = "evaluators.od_api.compat"
    EVALUATION = "evaluators.od_api.evaluation"
