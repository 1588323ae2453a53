"""The kind `model-garden`: what `worker.py` asks for, from `official.vision`."""

from evaluators import device
from evaluators.model_garden import libraries


class ModelGarden:
    """Evaluates as `official.vision.train --mode=continuous_eval` does.

    Nothing of TensorFlow is imported before `prepare`.
    """

    def prepare(self, start, begin):
        """Sets up the process, imports the libraries and returns their versions by name."""
        begin("importing TensorFlow")
        device.prepare_process(start.set_up())
        self._versions = libraries.import_libraries()
        return self._versions

    def build(self, start, snapshot, begin):
        """Builds the model and reads the eval set."""
        from evaluators.model_garden.evaluation import Evaluation

        self._evaluation = Evaluation(start.set_up(), self._versions, snapshot, begin)

    def describe(self):
        """Returns the `Ready` message."""
        return self._evaluation.describe()

    def forward(self, prefix, on_progress):
        """Runs one checkpoint through the model (`Evaluation.forward`)."""
        return self._evaluation.forward(prefix, on_progress)
