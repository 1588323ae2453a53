"""The kind `od-api`: what `worker.py` asks for, from the Object Detection API."""

from evaluators import device
from evaluators.od_api import compat


class ObjectDetection:
    """Evaluates as the Object Detection API does.

    Nothing of TensorFlow is imported before `prepare`.
    """

    def prepare(self, start, begin):
        """Sets up the process, imports the libraries and returns their versions by name."""
        begin("importing TensorFlow")
        device.prepare_process(start.set_up())
        self._versions = compat.import_libraries()
        return self._versions

    def build(self, start, snapshot, begin):
        """Builds the model and reads the eval set."""
        from evaluators.od_api.evaluation import Evaluation

        self._evaluation = Evaluation(start.set_up(), self._versions, snapshot, begin)

    def describe(self):
        """Returns the `Ready` message."""
        return self._evaluation.describe()

    def forward(self, prefix, on_progress):
        """Runs one checkpoint through the model (`Evaluation.forward`)."""
        return self._evaluation.forward(prefix, on_progress)
