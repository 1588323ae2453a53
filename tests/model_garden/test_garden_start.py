"""What cannot be evaluated is refused by name, and what Model Garden does silently is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, draw_shapes, run_program
from garden_runs import SHAPES, GardenRun, garden_run

pytestmark = [pytest.mark.tensorflow, pytest.mark.equality, pytest.mark.timeout(1800)]

DATA = "task.validation_data."
# An experiment of the user's own: of a file, of a module in the folder of the trainer, and the part
# that both import from beside them.
OWN = """
from official.core import exp_factory
from own_part import make

@exp_factory.register_config_factory("{0}")
def {0}():
    return make()
"""
PART = """
from official.vision.configs import retinanet

def make():
    return retinanet.retinanet_resnetfpn_coco()
"""
ANOTHER_TRAINER = """
import gin
from official.core import base_trainer

@gin.configurable
class MyTrainer(base_trainer.Trainer):
    pass
"""


@pytest.fixture(scope="module")
def run(od_python: str, tmp_path_factory: pytest.TempPathFactory) -> GardenRun:
    return garden_run("retinanet", od_python, tmp_path_factory)


@pytest.fixture(scope="module")
def found(run: GardenRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What becomes of each case, all of them started by one process."""
    folder = tmp_path_factory.mktemp("cases")
    cases = make_cases(run, folder)
    plain = {"experiment": run.job.experiment, "config_file": str(run.config_file)}
    asked = [{**plain, **options} for options in cases.values()]
    said = run_program(run.python, PROGRAMS / "garden_cases.py", cwd=folder, asked=asked)
    return dict(zip(cases, json.loads(said), strict=True))


