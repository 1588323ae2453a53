"""doctor: what is wrong is named with a remedy, what hangs is left, and nothing is disturbed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from faults import need_strace
from folder_source import source_of
from paces import od_pace
from pages import page
from watching import CLI, ROOT, STUB, Watcher, cli, wait_until

from watcher.config import Settings
from watcher.doctor import cadence, folders, service, space, state, training
from watcher.doctor import device as devices
from watcher.doctor.finding import Finding, exit_code
from watcher.doctor.limits import Check, look_at
from watcher.doctor.settings import open_to_all
from watcher.errors import StoreError
from watcher.evaluation.gpus import Gpu, Listing
from watcher.files.mounts import mount_of
from watcher.launch.od_trainer import OdTrainer
from watcher.launch.processes import Trainer, trainers, training_of
from watcher.types import FoundCheckpoint

VERSIONS = {
    "python": "3.11.7",
    "tensorflow": "2.13.1",
    "tf_models_official": "2.15.0",
    "numpy": "1.24.3",
}
FACTS = {
    "versions": VERSIONS,
    "num_steps": 2000,
    "images": 500,
    "coco_backend": "numpy",
    "metrics_sets": ["coco_detection_metrics"],
}


def interpreter(folder: Path, script: str) -> Path:
    """A program to be given as --python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def sound(folder: Path, **changed: object) -> Path:
    """An interpreter with a sound training environment, as its answer says."""
    lines = [
        {"type": "fact", "name": name, "value": value}
        for name, value in {**FACTS, **changed}.items()
    ]
    text = "\n".join(json.dumps(line) for line in [*lines, {"type": "done"}])
    return interpreter(folder, f"cat > /dev/null; cat <<'EOF'\n{text}\nEOF")


def doctor(watcher: Watcher, python: Path | str, *flags: object, code: int = 0, **variables: str):
    """Run the command with --json, and return the findings by check; the worst of each counts."""
    arguments = ["doctor", watcher.model_dir, "--pipeline-config", watcher.pipeline, "--json"]
    ended = cli(*arguments, "--python", python, *flags, **variables)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return worst(json.loads(ended.stdout)["findings"])


