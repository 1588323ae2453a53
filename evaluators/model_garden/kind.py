"""The kind `model-garden`: what `worker.py` asks for, from `official.vision`."""

from evaluators.kinds import Kind


class ModelGarden(Kind):
    """Evaluates as `official.vision.train --mode=continuous_eval` does."""

    LIBRARIES = "evaluators.model_garden.libraries"
    EVALUATION = "evaluators.model_garden.evaluation"
