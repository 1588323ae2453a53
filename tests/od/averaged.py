"""Says what an average holds, and what the OD API makes of it.

`averaged.py PIPELINE AVERAGE EXPORTED PREFIX...` prints one JSON object: what `means.py` says,
and what the OD API's own loop gives (`metrics`). Its exporter writes the model into EXPORTED.
"""

import json
import os
import pathlib
import sys

from google.protobuf import text_format
from object_detection import exporter_lib_v2
from object_detection.protos import pipeline_pb2

import means
import reference_eval


def export(pipeline, average, folder):
    """Exports as `exporter_main_v2` does, from a folder whose `checkpoint` names the average."""
    source = pathlib.Path(average)
    state = 'model_checkpoint_path: "{}"\n'.format(source.name)
    (source.parent / "checkpoint").write_text(state)
    config = pipeline_pb2.TrainEvalPipelineConfig()
    text_format.Merge(pathlib.Path(pipeline).read_text(), config)
    exporter_lib_v2.export_inference_graph(
        "float_image_tensor", config, str(source.parent), str(folder)
    )


def main():
    """Keeps stdout for the answer, since pycocotools prints there."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pipeline, average, exported, *prefixes = sys.argv[1:]
    told = means.compare(average, prefixes)
    told["metrics"] = reference_eval.reference(pipeline, [average])["metrics"][average]
    export(pipeline, average, exported)
    json.dump(told, answer)
    answer.close()


if __name__ == "__main__":
    sys.exit(main())