def worst(findings: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    order = ["ok", "note", "warning", "error"]
    return {f["check"]: f for f in sorted(findings, key=lambda f: order.index(f["severity"]))}


def save(model_dir: Path, saves: int, size: int = 1000) -> None:
    manager = Manager(model_dir)
    for number in range(1, saves + 1):
        manager.save(100 * number, model_tensors(size, str(number)))


def settings(model_dir: Path, **changed: object) -> Settings:
    return Settings.of(model_dir=str(model_dir), pipeline_config="p.config", **changed)


# The command


def test_nothing_wrong_is_exit_code_0_and_leaves_nothing_behind(watcher: Watcher):
    save(watcher.model_dir, 2)
    python = sound(watcher.model_dir.parent)
    before = {path: path.stat().st_mtime_ns for path in watcher.model_dir.parent.rglob("*")}
    found = doctor(watcher, python)
    assert {"error"}.isdisjoint(finding["severity"] for finding in found.values())
    assert "a combination that was run" in found["environment"]["message"]
    assert "2 checkpoints, ckpt-2" in found["model_dir"]["message"]
    after = {path: path.stat().st_mtime_ns for path in watcher.model_dir.parent.rglob("*")}
    assert after == before


def test_a_warning_is_exit_code_1_only_when_strict(watcher: Watcher):
    python = sound(watcher.model_dir.parent, versions={**VERSIONS, "tensorflow": "2.15.0"})
    assert doctor(watcher, python)["environment"]["severity"] == "warning"
    doctor(watcher, python, "--strict", code=1)
    fine, warned, wrong = (Finding("x", severity, "") for severity in ("note", "warning", "error"))
    assert [exit_code([fine], strict=True), exit_code([warned], strict=False)] == [0, 0]
    assert [exit_code([warned], strict=True), exit_code([wrong], strict=False)] == [1, 1]


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_each_remedy_stands_below_its_finding(watcher: Watcher, columns: int):
    arguments = ["doctor", watcher.model_dir, "--pipeline-config", watcher.pipeline]
    ended = cli(*arguments, "--python", "/no/python", COLUMNS=str(columns))
    assert ended.returncode == 1
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    at = next(number for number, line in enumerate(lines) if line.startswith("error"))
    assert "python (/no/python) does not exist" in lines[at]
    assert lines[at + 1].strip().startswith("-> give --python")
    assert lines[-1].startswith("1 error and ")


def test_beside_a_run_it_tells_of_the_watcher_and_of_its_pace(watcher: Watcher):
    save(watcher.model_dir, 4)
    daemon = watcher.start()
    wait_until(lambda: set(watcher.states().values()) == {"scored"}, "all are scored")
    found = doctor(watcher, sound(watcher.model_dir.parent))
    assert f"process {daemon.pid} runs" in found["watcher"]["message"]
    assert "WAL" in found["database"]["message"]
    assert "20 checkpoints in 2000 steps, one every 100" in found["saving"]["message"]
    assert "hard links" in found and found["hard links"]["severity"] == "ok"
    for number in range(1, 5):  # written slowly, and found together
        os.utime(watcher.model_dir / f"ckpt-{number}.index", (0, 1e9 + 30 * number))
    pace = doctor(watcher, sound(watcher.model_dir.parent))["pace"]
    assert pace["severity"] == "note" and "when the watcher started" in pace["message"]
    assert watcher.stop() == 0
    assert doctor(watcher, sound(watcher.model_dir.parent))["watcher"]["severity"] != "error"


def test_a_settings_file_with_passwords_that_everyone_may_read_is_a_warning(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('notify = ["mailto://user:secret@example.org"]\n')
    file.chmod(0o644)
    (finding,) = open_to_all(file)
    assert (finding.severity, finding.remedy) == ("warning", f"chmod o= {file}")
    assert "secret" not in finding.message
    file.chmod(0o640)
    assert open_to_all(file) == []
    file.write_text("top_k = 3\n")
    file.chmod(0o644)
    assert open_to_all(file) == []


def test_without_settings_those_of_the_last_run_count(watcher: Watcher):
    save(watcher.model_dir, 1)
    assert watcher.run("--queue-policy", "latest") == 0
    ended = cli("doctor", watcher.model_dir, "--json")
    found = worst(json.loads(ended.stdout)["findings"])
    assert "as at the last start" in found["settings"]["message"]
    assert str(STUB) in found["environment"]["message"]
    again = cli("doctor", watcher.model_dir, "--json", "--python", "/no/python")
    assert "/no/python" in worst(json.loads(again.stdout)["findings"])["environment"]["message"]
    alone = ("--only-given", "--pipeline-config", watcher.pipeline)
    other = cli("doctor", watcher.model_dir, "--json", *alone)
    assert "settings" not in worst(json.loads(other.stdout)["findings"])


def test_a_wrong_setting_is_one_error_line_as_everywhere(watcher: Watcher):
    arguments = ["doctor", watcher.model_dir, "--pipeline-config", watcher.pipeline]
    ended = cli(*arguments, "--top-k", "many")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: top_k (many)")


def test_a_folder_that_is_not_there_is_said_before_the_missing_pipeline(tmp_path: Path):
    ended = cli("doctor", tmp_path / "nope")
    assert ended.returncode == 1
    error, hint = ended.stderr.splitlines()
    assert (
        error
        == f"error: model_dir ({tmp_path}/nope) does not exist, and pipeline_config is not set"
    )
    assert "path right?" in hint


def test_before_the_first_run_the_steps_are_read_from_the_checkpoints_that_lie_there(
    watcher: Watcher,
):
    save(watcher.model_dir, 4)
    (watcher.model_dir / "ckpt-4.index").write_bytes(b"unfinished")
    found = doctor(watcher, sound(watcher.model_dir.parent))["saving"]["message"]
    assert "20 checkpoints in 2000 steps, one every 100 (as the checkpoints in MODEL_DIR" in found


def test_copied_files_tell_no_pace_and_the_last_number_is_the_newest(watcher: Watcher):
    save(watcher.model_dir, 12)
    # As `cp` leaves them: all at once, in the order of their names.
    names = sorted(f"ckpt-{number}" for number in range(6, 13))
    for place, name in enumerate(names):
        os.utime(watcher.model_dir / f"{name}.index", (1e9, 1e9 + 0.004 * place))
    found = doctor(watcher, sound(watcher.model_dir.parent))
    assert "7 checkpoints, ckpt-12 written" in found["model_dir"]["message"]
    assert found["pace"]["severity"] == "note"
    assert "apart, too little for a training (copied files?)" in found["pace"]["message"]


def test_a_metric_that_no_evaluation_of_the_run_has_is_the_error_that_run_gives(
    watcher: Watcher,
):
    save(watcher.model_dir, 1)
    assert watcher.run() == 0
    python = sound(watcher.model_dir.parent)
    # The stub is the interpreter that evaluated, though it has no answer for doctor.
    assert "metric" not in doctor(watcher, STUB, code=1)
    found = doctor(watcher, STUB, "--metric", "mAP@50IOU", code=1)["metric"]
    assert found["severity"] == "error"
    assert watcher.run("--metric", "mAP@50IOU") == 1
    *_, error, hint = watcher.log.read_text().splitlines()
    assert error == f"error: {found['message']}" and hint == f"hint: {found['remedy']}"
    assert "there are: DetectionBoxes_Precision/mAP, Loss/total_loss" in found["remedy"]
    near = doctor(watcher, STUB, "--metric", "Loss/totalloss", code=1)["metric"]
    assert near["remedy"].startswith("did you mean Loss/total_loss?")
    # Of another interpreter, pipeline.config or plugin it is not known what it reports.
    other = doctor(watcher, python, "--metric", "mAP@50IOU")["metric"]
    assert other["severity"] == "warning"
    assert "is not reported by the evaluations so far: the start is refused" in other["message"]
    category = doctor(watcher, STUB, "--metric", "AP[rectangel]", code=1)["metric"]
    assert category["severity"] == "warning" and "rectangle" in category["remedy"]


def test_files_of_best_that_are_gone_are_an_error_with_the_remedy(watcher: Watcher):
    save(watcher.model_dir, 2)
    assert watcher.run() == 0
    python = sound(watcher.model_dir.parent)
    assert "all 2 promoted checkpoints" in doctor(watcher, python)["promoted"]["message"]
    (watcher.best_dir / "ckpt-2.index").unlink()
    found = doctor(watcher, python, code=1)["promoted"]
    told = cli("best", watcher.model_dir, "--path").stderr.splitlines()
    assert told == [f"error: {found['message']}", f"hint: {found['remedy']}"]
    assert found["message"] == "the files of best/ckpt-2 are missing"
    shutil.rmtree(watcher.best_dir)
    found = doctor(watcher, python, code=1)["promoted"]
    assert found["message"] == "the files of best/ckpt-2, best/ckpt-1 are missing"
    assert watcher.run() == 0
    assert doctor(watcher, python)["promoted"]["severity"] == "ok"


def asked_to_check(watcher: Watcher) -> str | None:
    """Name of the checkpoint that the training environment is asked to compare."""
    request = watcher.model_dir.parent / "request"
    python = interpreter(watcher.model_dir.parent, f'cat > {request}; echo \'{{"type": "done"}}\'')
    doctor(watcher, python)
    check = json.loads(request.read_text())["check"]
    return check and str(Path(check).relative_to(watcher.model_dir))


def test_the_newest_trained_checkpoint_has_to_fit_unless_its_score_says_that_it_does(
    watcher: Watcher,
):
    assert asked_to_check(watcher) is None
    manager = Manager(watcher.model_dir)
    manager.save(0, {})  # as the trainer saves before it has built its model
    assert asked_to_check(watcher) is None
    manager.save(100, model_tensors(1000, "2"))
    manager.save(0, {})
    assert asked_to_check(watcher) == "ckpt-2"
    manager.save(200, model_tensors(1000, "4"))
    (watcher.model_dir / "ckpt-4.index").write_bytes(b"unfinished")
    assert asked_to_check(watcher) == "ckpt-2"
    (watcher.model_dir / "ckpt-4.index").unlink()
    assert watcher.run() == 0
    assert asked_to_check(watcher) is None, "it was scored with this very pipeline.config"
    scored = watcher.model_dir / "ckpt-2.index"
    (watcher.model_dir / "checkpoint").unlink()
    again = Manager(watcher.model_dir)
    again.save(0, {})
    again.save(100, model_tensors(1000, "of a trainer that started over"))
    assert scored.exists() and asked_to_check(watcher) == "ckpt-2"
    assert watcher.run() == 0
    watcher.pipeline.write_text("num_classes: 5")
    assert asked_to_check(watcher) == "ckpt-2"
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()
    assert asked_to_check(watcher) == "best/ckpt-2"


# The training environment


def test_a_hanging_interpreter_is_ended_and_what_it_said_before_is_kept(watcher: Watcher):
    fact = json.dumps({"type": "fact", "name": "versions", "value": VERSIONS})
    pid = watcher.model_dir.parent / "pid"
    script = f"echo '{fact}'; echo $$ > {pid}; exec sleep 600"
    python = interpreter(watcher.model_dir.parent, script)
    began = time.monotonic()
    found = doctor(watcher, python, "--time-limit", 1, code=1)
    assert time.monotonic() - began < 60
    assert "did not finish looking within 1 s" in found["environment"]["message"]
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


@pytest.mark.slow
def ask(model_dir: Path, python: Path, *tell: Callable[[str], None]) -> training.Answer:
    given = settings(model_dir, python=str(python))
    return training.ask(given.run, given.evaluator, given.carrier, "cpu", 20, *tell)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo no module >&2; exit 3",
            "ended with exit code 3 before it had looked at everything (no",
        ),
        ("kill -SEGV $$", "was killed by SIGSEGV"),
        ("echo nonsense; echo '[1]'; echo '{\"type\": 1}'", "ended with exit code 0 before"),
        ("exec yes", "printed more than any answer has"),
        ("exec yes >&2", "prints without end (y)"),
        ("exec >&- 2>&-; exec sleep 600", "closed its output and went on"),
    ],
)
def test_an_interpreter_that_misbehaves_is_one_error(tmp_path: Path, script: str, said: str):
    python = interpreter(tmp_path, script)
    answer = ask(tmp_path, python)
    assert [finding.severity for finding in answer.findings] == ["error"]
    assert said in answer.findings[0].message


