"""Looking: what can be found out about a run before it is started. Writes nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from watcher.config import FILE_ONLY, Settings, make_settings
from watcher.config.bucket import is_url, parse_place
from watcher.config.evaluator import MODEL_GARDEN, OD_API
from watcher.config.garden_params import params_file
from watcher.config.places import refuse_places
from watcher.config.policies import boards
from watcher.doctor import device, training
from watcher.doctor.examine import pace
from watcher.doctor.finding import Finding
from watcher.errors import ConfigError, StoreError
from watcher.evaluation.device import choose
from watcher.evaluation.gpus import Listing, list_gpus
from watcher.launch.kinds import evaluated_by
from watcher.launch.od_trainer import read_pipeline
from watcher.launch.processes import Trainer, trainer_on, trainers
from watcher.setup.interpreters import as_found, candidates, with_all
from watcher.setup.settings_file import Found, Outlook
from watcher.store.reading import read_last_start

_PLACES = "MODEL_DIR/pipeline.config", "MODEL_DIR/../pipeline.config", "in the current folder"
_NAMED = 8
_NO_PIPELINE = {"pipeline_config": ""}
_FEWEST, _MOST, _SHARE = 5, 20, 5
# The metrics that other sets than COCO's boxes record, by what their names begin with.
_METRICS = (("coco_mask", "mAP"), ("lvis", "mAP"), ("pascal_voc", "mAP50"))


def look(
    given: Mapping[str, str],
    environment: Mapping[str, str],
    seconds: float,
    say: Callable[[str], None],
) -> Outlook:
    """Find what a run on a MODEL_DIR needs.

    What is given counts, then what the last run on that MODEL_DIR was started with, then what is
    found. An interpreter counts when it imports TensorFlow and the OD API.

    Args:
        given: `model_dir`, and `pipeline_config`, `experiment` and `python` where they are.
        environment: Usually `os.environ`.
        seconds: How long each interpreter that has TensorFlow may take to answer.
        say: Is told what takes a while, and what was seen that is wrong.
    """
    outlook, state_dir = Outlook(), None
    found, there = outlook.found, given["model_dir"]
    if is_url(there):  # a folder here stands for it
        model_dir = state_dir = Path(f"{parse_place(there).name}-watcher").absolute()
        found["model_dir"] = Found(there, "")
        found["state_dir"] = Found(str(state_dir), "on this machine, as MODEL_DIR is in a bucket")
    else:
        model_dir = Path(there).absolute()
        found["model_dir"] = Found(str(model_dir), "")
    for name, value in _recorded(state_dir or model_dir / "watcher").items():
        found[name] = Found(value, "the last run on MODEL_DIR was started with it")
    if "pipeline_config" in given:
        found["pipeline_config"] = Found(str(Path(given["pipeline_config"]).absolute()), "")
    for name in ("python", "experiment"):
        if name in given:
            found[name] = Found(given[name], "")
    if python := found.get("python"):
        found["python"] = Found(as_found(python.value, environment), python.why)
    if state_dir is None and not model_dir.is_dir():
        found["wait_for_model_dir"] = Found(True, "MODEL_DIR does not exist yet")
    running = trainers()
    if _is_garden(outlook, model_dir, running):
        _find_experiment(outlook, model_dir, running)
    elif "pipeline_config" not in found:
        _find_pipeline(outlook, model_dir, running)
    _find_working_directory(outlook, model_dir, running)
    listing = list_gpus()
    if "device" not in found:
        find_device(outlook, listing, running)
    answer = _ask_environments(outlook, model_dir, running, environment, seconds, say)
    _tell_evaluation(outlook, answer, say)
    if "patience" not in found and "patience_steps" not in found:
        _find_patience(outlook, running, answer.facts)
    outlook.defaults = _defaults(outlook)
    return outlook


def _recorded(state_dir: Path) -> dict[str, Any]:
    """Return what the last run was given; nothing without one."""
    try:
        values = read_last_start(state_dir).counting(with_file=False)
    except StoreError:
        return {}
    return {name: value for name, value in values.items() if name not in FILE_ONLY}


def _is_garden(outlook: Outlook, model_dir: Path, running: Sequence[Trainer]) -> bool:
    """Tell whether it is a run of Model Garden: by what is known, its trainer, or its params.yaml.

    A run of before says so itself, and what is given counts before that.
    """
    found, trainer = outlook.found, trainer_on(model_dir, running)
    if any(name in found and not found[name].why for name in ("experiment", "pipeline_config")):
        garden = "experiment" in found and not found["experiment"].why
    elif "evaluator" in found or "pipeline_config" in found:
        garden = outlook.found_value("evaluator") == MODEL_GARDEN
    elif trainer:
        garden = trainer.kind.evaluator == MODEL_GARDEN
    else:
        garden = params_file(model_dir).is_file()
    if not garden:
        return False
    found.pop("pipeline_config", None)
    why = "params.yaml lies in MODEL_DIR" if params_file(model_dir).is_file() else "as given"
    why = f"trainer {trainer.pid} is one of Model Garden" if trainer else why
    found["evaluator"] = Found(MODEL_GARDEN, why)
    return True


def _find_experiment(outlook: Outlook, model_dir: Path, running: Sequence[Trainer]) -> None:
    """Find what params.yaml does not hold: the experiment's name, in the trainer's command line."""
    outlook.notes["config_file"] = f"There is {params_file(model_dir)}."
    if not params_file(model_dir).is_file():
        outlook.notes["config_file"] = "The trainer has not written params.yaml yet."
        outlook.found["wait_for_model_dir"] = Found(True, "the trainer is yet to write params.yaml")
    if "experiment" in outlook.found:
        return
    trainer = trainer_on(model_dir, running)
    told = trainer.kind.settings(trainer.arguments) if trainer else {}
    if trainer and "experiment" in told:
        why = f"trainer {trainer.pid} was started with it"
        for name in ("experiment", "garden_import"):
            if name in told and name not in outlook.found:
                outlook.found[name] = Found(told[name], why)
        return
    outlook.gaps["experiment"] = (
        "the name that official.vision.train got as --experiment, such as"
        " retinanet_resnetfpn_coco: params.yaml does not hold it, and no trainer runs here."
    )


def _find_pipeline(outlook: Outlook, model_dir: Path, running: Sequence[Trainer]) -> None:
    for trainer in running:
        path = _pipeline_of(trainer)
        if trainer.model_dir == model_dir.resolve() and path:
            why = f"trainer {trainer.pid} was started with it"
            outlook.found["pipeline_config"] = Found(str(path), why)
            return
    here = Path.cwd()
    for place, folder in zip(_PLACES, (model_dir, model_dir.parent, here), strict=True):
        if (folder / "pipeline.config").is_file():
            outlook.found["pipeline_config"] = Found(str(folder / "pipeline.config"), place)
            return
    seen: list[Path] = []
    for place, folder in (("beside MODEL_DIR", model_dir.parent), ("in the current folder", here)):
        beside = [path for path in sorted(folder.glob("*.config")) if _is_pipeline(path)]
        if len(beside) == 1:
            why = f"the only pipeline {place}"
            outlook.found["pipeline_config"] = Found(str(beside[0]), why)
            return
        seen += [path for path in beside if path not in seen]
    there = f" There are {', '.join(map(str, seen[:5]))}." if seen else ""
    outlook.gaps["pipeline_config"] = (
        f"the file that model_main_tf2 gets as --pipeline_config_path; none was found in"
        f" or beside MODEL_DIR, nor in {here}.{there}"
    )


def _find_working_directory(outlook: Outlook, model_dir: Path, running: Sequence[Trainer]) -> None:
    """Find where the trainer was started, or where pipeline.config's relative paths lead to."""
    trainer = trainer_on(model_dir, running)
    if trainer and trainer.folder:
        why = f"trainer {trainer.pid} was started there"
        outlook.found["working_directory"] = Found(str(trainer.folder), why)
        return
    pipeline = outlook.found.get("pipeline_config")
    if "working_directory" in outlook.found or pipeline is None:
        return
    relative = _relative_label_map(Path(pipeline.value))
    if relative is None:
        return
    around = Path(pipeline.value).parent
    for folder in (Path.cwd(), around, *around.parents[:2], model_dir, *model_dir.parents[:2]):
        if (folder / relative).is_file():
            why = f"pipeline.config's {relative} is found from there"
            outlook.found["working_directory"] = Found(str(folder.resolve()), why)
            return
    outlook.gaps["working_directory"] = (
        f"the folder that the trainer is started in: pipeline.config names {relative}, which is"
        " found neither from the current folder nor from those of pipeline.config and MODEL_DIR."
    )