def make_cases(run: GardenRun, folder: Path) -> dict[str, dict[str, Any]]:
    """Options by case, with the files that they need."""
    others: dict[str, dict[str, Any]] = {
        "named": {"images": 8, "size": [64, 64]},
        "shared": {**SHAPES["val"], "images": 4, "seed": 3},
    }
    draw_shapes(run.python, folder, others)
    files = {
        "own.py": OWN.format("mine"),
        "own_module.py": OWN.format("ours"),
        "own_part.py": PART,
        "another_trainer.py": ANOTHER_TRAINER,
        "syntax.py": "def mine(:\n",
        "ends.py": "import sys\nsys.exit('no flags')\n",
        "silent.py": "",
        "other/params.yaml": run.config_file.read_text(),
        "other/operative_config.train.gin": "create_trainer.trainer_cls = @MyTrainer\n",
    }
    (folder / "other").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "broken.py").write_text("import no_such_module\n")
    (folder / "broken.yaml").write_text("task: [unclosed\n")
    text = run.config_file.read_text()
    (folder / "newer.yaml").write_text(text.replace("focal_loss_alpha:", "focal_loss_beta:"))
    (folder / "override.yaml").write_text("task: {validation_data: {global_batch_size: 10}}\n")
    shared = f"{run.records / 'val.tfrecord'},{folder / 'shared.tfrecord'}"
    for name, ids in {"more": range(1, 41), "fewer": range(1, 21)}.items():
        images = [{"id": number, "height": 64, "width": 64} for number in ids]
        categories = [{"id": 1, "name": "rect"}, {"id": 2, "name": "ellipse"}]
        described = {"images": images, "annotations": [], "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(described))

    def override(*given: object) -> dict[str, Any]:
        return {"params_overrides": [str(one) for one in given]}

    def data(**fields: Any) -> dict[str, Any]:
        return override(json.dumps({"task": {"validation_data": fields}}))

    return {
        "sound": {},
        "moved": {"config_file": str(_copy(run.config_file, folder / "elsewhere.yaml"))},
        "another batch": override(folder / "override.yaml"),
        "steps": override("trainer.validation_steps=2"),
        "whole": {"whole_eval_set": True},
        "own experiment": {"experiment": "mine", "garden_imports": [str(folder / "own.py")]},
        "own module": {"experiment": "ours", "garden_imports": ["own_module"]},
        "shared ids": data(input_path=shared),
        "more annotated": override(f"task.annotation_file={folder / 'more.json'}"),
        "replicas": override("runtime.num_gpus=8"),
        "unknown experiment": {"experiment": "retinanet_resnetfpn_cocoo"},
        "unknown import": {"garden_imports": ["no_such_package.at_all"]},
        "broken import": {"garden_imports": [str(folder / "broken.py")]},
        "wrong syntax": {"garden_imports": [str(folder / "syntax.py")]},
        "an import that ends": {"garden_imports": [str(folder / "ends.py")]},
        "an import of nothing": {
            "experiment": "theirs",
            "garden_imports": [str(folder / "silent.py")],
        },
        "no file": {"config_file": str(folder / "gone.yaml")},
        "broken file": {"config_file": str(folder / "broken.yaml")},
        "another version": {"config_file": str(folder / "newer.yaml")},
        "another experiment": {"experiment": "resnet_imagenet"},
        "unknown override": override("task.modle.num_classes=3"),
        "wrong type": override("task.validation_data.global_batch_size=many"),
        "no records": data(input_path=str(folder / "gone*.tfrecord")),
        "no data": data(input_path=""),
        "no step": override("trainer.validation_steps=0"),
        "fewer than a batch": data(global_batch_size=64),
        "other detections": override("task.max_num_eval_detections=50"),
        "names as source_id": data(input_path=str(folder / "named.tfrecord")),
        "no annotations": override(f"task.annotation_file={folder / 'gone.json'}"),
        "broken annotations": override(f"task.annotation_file={folder / 'own.py'}"),
        "fewer annotated": override(f"task.annotation_file={folder / 'fewer.json'}"),
        "no records but a text": data(input_path=str(folder / "own.py")),
        # Last: gin keeps what it read.
        "another trainer": {
            "config_file": str(folder / "other" / "params.yaml"),
            "garden_imports": [str(folder / "another_trainer.py")],
        },
    }


def _copy(path: Path, to: Path) -> Path:
    to.write_text(path.read_text())
    return to


# The refusal's code, and what its message and its hint name.
REFUSED = {
    "unknown experiment": ("unknown_experiment", "cocoo", "retinanet_resnetfpn_coco"),
    "unknown import": ("bad_garden_import", "no_such_package.at_all", "PYTHONPATH"),
    "broken import": ("bad_garden_import", "broken.py", "file"),
    "wrong syntax": ("bad_garden_import", "syntax.py) cannot be imported: SyntaxError", "file"),
    "an import that ends": ("bad_garden_import", "ends.py", "file"),
    "an import of nothing": ("unknown_experiment", "theirs", "silent.py) registers none"),
    "no file": ("missing_file", "gone.yaml", "params.yaml"),
    "broken file": ("bad_params", "broken.yaml", "YAML"),
    "another version": ("bad_params", "task.losses.focal_loss_beta", "version"),
    "another experiment": ("bad_params", "params.yaml", "another experiment"),
    "unknown override": ("bad_params", "task.modle", "version"),
    "wrong type": ("bad_params", "global_batch_size (many) must be a number", "fails later"),
    "no records": ("missing_file", "gone*.tfrecord", "the trainer"),
    "no data": ("bad_params", "task.validation_data", "input_path"),
    "no step": ("bad_params", "trainer.validation_steps (0)", "validation_steps=-1"),
    "fewer than a batch": ("bad_records", "no image of 30 records", "64) that is not full"),
    "other detections": ("unsupported", "max_num_eval_detections (50)", "=100"),
    "names as source_id": ("bad_records", "source_id", "regenerate_source_id"),
    "no annotations": ("missing_file", "gone.json", "annotation_file=''"),
    "broken annotations": ("bad_annotations", "own.py", "JSON"),
    "fewer annotated": ("bad_annotations", "lacks 4 images", "annotation_file=''"),
    "no records but a text": ("bad_records", "cannot be read", "retinanet_resnetfpn_coco"),
    "another trainer": ("unsupported", "MyTrainer", "continuous_eval"),
}
LEFT_OUT = "{} of 30 images are left out of every evaluation by {}"
DROPPED = DATA + "drop_remainder"
# How many images are measured, and how the only warning begins; "" for none.
TOLD = {
    "sound": (24, LEFT_OUT.format(6, DROPPED)),
    "another batch": (30, ""),
    "steps": (16, LEFT_OUT.format(14, DROPPED + " and trainer.validation_steps (2)")),
    "whole": (30, ""),
    "own experiment": (24, LEFT_OUT.format(6, DROPPED)),
    "own module": (24, LEFT_OUT.format(6, DROPPED)),
    "shared ids": (32, "4 of 32 images share their source_id with another"),
    "more annotated": (24, LEFT_OUT.format(6, DROPPED)),
    "replicas": (24, "the training runs on several replicas"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    case: str, found: dict[str, dict[str, Any]]
):
    code, named, hinted = REFUSED[case]
    said = found[case]
    assert said.get("code") == code, said
    assert named in said["message"] and hinted in said["hint"]
    assert "\n" not in said["message"] and len(said["message"]) < 600


@pytest.mark.parametrize("case", TOLD)
def test_what_model_garden_leaves_out_silently_is_told(case: str, found: dict[str, dict[str, Any]]):
    images, begins = TOLD[case]
    said = found[case]
    assert said.get("images") == images, said
    assert any(one.startswith(begins) for one in said["warnings"] or [""])
    if case == "more annotated":
        assert any("has 16 images that no evaluation sees" in one for one in said["warnings"])


def test_a_fingerprint_changes_with_what_may_change_a_number_and_with_nothing_else(
    found: dict[str, dict[str, Any]],
):
    plain = found["sound"]["fingerprint"]
    assert found["moved"]["fingerprint"] == plain
    others = ["another batch", "steps", "whole", "shared ids", "more annotated"]
    others += ["own experiment", "own module"]
    prints = {found[case]["fingerprint"] for case in others}
    assert len(prints) == len(others) and plain not in prints