def test_how_far_it_is_is_told_while_it_reads_the_records(tmp_path: Path):
    lines = [json.dumps({"type": "progress", "text": f"{n} records"}) for n in (1000, 9000)]
    script = "cat > /dev/null; " + "; sleep 0.2; ".join(f"echo '{line}'" for line in lines)
    python = interpreter(tmp_path, script + '; sleep 0.2; echo \'{"type": "done"}\'')
    told: list[str] = []
    answer = ask(tmp_path, python, told.append)
    assert (told, answer.findings) == (["1000 records", "9000 records"], [])


def test_an_interpreter_without_tensorflow_is_named(watcher: Watcher):
    found = doctor(watcher, sys.executable, code=1)["environment"]
    assert "tensorflow is not installed in" in found["message"]
    assert "environment that trains" in found["remedy"]
    # What can be told without it is told at once.
    said = doctor(watcher, sys.executable, "--pipeline-config", "gone.config", code=1)["pipeline"]
    assert said["severity"] == "error" and "gone.config) does not exist" in said["message"]


def test_versions_are_held_to_those_that_were_run():
    def severity(**changed: str) -> str:
        return training.environment({"versions": {**VERSIONS, **changed}})[0].severity

    assert severity() == "ok"
    assert severity(python="3.10.4") == "note"
    assert severity(tensorflow="2.15.0") == "warning"


def test_what_computes_coco_metrics_is_said_where_there_are_any():
    (found,) = training.coco_backend(FACTS)
    assert found == Finding("coco backend", "ok", "numpy computes the COCO metrics")
    assert training.coco_backend({**FACTS, "metrics_sets": ["pascal_voc"]}) == []


def test_the_versions_that_were_run_are_those_that_are_documented():
    table = page("reference/environments")
    listed = set()
    for path in (ROOT / "deploy" / "requirements").glob("od-py*.txt"):
        text = path.read_text()
        pins = dict(re.findall(r"(?m)^([\w.-]+)(?:\[[\w-]+\])?==(\S+)", text))
        name = path.stem.removeprefix("od-")
        python = re.sub(r"py3(\d+)-.*", r"3.\1", name)
        row = (python, pins["tensorflow"], pins["tf-models-official"])
        assert f"| {' | '.join(row)} | `{name}`" in table
        listed |= set() if name.endswith("-gpu") else {row}
    assert listed == set(training.RUN) > set(training.GARDEN_RUN)