def _relative_label_map(pipeline: Path) -> str | None:
    """Return the first label map that pipeline.config names by a relative path."""
    text = read_pipeline(pipeline)
    named = re.findall(r"^[^#\n]*?label_map_path\s*:\s*[\"']([^\"'\n]+)", text, re.MULTILINE)
    return next((one for one in named if not one.startswith("/") and "://" not in one), None)


def _pipeline_of(trainer: Trainer) -> Path | None:
    given = trainer.kind.settings(trainer.arguments).get("pipeline_config")
    path = trainer.path(given) if given else None
    return path if path and path.is_file() else None


def _is_pipeline(path: Path) -> bool:
    text = read_pipeline(path)
    return "eval_input_reader" in text and "model" in text


def find_device(outlook: Outlook, listing: Listing, running: Sequence[Trainer]) -> None:
    """Set a GPU that is free and not the trainer's; else say why the CPU evaluates. Pure.

    Args:
        outlook: Gets the device, or a note.
        listing: The GPUs of this machine.
        running: The trainers that are seen.
    """
    if not listing.gpus:
        outlook.notes["device"] = f"No NVIDIA GPU is seen here: {listing.problem or 'none'}."
        return
    if len(listing.gpus) == 1 and not running:
        outlook.notes["device"] = (
            "This machine has one GPU, which the trainer will take: the CPU evaluates."
        )
        return
    (choice,) = choose("auto", listing, taken=device.trainers_gpus(running, listing))
    if not choice.is_gpu:
        outlook.notes["device"] = f"The CPU evaluates: {choice.reason}."
        return
    index = next(gpu.index for gpu in listing.gpus if gpu.uuid == choice.device)
    outlook.found["device"] = Found(f"gpu:{index}", f"{choice.label}: {choice.reason}")
    if not running:
        outlook.notes["device"] = (
            "Keep the trainer off it with CUDA_VISIBLE_DEVICES: it takes all that it sees."
        )


