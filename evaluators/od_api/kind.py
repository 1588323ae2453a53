"""The kind `od-api`: what `worker.py` asks for, from the Object Detection API."""

from evaluators.kinds import Kind


class ObjectDetection(Kind):
    """Evaluates as the Object Detection API does."""

    LIBRARIES = "evaluators.od_api.compat"
    EVALUATION = "evaluators.od_api.evaluation"
    JOBS = ("evaluate", "average")

    def average(self, request, on_progress):
        """Writes the average of checkpoints, see `evaluators.averages`.

        Returns:
            the fields of `Averaged` but its id.
        """
        from evaluators import averages

        prefix, images = request.prefix, request.recompute_batch_norm
        fields = {"variables": averages.write(request.prefixes, prefix)}
        if images:
            values, told = self._evaluation.recompute_batch_norm(prefix, images, on_progress)
            averages.replace(prefix, values)
            fields["batch_norm"] = told
        return fields