ITEM = "item {\n  id: 1\n  name: 'rect'\n}\n"
# Label maps of the eval input, and what is said of each.
LABEL_MAPS = {
    "unclosed": ITEM + "item {\n  id: 2\n  name: 'ellipse'\n",
    "no class": "# an export that failed\n",
    "marked": "\ufeff" + ITEM,
    "all in one": ITEM.replace("}", "  id: 2\n  name: 'ellipse'\n}"),
    "gap": ITEM.replace("1", "2"),
    "id twice": ITEM + ITEM.replace("rect", "ellipse"),
    "name twice": ITEM + ITEM.replace("1", "2"),
    "shown twice": "".join(
        f"item {{ id: {n} name: {name!r} display_name: {shown!r} }} "
        for n, name, shown in [
            (1, "rect", "shape"),
            (2, "ellipse", "shape"),
            (3, "x", "shape (id 2)"),
        ]
    ),
    "nameless": "item { id: 1 } item { id: 2 name: 'two\\nlines' }",
    "no id": ITEM + "item {\n  name: 'ellipse'\n}",
    "id 0": ITEM.replace("1", "0"),
    "points": "item { id: 1 keypoints { id: 1 label: 'a' } keypoints { id: 1 label: 'b' } }",
}


# Records with one fault (`od/spoiled_records.py`), and what is said of them.
SPOILED_RECORDS = [
    ("pixels", "eval set", "error", "record 2 (val-1.jpg) of pixels.tfrecord: image/object/bbox/"),
    ("pixels", "eval set", "error", "so it is in 54 records"),
    ("outside", "eval set", "warning", "1 of 135 boxes reach outside"),
    ("flat", "eval set", "warning", "1 of 135 boxes have no area"),
    ("twice", "eval set", "warning", "135 of 270 boxes are in their image a second time"),
    ("nan", "eval set", "warning", "image/object/bbox/xmin is nan"),
    ("misspelled", "labels", "error", 'class "Ellipses" of the eval records (image/object/class/t'),
    ("misspelled", "labels", "error", ') is not in the label map (label_map.pbtxt), which has "el'),
    ("misspelled", "labels", "error", "drops 70 of 135 boxes, in 41 images, and this class has no"),
    ("all misspelled", "labels", "error", "drops all 135 boxes"),
    ("all misspelled", "labels", "error", '"Ellipse" (the label map has "ellipse"): 70'),
    ("some misspelled", "labels", "warning", "drops 1 of 135 boxes, in 1 image"),
    ("empty texts", "labels", "error", "takes them for class 2"),
    ("late", "labels", "error", "have class 9, which is not in the label map"),
    ("one id", "eval set", "warning", 'is "image.jpg" in all 60 records'),
    ("no box", "eval set", "error", "no box in any of the 60 eval records"),
    ("garbage", "eval set", "error", "record 41 (val-40.jpg) of garbage.tfrecord: image/encoded"),
    ("GZIP", "eval set", "error", "GZIP.tfrecord) are compressed (GZIP)"),
    ("shards", "eval set", "warning", "missing ./shards-00003-of-00005"),
    ("folder", "eval set", "error", "input_path (folder.tfrecord) of the eval_input_reader is a"),
]
# Of these the boxes that count are compared with those of the OD API's own input pipeline.
KEPT = {
    "nan": {"1": 64, "2": 70},
    "outside": {"1": 65, "2": 70},
    "twice": {"1": 130, "2": 140},
    "misspelled": {"1": 65},
    "all misspelled": {},
    "some misspelled": {"1": 64, "2": 70},
    "empty texts": {"1": 64, "2": 71},
    "flat": {"1": 65, "2": 70},
    "labels": {"1": 65, "2": 70},
}


SPOILED = {*KEPT, "from zero", "cut", "empty", *(fault for fault, *_ in SPOILED_RECORDS)}


@pytest.fixture(scope="module")
def answers(od_python: str, tmp_path_factory: pytest.TempPathFactory):
    """What the far side says of a sound pipeline and of broken ones, asked in one process."""
    from evaluator_client import PROGRAMS, run_program

    folder = tmp_path_factory.mktemp("doctor")
    (folder / "one.pbtxt").write_text(ITEM)
    (folder / "swapped.pbtxt").write_text("item { id: 1 name: 'x' } item { id: 2 name: 'rect' }")
    for name, text in LABEL_MAPS.items():
        (folder / f"{name}.pbtxt").write_text(text)
    config = (PROGRAMS / "ssd_fixed.config").read_text()
    ours = 'eval_input_reader { label_map_path: "label_map.pbtxt"'
    theirs = 'train_input_reader { label_map_path: "label_map.pbtxt"'
    changes = {
        "sound": ("", ""),
        "records": ('"val.tfrecord"', '"gone.tfrecord"'),
        "no records": ('"val.tfrecord"', '"label_map.pbtxt"'),
        "fewer": ("num_classes: 2", "num_classes: 1"),
        "more": ("num_classes: 2", "num_classes: 3"),
        "one": (ours, ours.replace("label_map.pbtxt", "one.pbtxt")),
        "swapped": (ours, ours.replace("label_map.pbtxt", "swapped.pbtxt")),
        "untrained": ('"train.tfrecord"', '"gone-*.tfrecord"'),
        "broken": ("num_classes: 2", "num_classes: two"),
        "sampled": ("num_epochs: 1", "num_epochs: 1 sample_1_of_n_examples: 7"),
    }
    for name in LABEL_MAPS:
        changes[name] = (ours, ours.replace("label_map.pbtxt", f"{name}.pbtxt"))
    changes["theirs"] = (theirs, theirs.replace("label_map.pbtxt", "unclosed.pbtxt"))
    for fault in SPOILED:
        name = "shards-?????-of-00005" if fault == "shards" else f"{fault}.tfrecord"
        changes[fault] = ('"val.tfrecord"', f'"{name}"')
    changes["hurried"] = ("", "")
    changes["many"] = ('"val.tfrecord" }', '"val.tfrecord" } max_number_of_boxes: 3')
    changes["trained on"] = ('"val.tfrecord"', '"./train.tfrecord"')
    sound = {"pipeline_config": "sound.config", "device": "cpu"}
    requests = {"saved": {**sound, "save": str(folder / "ckpt-7")}}
    for name, change in changes.items():
        (folder / f"{name}.config").write_text(config.replace(*change))
        requests[name] = {"pipeline_config": f"{name}.config", "device": "cpu"}
        if name in SPOILED:
            requests[name] |= {"spoil": name, "kept": name in KEPT}
    for name in ("sound", "more"):
        requests[name]["check"] = str(folder / "ckpt-7")
    requests["many"]["kept"] = True
    requests["hurried"]["seconds"] = 1e-9
    requests["broken"]["device"] = "gpu:0"
    asked = list(requests.values())
    said = run_program(od_python, PROGRAMS / "doctor_cases.py", cwd=folder, asked=asked)
    return dict(zip(requests, json.loads(said), strict=True))