def _ask_environments(
    outlook: Outlook,
    model_dir: Path,
    running: Sequence[Trainer],
    environment: Mapping[str, str],
    seconds: float,
    say: Callable[[str], None],
) -> training.Answer:
    """Find the interpreter that imports what an evaluation needs, and return what it said."""
    kind = evaluated_by(outlook.found_value("evaluator"))
    known = outlook.found.get("python")
    if known:
        paths = [Path(known.value)]
    else:
        every = candidates(model_dir.resolve(), running, environment)
        paths = with_all(every, kind.evaluates_with)
        if not paths:
            outlook.gaps["python"] = (
                "the interpreter of the training environment, /path/to/env/bin/python; none of"
                f" {len(every)} that were looked at has both TensorFlow and {kind.suite}"
                f" ({_listed(every)})."
            )
    refused = []
    for path in paths:
        say(f"asking {path}")
        began = time.monotonic()
        settings = _settings(outlook, python=str(path))
        answer = training.ask(settings.run, settings.evaluator, settings.carrier, "cpu", seconds)
        if versions := answer.facts.get("versions"):
            if not known:
                why = f"it imports TensorFlow {versions.get('tensorflow')} and {kind.suite}"
                outlook.found["python"] = Found(str(path), why)
            say(f"it answered after {time.monotonic() - began:.0f} s")
            return answer
        refused.append(next(map(_with_remedy, answer.findings), f"{path} said nothing"))
    if refused:
        said = f"it cannot be used: {refused[0]}" if known else f"none can be used: {refused[0]}"
        say(f"warning: {said}")
        if not known:
            outlook.gaps["python"] = (
                f"the interpreter of the training environment; of those found, {said}."
            )
    return training.Answer()


