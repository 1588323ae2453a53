"""The kinds of evaluation there are, by the name that `start` gives.

A kind is a class; `worker.py` makes one and asks it, in this order:

- `prepare(start, begin)` imports its libraries, and returns their versions by name; it calls
  `begin` with the name of each part of the work, and so does the next one
- `build(start, snapshot, begin)` builds what stays the same from checkpoint to checkpoint
- `describe()` returns the `Ready` message
- `forward(prefix, on_progress)` runs one checkpoint through the model. It calls `on_progress` with
  (images done, images in all), again and again: an evaluation is cancelled there. It returns a
  function that is called when nothing else of the worker runs, and returns another one, which
  computes the metrics while the next checkpoint may run, and returns the fields of `Result` but
  its id. Where it can, it adds `replicates`: what `coco.resampler` returns, whose `compute` is
  called once the result is sent
- where its `JOBS` have `part`: `forward(prefix, on_progress, others)` while other workers run parts
  of the eval set; `others` has for each of these a function that waits for its file and returns the
  path, or None. `write_part(request, on_progress)` is what they are asked for: it runs the part
  that a `Part` names, writes the file, and returns the fields of `PartWritten` but its id
- `average(request, on_progress)`, where its `JOBS` have `average`, writes what an `Average` asks
  for, and returns the fields of `Averaged` but its id; `on_progress` is as for `forward`

A set-up that cannot be evaluated raises `protocol.Refusal`, a checkpoint without a score
`protocol.Failure`. The capabilities are the runtime's, and are said by it.
"""

import importlib

from evaluators import device, machine
from evaluators.protocol import Failure, Refusal

KINDS = {
    "od-api": "evaluators.od_api.kind:ObjectDetection",
    "model-garden": "evaluators.model_garden.kind:ModelGarden",
}


class Kind:
    """What kinds of TensorFlow's have in common. Nothing of it is imported before `prepare`.

    Attributes:
        LIBRARIES: name of the module whose `import_libraries` imports what the kind needs.
        EVALUATION: name of the module with the class `Evaluation`.
        JOBS: what it may be asked for.
    """

    LIBRARIES = ""
    EVALUATION = ""
    JOBS = ("evaluate", "average")

    def prepare(self, start, begin):
        """Sets up the process, imports the libraries and returns their versions by name."""
        begin("importing TensorFlow")
        device.prepare_process(start.set_up())
        self._versions = importlib.import_module(self.LIBRARIES).import_libraries()
        return self._versions

    def build(self, start, snapshot, begin):
        """Builds the model and reads the eval set."""
        module = importlib.import_module(self.EVALUATION)
        self._evaluation = module.Evaluation(start.set_up(), self._versions, snapshot, begin)

    def describe(self):
        """Returns the `Ready` message."""
        ready = self._evaluation.describe()
        ready.machine = machine.parts(ready.device)
        return ready

    def forward(self, prefix, on_progress, *others):
        """Runs one checkpoint through the model, see the `Evaluation` of the kind."""
        return self._evaluation.forward(prefix, on_progress, *others)

    def write_part(self, request, on_progress):
        """Runs a part of the eval set through it, see the `Evaluation` of the kind."""
        return self._evaluation.write_part(request.prefix, request, on_progress)

    def average(self, request, on_progress):
        """Writes the average of checkpoints, see `evaluators.averages`.

        Returns:
            the fields of `Averaged` but its id.
        """
        from evaluators import averages

        prefix, images = request.prefix, request.recompute_batch_norm
        if images and not hasattr(self._evaluation, "recompute_batch_norm"):
            text = "of this kind of evaluation batch normalisation cannot be computed anew"
            raise Failure("unsupported", text, permanent=True)
        fields = {"variables": averages.write(request.prefixes, prefix)}
        if images:
            values, told = self._evaluation.recompute_batch_norm(prefix, images, on_progress)
            averages.replace(prefix, values)
            fields["batch_norm"] = told
        return fields


def make(name):
    """Returns a new evaluator of the kind.

    Raises:
        Refusal: there is no such kind.
    """
    if name not in KINDS:
        raise Refusal(
            "unsupported",
            "kind ({}) is not one of {}".format(name, ", ".join(KINDS)),
            "daemon and evaluators must come from the same installation",
        )
    module, _, kind = KINDS[name].partition(":")
    return getattr(importlib.import_module(module), kind)()