@pytest.mark.tensorflow
@pytest.mark.timeout(400)
def test_a_sound_pipeline_is_said_to_be_so_with_its_images_and_steps(answers):
    facts, findings = answers["sound"]["facts"], answers["sound"]["findings"]
    assert {severity for _, severity, _, _ in findings} == {"ok"}, findings
    assert ["pipeline", "ok", "ckpt-7 fits it", None] in findings
    assert (facts["images"], facts["num_steps"]) == (60, 200)
    assert facts["versions"]["tensorflow"] and facts["coco_backend"]
    assert answers["sampled"]["facts"]["images"] == 9


@pytest.mark.tensorflow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "check", "severity", "said"),
    [
        ("records", "pipeline", "error", "gone.tfrecord"),
        ("cut", "eval set", "error", "cut short after record 59"),
        ("empty", "eval set", "error", "no image"),
        ("no records", "eval set", "error", "no TFRecord file"),
        ("fewer", "labels", "error", "has id 2, and the model's num_classes is 1"),
        ("more", "labels", "warning", "num_classes is 3"),
        ("more", "pipeline", "error", "checkpoint ckpt-7 has 2 classes, pipeline.config says 3"),
        ("one", "labels", "warning", 'class "ellipse" of the eval records ('),
        ("swapped", "labels", "error", "label maps of training"),
        ("untrained", "pipeline", "warning", "train records (gone-*.tfrecord)"),
        ("broken", "pipeline", "error", "does not parse"),
        ("broken", "device", "error", "not visible to TensorFlow"),
        ("sampled", "eval set", "warning", "only 9 images (1 of 7 records)"),
        (
            "unclosed",
            "labels",
            "error",
            'unclosed.pbtxt) does not parse: line 7, column 9: Expected "}"',
        ),
        ("no class", "labels", "error", "label map (no class.pbtxt) holds no class"),
        ("marked", "labels", "error", "marked.pbtxt) begins with a byte order mark (U+FEFF)"),
        ("all in one", "labels", "error", "all in one.pbtxt): line 4: a second id in one item"),
        (
            "all in one",
            "labels",
            "warning",
            "has 1 of the model's 2 classes (num_classes): none of id 1",
        ),
        ("gap", "labels", "warning", "has 1 of the model's 2 classes (num_classes): none of id 1"),
        (
            "id twice",
            "labels",
            "warning",
            "the id 1 has 2 items (rect, ellipse), which are one class",
        ),
        ("name twice", "labels", "warning", "the ids 1, 2 share a name (rect): objects of that"),
        ("shown twice", "labels", "note", "shown as shape (id 1), shape (id 2) (id 2)"),
        ("nameless", "labels", "note", "are shown as id 1, two lines"),
        ("no id", "labels", "error", "no id.pbtxt), line 5: the item (ellipse) has no id"),
        ("id 0", "labels", "error", "id 0.pbtxt), line 1: the item (rect) has the id 0"),
        ("points", "labels", "error", "points.pbtxt): Duplicate keypoint ids"),
        (
            "theirs",
            "labels",
            "error",
            "the trainer cannot start: its label map (unclosed.pbtxt) does not parse: line 7",
        ),
        ("hurried", "eval set", "note", "more than 16 images: what is after them was not looked"),
        ("many", "eval set", "warning", "max_number_of_boxes of the eval_input_reader is 3"),
        ("trained on", "eval set", "warning", "are training records"),
        *SPOILED_RECORDS,
    ],
)
def test_what_is_wrong_in_a_pipeline_is_named(
    answers, name: str, check: str, severity: str, said: str
):
    found = [finding for finding in answers[name]["findings"] if finding[0] == check]
    wrong = [finding for finding in found if finding[1] == severity]
    assert any(said in finding[2] for finding in wrong), found
    assert all(finding[3] for finding in wrong if finding[1] == "error"), "each has a remedy"
    assert "{{" not in str(found)


@pytest.mark.tensorflow
@pytest.mark.timeout(400)
def test_what_a_wrong_number_of_classes_is_to_be_set_to_is_said(answers):
    remedies = {
        name: [why for check, _, _, why in answers[name]["findings"] if check == "labels"]
        for name in ("fewer", "more")
    }
    assert remedies["fewer"] == ["set num_classes to 2, and train anew"]
    (more,) = remedies["more"]
    assert more == "set num_classes to 2; or, if the model is trained with 3, use its label map"