def _with_remedy(finding: Finding) -> str:
    return f"{finding.message}: {finding.remedy}" if finding.remedy else finding.message


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(map(str, paths[:_NAMED])) + more


def _tell_evaluation(outlook: Outlook, answer: training.Answer, say: Callable[[str], None]) -> None:
    facts = answer.facts
    inputs = facts.get("eval_inputs") or ()
    if len(inputs) > 1:
        outlook.notes["eval_input"] = f"There are: {', '.join(map(str, inputs))}."
    if backend := facts.get("coco_backend"):
        outlook.notes["coco_backend"] = f"auto takes {backend} there."
    if images := facts.get("images"):
        outlook.notes["eval_cache_mib"] = f"The eval set has {images} images."
    sets = [str(name) for name in facts.get("metrics_sets") or ()]
    if sets:
        outlook.notes["metric"] = f"The pipeline's metrics_set: {', '.join(sets)}."
    if sets and "metric" not in outlook.found and "coco_detection_metrics" not in sets:
        short = [to for begin, to in _METRICS if any(name.startswith(begin) for name in sets)]
        if short:
            outlook.found["metric"] = Found(short[0], "what that metrics_set records")
        else:
            outlook.gaps["metric"] = "which of them ranks; `run` lists them if it is another one."
    if outlook.found.keys() & {"pipeline_config", "experiment"}:
        for finding in answer.findings:
            if finding.severity == "error":
                say(f"warning: {finding.check}: {finding.message}")


def _find_patience(outlook: Outlook, running: Sequence[Trainer], facts: Mapping[str, Any]) -> None:
    """Take a share of the checkpoints that there will be, where that is known."""
    schedule = pace(_settings(outlook), running, facts).schedule
    total = None
    if schedule.steps and schedule.every is not None:
        total = schedule.steps // schedule.interval
    if not total:
        outlook.notes["patience"] = (
            "How many checkpoints there will be is not known: a fifth of them is a beginning."
        )
        return
    patience = max(_FEWEST, min(_MOST, total // _SHARE))
    why = (
        f"{total} checkpoints in {schedule.steps} steps, one every {schedule.interval}"
        f" ({schedule.source});"
        f" a fifth of them, {_FEWEST} at least and {_MOST} at most"
    )
    outlook.found["patience"] = Found(patience, why)


def _settings(outlook: Outlook, **others: str) -> Settings:
    values = {name: one.value for name, one in outlook.found.items()} | others
    unknown = {"experiment": "?"} if values.get("evaluator") == MODEL_GARDEN else _NO_PIPELINE
    values = unknown | values
    origin = {name: one.why or "the command line" for name, one in outlook.found.items()}
    return make_settings(values, origin | others)


def _defaults(outlook: Outlook) -> dict[str, Any]:
    """Return what the settings stand for that depend on MODEL_DIR."""
    settings = _settings(outlook)
    refuse_places(settings)  # as the last run may have been given them, by an earlier version
    try:
        boards(settings.run, settings.ranking)
    except ConfigError:  # told when the file is read
        return {}
    return {
        "evaluator": settings.run.evaluator or OD_API,
        "pipeline_config": "/path/to/pipeline.config",
        "experiment": "retinanet_resnetfpn_coco",
        "config_file": [str(params_file(settings.run.model_path))],
        "run_name": settings.run.name,
        "state_dir": str(settings.run.state_path),
        "best_dir": str(settings.run.best_path),
        "kept_dir": str(settings.run.kept_path),
        "sentinel": str(settings.run.sentinel_path),
        "python": "/path/to/training/env/bin/python",
        "working_directory": str(Path.cwd()),
        "group": "users",
        "device_lock_dir": "/run/lock/checkpoint-watcher",
        "trainer_log": str(settings.run.model_path.parent / "trainer.log"),
    }