@pytest.mark.tensorflow
@pytest.mark.timeout(400)
def test_labels_that_the_od_api_does_not_look_at_are_no_error(answers):
    found = answers["from zero"]["findings"]
    assert {severity for _, severity, _, _ in found} == {"ok"}, found


@pytest.mark.tensorflow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [*KEPT, "many"])
def test_the_boxes_that_are_said_to_count_are_those_the_od_api_keeps(answers, name: str):
    theirs, ours = answers[name]["kept"]
    assert theirs == ours
    assert name == "many" or ours == KEPT[name]


@pytest.mark.tensorflow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["unclosed", "no class", "marked", "theirs"])
def test_a_label_map_that_cannot_be_read_ends_no_other_check(answers, name: str):
    assert ["eval set", "ok", "60 images", None] in answers[name]["findings"]
    assert answers[name]["facts"]["images"] == 60


@pytest.mark.tensorflow
@pytest.mark.timeout(400)
def test_the_real_environment_answers_the_command(watcher: Watcher, od_python: str):
    watcher.pipeline.write_text("model {")
    found = doctor(watcher, od_python, code=1)
    assert "TensorFlow 2." in found["environment"]["message"]
    assert "does not parse" in found["pipeline"]["message"]


# MODEL_DIR


def place(tmp_path: Path, name: str, saves: int = 0) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    if saves:
        save(folder, saves)
    return folder


def told(model_dir: Path, *running: Trainer, **changed: object) -> Finding:
    given = settings(model_dir, **changed)
    (finding,) = folders.model_dir(given.run, given.source, running)
    return finding


def test_a_sibling_that_is_spelled_almost_like_it_is_named(tmp_path: Path):
    folder, typed = tmp_path / "ssd_cats", place(tmp_path, "sdd-cats", 2)
    assert told(folder).severity == "error" and str(typed) in told(folder).message
    folder.mkdir()
    assert told(folder).severity == "ok"  # its checkpoints are older than this folder
    save(typed, 3)
    assert told(folder).severity == "warning" and str(typed) in told(folder).message
    save(folder, 1)
    assert told(folder).severity == "ok"


def test_a_run_of_another_number_or_name_is_no_misspelling():
    assert folders.is_slip("Model_Dir", "model-dir")
    assert folders.is_slip("modeldir2", "model_dir2")
    assert not folders.is_slip("run-1", "run-2")
    assert not folders.is_slip("cats", "dogs")


def test_checkpoints_in_a_folder_inside_are_named(tmp_path: Path):
    folder = place(tmp_path, "runs")
    inner = place(folder, "train", 1)
    place(folder, "best", 1)
    assert str(inner) in told(folder).message


def test_a_missing_folder_is_an_error_unless_it_is_waited_for(tmp_path: Path):
    assert told(tmp_path / "none").severity == "error"
    assert told(tmp_path / "none", wait_for_model_dir=True).severity == "ok"
    assert "does not exist either" in told(tmp_path / "a" / "b", wait_for_model_dir=True).remedy


@pytest.mark.parametrize("waits", [True, False])
def test_beside_a_trainer_on_another_folder_waiting_is_proposed_where_it_is_not_set(
    tmp_path: Path, waits: bool
):
    other = Trainer(7, tmp_path / "other", OdTrainer(), (), None)
    found = told(tmp_path / "none", other, wait_for_model_dir=waits)
    assert found.severity == "note" and "the only trainer here, 7, writes into" in found.message
    assert ("and is waited for" in found.message) == waits
    assert ("--wait-for-model-dir" in found.remedy) != waits
    assert "else start this run's trainer" in found.remedy


def test_a_running_trainer_tells_its_folder_and_how_often_it_saves(tmp_path: Path):
    program = tmp_path / "model_main_tf2.py"
    program.write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    flags = ["--model_dir", "there", "--checkpoint_every_n=250", "--num_train_steps=900"]
    place(tmp_path, "there")
    trainer = subprocess.Popen(
        [sys.executable, str(program), *flags],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "1"},
    )
    try:
        assert trainer.stdout and trainer.stdout.readline()
        found = [one for one in trainers() if one.pid == trainer.pid]
        folder = tmp_path.resolve()
        (seen,) = found
        assert (seen.model_dir, seen.visible, seen.folder) == (folder / "there", "1", folder)
        assert list(seen.arguments) == flags
        schedule = seen.kind.schedule(seen.arguments, None, folder, {})
        assert (schedule.every, schedule.steps) == (250, 900)
        assert f"trainer {trainer.pid} writes here" in told(tmp_path / "there", *found).message
        assert f"{trainer.pid}, writes into" in told(place(tmp_path, "here"), *found).message
        other = told(tmp_path / "not-yet", *found)  # somebody else may train here
        assert other.severity == "note" and "--wait-for-model-dir" in (other.remedy or "")
    finally:
        trainer.kill()
        trainer.communicate()
    words = ["python3", "-m", "od_api_today", "-m", "object_detection.model_main_tf2"]
    assert training_of([*words, "--model_dir=m"])
    assert not training_of(["vim", "model_main_tf2.py"])
    evaluation = ["python3", "model_main_tf2.py", "--model_dir=x", "--checkpoint_dir=x"]
    assert not training_of(evaluation)


# File systems and disk space


MOUNTS = """22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:44 / /data rw,relatime shared:1 - nfs4 server:/data rw
31 30 0:45 / /data/my\\040disk rw - xfs /dev/sdb1 rw
32 31 0:46 / /data/my\\040disk rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "remote"),
    [
        ("/home/x", "ext4", False),
        ("/data", "nfs4", True),
        ("/database", "ext4", False),
        ("/data/my disk/run", "fuse.sshfs", True),
    ],
)
def test_the_file_system_of_a_path_is_the_last_mount_above_it(path: str, kind: str, remote: bool):
    mount = mount_of(Path(path), MOUNTS)
    assert mount and (mount.kind, mount.is_remote) == (kind, remote)


def file_system(given: Settings, mounts: str) -> list[Finding]:
    return folders.file_system(given.run, source_of(given.run.model_path), mounts)


def test_a_network_file_system_is_warned_of_for_events_and_database(tmp_path: Path):
    mounts = f"30 22 0:44 / {tmp_path} rw - nfs4 server:/data rw"
    found = {f.check: f for f in file_system(settings(tmp_path), mounts)}
    assert found["events"].severity == found["database place"].severity == "warning"
    assert "nfs4" in found["events"].message


def test_nothing_is_promised_of_links_that_were_not_tried(tmp_path: Path):
    (tmp_path / "model_dir").mkdir()
    here = settings(tmp_path / "model_dir")

    def links(kind: str, *more: str) -> Finding:
        mounts = "\n".join([f"30 22 0:44 / {tmp_path} rw - {kind} remote rw", *more])
        return next(f for f in file_system(here, mounts) if f.check == "hard links")

    assert links("fuse.rclone").severity == "note"
    (tmp_path / "model_dir" / "watcher" / "pins").mkdir(parents=True)
    assert links("fuse.rclone").severity == "ok", "tried, as pinning does"
    own = f"31 30 8:1 / {tmp_path}/model_dir/watcher rw - ext4 /dev/sda1 rw"
    assert "on another mount than" in links("ext4", own).message


def test_doctor_tries_a_link_as_pinning_does(watcher: Watcher, tmp_path: Path):
    need_strace()
    (watcher.model_dir / "watcher" / "pins").mkdir(parents=True)
    refuse = ["-etrace=link,linkat", "-einject=link,linkat:error=EIO"]
    command = [*CLI, "doctor", watcher.model_dir, "--pipeline-config", watcher.pipeline, "--json"]
    command += ["--python", sound(tmp_path)]
    traced = ["strace", "-f", "-qq", "-o", os.devnull, *refuse, *map(str, command)]
    ended = subprocess.run(traced, capture_output=True, text=True, timeout=60)
    found = worst(json.loads(ended.stdout)["findings"])["hard links"]
    assert found["severity"] == "warning" and "(Input/output error)" in found["message"]


def test_pins_on_another_file_system_are_said_to_be_copies(tmp_path: Path):
    elsewhere = settings(tmp_path, state_dir="/dev/shm")
    found = {f.check: f for f in file_system(elsewhere, "")}
    assert "another file system" in found["hard links"].message


def test_a_small_disk_is_an_error_that_says_what_is_needed(watcher: Watcher):
    """A tmpfs of 3 MB in a mount namespace of its own."""
    if not shutil.which("unshare"):
        pytest.skip("needs unshare: apt install util-linux")
    python = sound(watcher.model_dir.parent)
    fill = f"cp -a {watcher.model_dir}/. /mnt; mount --bind /mnt {watcher.model_dir}"
    mount = f'mount -t tmpfs -o size=3m tmpfs /mnt && {fill} && exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("mounting in a user namespace is not allowed here")
    save(watcher.model_dir, 1, size=2_000_000)
    arguments = [watcher.model_dir, "--pipeline-config", watcher.pipeline, "--python", python]
    ended = subprocess.run(
        [*prefix, *CLI, "doctor", *map(str, arguments), "--json"], capture_output=True, text=True
    )
    assert ended.returncode == 1, ended.stderr
    found = worst(json.loads(ended.stdout)["findings"])["disk space"]
    assert found["severity"] == "error" and "of 2.01 MB" in found["message"]


def test_disk_space_counts_what_is_still_to_come():
    def severity(free: int, **changed: int | None) -> str:
        demand = {"checkpoint_bytes": 100, "kept": 3, "present": 7, **changed}
        return space.room(space.Demand(**demand), free)[0].severity

    assert severity(600) == "ok"  # 3 places, one more of the trainer's, 2 that wait
    assert severity(599) == "warning"
    assert severity(199) == "error"
    assert severity(300, held=3) == "ok"
    assert severity(1000, waiting=9) == "warning"
    assert severity(1000, waiting=9, max_waiting_bytes=500) == "ok"
    assert severity(1000, kept=None, expected=50) == "warning"
    assert severity(1000, checkpoint_bytes=None) == "note"


# Cadence


@pytest.mark.parametrize(
    ("every", "steps", "said"),
    [
        (1000, 25000, ["25 checkpoints in 25000 steps"]),
        (250, 900, ["every 300 steps", "the last step is saved"]),
        (1000, 25500, ["step 25500", "step 25000: the last 500 steps are never saved"]),
        (1000, 50, ["step 100, before the first save at step 1000: no trained checkpoint"]),
        (1, 150, ["every 100 steps", "2 checkpoints in 200 steps"]),
    ],
)
def test_saves_are_rounded_to_100_and_the_last_steps_may_be_lost(
    every: int, steps: int, said: list[str]
):
    text = " ".join(f.message for f in cadence.saving(od_pace(every, steps)))
    for part in said:
        assert part in text


def test_a_queue_that_will_grow_is_warned_of_with_the_interval_that_would_do():
    pace = od_pace(1000, 100_000, save_seconds=60, eval_seconds=150)
    (found,) = cadence.keeping_up(pace)
    assert found.severity == "warning" and "the queue grows by 36 an hour" in found.message
    assert "2.5 hours after the trainer" in found.message and "every 2500 steps" in found.remedy
    for changed in ({"workers": 3}, {"queue_policy": "latest"}, {"eval_seconds": 60}):
        fine = {"save_seconds": 60, "eval_seconds": 150, **changed}
        assert cadence.keeping_up(od_pace(1000, **fine))[0].severity == "ok"
    assert cadence.keeping_up(od_pace(1000))[0].severity == "note"


# Database, device, service, and checks that go wrong


def test_a_damaged_database_is_an_error_with_a_remedy(tmp_path: Path):
    (tmp_path / "watcher.db").write_bytes(b"no database" * 100)
    found = [f for f in state.database(tmp_path) if f.severity == "error"]
    assert "rebuild" in found[0].remedy
    assert "mended in 3.51.3" in state.sqlite("3.40.1").message
    assert state.sqlite("3.51.3").message == "SQLite 3.51.3"


def test_a_gpu_of_the_trainer_is_an_error_and_one_of_others_a_warning(tmp_path: Path):
    gpus = [Gpu(n, f"GPU-{n}", "A100", 30 << 30, 40 << 30, frozenset({n + 70})) for n in range(3)]
    commands = {70: "python model_main_tf2.py", 71: "blender", 72: "python evaluators/worker.py"}
    trainer = Trainer(70, tmp_path, OdTrainer(), (), "0")

    def found(device: str) -> Finding:
        return devices.device(
            device,
            Listing(tuple(gpus)),
            [trainer],
            lambda pid: commands[pid],
        )[0]

    assert found("gpu:0").severity == "error" and "trainer 70" in found("gpu:0").message
    assert found("gpu:1").severity == "warning" and "71 (blender)" in found("gpu:1").message
    assert found("gpu:2").severity == "ok" and found("auto").message.startswith("gpu:2")
    assert found("gpu:7").severity == "error"
    assert found("cpu").message == "evaluates on the CPU: as set"


UNIT = """Id=checkpoint-watcher@cats.service
LoadState=loaded
ActiveState={}
SubState=x
Result=exit-code
NRestarts={}
UnitFileState=enabled
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "severity", "said"),
    [
        (f"cat <<'EOF'\n{UNIT.format('failed', 0)}EOF", "error", "cats.service failed (exit-code)"),
        (f"cat <<'EOF'\n{UNIT.format('active', 4)}EOF", "warning", "started again 4 times"),
        (f"cat <<'EOF'\n{UNIT.format('active', 0)}EOF", "ok", "is active"),
        ("echo not booted >&2; exit 1", "note", "not booted"),
        ("exec sleep 600", "warning", "did not answer"),
    ],
)
def test_the_units_of_this_model_dir_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, severity: str, said: str
):
    interpreter(tmp_path, script).rename(tmp_path / "systemctl")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "cats.toml").write_text(f'model_dir = "{tmp_path}"\n')
    (found,) = service.units(settings(tmp_path).run.model_path, tmp_path)
    assert (found.severity, said in found.message) == (severity, True), found
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    (found,) = service.units(settings(tmp_path).run.model_path, tmp_path)
    assert (found.severity, found.message) == ("ok", "there is no systemctl here")


def test_a_check_that_hangs_or_fails_says_so_and_holds_up_no_other():
    def fail() -> list[Finding]:
        raise PermissionError(13, "Permission denied", "/secret")

    def refuse() -> list[Finding]:
        raise StoreError("it is odd", hint="even it")

    began = time.monotonic()
    found = look_at(
        [
            Check("hangs", lambda: [time.sleep(30)], 0.3),
            Check("fails", fail, 0.3),
            Check("refuses", refuse, 0.3),
            Check("fine", lambda: [Finding("fine", "ok", "x")], 5),
        ]
    )
    assert time.monotonic() - began < 20
    assert [f.severity for f in found] == ["warning", "warning", "warning", "ok"]
    assert "no answer within 0.3 s" in found[0].message
    assert "/secret" in found[1].message and found[2].remedy == "even it"


def files(*seconds: float) -> list[FoundCheckpoint]:
    """Checkpoints from ckpt-2 on, written at these times."""
    return [
        FoundCheckpoint(f"ckpt-{n}", n, Path(f"ckpt-{n}"), ((0, 0, int(at * 1e9)),))
        for n, at in enumerate(seconds, start=2)
    ]


def test_times_in_disorder_or_too_close_are_doubted_and_those_of_a_training_are_not():
    assert cadence.doubt(files(0, 30, 60, 92), 1000) is None
    assert cadence.doubt(files(50, 60, 0, 10, 20), 100) is None  # a trainer that started over
    assert cadence.doubt(files(0, 30), 1000) is None  # too few to say
    assert "apart" in (cadence.doubt(files(0, 0, 0, 0), 100) or "")
    slow = files(0, 30, 60, 92)  # a slow copy, or a training that is over
    assert cadence.doubt(slow, 1000, 29) is None
    assert "already when the watcher started" in (cadence.doubt(slow, 1000, 0.2) or "")
    assert "order" in (cadence.doubt(files(90, 0, 60, 30, 10), 100) or "")
    (found,) = cadence.keeping_up(od_pace(100, save_seconds=0.001, eval_seconds=2.0, doubt="so"))
    assert found.severity == "note" and "not known: so" in found.message


def test_steps_between_saves_do_not_mind_deleted_checkpoints():
    assert cadence.step_between({1: 0, 6: 500, 7: 600, 12: 1100}) == 100
    assert cadence.step_between({1: 0, 2: 100}) is None
