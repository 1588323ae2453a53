"""What lies in deploy/ says of this program what is true; `make lint` holds it to its schemas."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import click
import pytest
import yaml
from fake_trainer import Manager, model_tensors
from watching import CLI, FAKE_TRAINER, ROOT, STUB, Watcher, alive, wait_until

from watcher.cli import cli

DEPLOY = ROOT / "deploy"
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.od"]
COMPOSE = [DEPLOY / "compose.yaml", DEPLOY / "compose.gpu.yaml"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SBATCH = DEPLOY / "slurm" / "train.sbatch"
PAGES = ("containers", "kubernetes", "slurm")


def load(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


# -- what CI installs


def test_ci_installs_each_program_that_a_test_skips_for():
    script = (ROOT / ".ci" / "run").read_text()
    named = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for packages in re.findall(r"apt(?:-get)? install ([a-z0-9 -]+)\"", path.read_text()):
            named |= set(packages.split())
    assert named >= {"chromium", "fish", "help2man", "prometheus", "strace", "zsh"}
    assert named <= set(re.findall(r"[a-z0-9-]+", script))


# -- images


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Pairs of instruction and arguments, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", dockerfile.read_text()))
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, rest in pairs]


def image_names() -> Iterator[str]:
    for path in DOCKERFILES:
        for name, rest in instructions(path):
            if name == "ARG" and rest.startswith("BASE="):
                yield rest.removeprefix("BASE=")
    for service in load(COMPOSE[0])[0]["services"].values():
        yield service["image"]
    for container in containers():
        yield container["image"]


def test_every_image_has_an_exact_version():
    names = list(image_names())
    assert len(names) == 2 + 5 + 2
    for name in names:
        assert re.search(r"(/debian:|:v?\d+\.)\d+\.\d+[-\w.]*(@sha256:[0-9a-f]{64})?$", name), name


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_built_in_stages_from_pinned_lists_and_run_as_nobody_in_particular(path: Path):
    steps = instructions(path)
    stages = [rest for name, rest in steps if name == "FROM"]
    assert len(stages) > 1 and " AS " not in stages[-1]
    assert [rest for name, rest in steps if name == "USER"][-1] == "10001:10001"
    for run in (rest for name, rest in steps if name == "RUN"):
        for install in run.split("&&"):
            if "pip" in install and " install " in install:
                assert "--require-hashes" in install or "--no-index" in install, install


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_there_and_in_the_build_context(path: Path):
    let_in = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    sources = []
    for name, rest in instructions(path):
        if name == "COPY" and "--from" not in rest:
            sources += rest.replace("${OD_SET}", "py311-tf221").split()[:-1]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in let_in), source


@pytest.mark.parametrize("name", ["image", "wheel"])
def test_an_image_gets_the_versions_that_the_tests_ran_with(name: str):
    tested = pins("daemon")
    chosen = pins(name)
    assert chosen and {package: tested.get(package) for package in chosen} == chosen


def test_an_image_gets_all_that_the_watcher_may_use():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, group in [("", project["dependencies"]), *project["optional-dependencies"].items()]:
        for requirement in group:
            listed = pins("web" if extra == "web" else "image")
            assert re.match(r"[\w.-]+", requirement)[0] in listed, requirement


def pins(name: str) -> dict[str, str]:
    text = (DEPLOY / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", text))


# -- commands


def yaml_commands(node: object) -> Iterator[list[str]]:
    """Lists of words in a YAML document that begin with one of our commands."""
    if isinstance(node, dict):
        for value in node.values():
            yield from yaml_commands(value)
    elif isinstance(node, list):
        if node and node[0] in cli.list_commands(None):
            yield [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word) for word in node]
        for value in node:
            yield from yaml_commands(value)


def text_commands(text: str) -> Iterator[list[str]]:
    """Our commands in a script, a unit or a comment; what prose quotes may be a part of one."""
    joined = re.sub(r"\\\n[#\s]*", "", text)
    names = "|".join(cli.list_commands(None))
    program = r'(?<!`)(?:checkpoint-watcher(?::\S+)?|"\$program")'
    for found in re.finditer(rf"{program} +((?:{names}) +[^\n`]*)", joined):
        yield shlex.split(re.split(r" (?:&|\||#)|;|'", found[1])[0])


def every_command() -> dict[str, list[str]]:
    found = {}
    for path in [*COMPOSE, *MANIFESTS]:
        for document in load(path):
            for words in yaml_commands(document):
                found[f"{path.name}: {shlex.join(words)}"] = words
    scripts = [path for path in DEPLOY.rglob("*") if path.is_file()]
    left = re.compile(r"\.txt$|/__pycache__/|/\.ruff_cache/")
    scripts = [path for path in scripts if not left.search(str(path))]
    pages = [ROOT / "docs" / "how-to" / f"{name}.md" for name in PAGES]
    for path in [*scripts, *(ROOT / "systemd").iterdir(), *pages]:
        for words in text_commands(path.read_text()):
            found[f"{path.name}: {shlex.join(words)}"] = words
    return found


def test_every_command_in_deploy_and_systemd_is_one_that_the_program_takes():
    commands = every_command()
    assert {name.split(":")[0] for name in commands} >= {
        "Dockerfile",
        "compose.yaml",
        "job.yaml",
        "train.sbatch",
        "checkpoint-watcher@.service",
        "containers.md",
    }
    # As below the program: a command keeps the names of --help that it is first asked with.
    parent = click.Context(cli, **cli.context_settings)
    for shown, (name, *words) in commands.items():
        command = cli.get_command(None, name)
        try:
            command.make_context(name, list(words), parent=parent, resilient_parsing=False).close()
        except click.ClickException as error:
            pytest.fail(f"{shown}\n{error.format_message()}")


# -- compose and Kubernetes: what trainer and watcher must share, and must not


def template() -> dict[str, Any]:
    documents = [document for path in MANIFESTS for document in load(path)]
    (job,) = (document for document in documents if document["kind"] == "Job")
    found: dict[str, Any] = job["spec"]["template"]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = template()["spec"]
    return spec


def containers() -> list[dict[str, Any]]:
    spec = pod()
    return [*spec["initContainers"], *spec["containers"]]


def test_in_a_pod_the_watcher_is_a_sidecar_and_both_are_confined():
    sidecar, trainer = containers()
    assert sidecar["restartPolicy"] == "Always" and "startupProbe" not in sidecar
    assert trainer["args"][0] == "train"
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["automountServiceAccountToken"] is False
    for container in (sidecar, trainer):
        assert "runAsUser" not in container["securityContext"], "both are the Pod's user"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert "memory" in container["resources"]["limits"]
    assert sidecar["volumeMounts"] == trainer["volumeMounts"]
    claims = {volume["name"]: volume for volume in pod()["volumes"]}
    assert {mount["name"] for mount in sidecar["volumeMounts"]} == claims.keys()
    made = {document["metadata"]["name"] for path in MANIFESTS for document in load(path)}
    for volume in claims.values():
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in made


def test_in_compose_both_are_confined_and_nothing_is_published_but_to_this_machine():
    services = load(COMPOSE[0])[0]["services"]
    trainer, watcher = services["trainer"], services["watcher"]
    for service in (trainer, watcher):
        assert service["read_only"] is True and service["init"] is True
    for key in ("image", "user", "volumes", "working_dir"):
        assert trainer[key] == watcher[key], key
    web = services["web"]
    assert web["user"] == trainer["user"] and web["read_only"] is True
    assert all(volume["read_only"] for volume in web["volumes"])
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
    assert set(load(COMPOSE[1])[0]["services"]) == {"trainer", "watcher"}


def test_the_example_sets_each_variable_that_compose_asks_for():
    text = (DEPLOY / "example.env").read_text()
    example = set(re.findall(r"(?m)^#?([A-Z_]+)=", text))
    used = set()
    for path in COMPOSE:
        used |= set(re.findall(r"\$\{(\w+)", path.read_text()))
    assert used == example


def test_prometheus_scrapes_the_watcher_and_grafana_finds_its_provisioning():
    services = load(COMPOSE[0])[0]["services"]
    (config,) = load(DEPLOY / "prometheus" / "prometheus.yml")
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    name, port = target.split(":")
    assert f"--listen=0.0.0.0:{port}" in services[name]["command"]
    mounts = {
        volume["target"]: DEPLOY / volume["source"]
        for service in ("prometheus", "grafana")
        for volume in services[service]["volumes"]
        if isinstance(volume, dict)
    }
    inside = services["grafana"]["environment"]["GF_PATHS_PROVISIONING"]
    (target,) = (target for target in mounts if inside.startswith(target))
    provisioning = mounts[target] / Path(inside).relative_to(target)
    (provider,) = load(provisioning / "dashboards" / "checkpoint-watcher.yaml")[0]["providers"]
    assert provider["options"]["path"] == target
    (source,) = load(provisioning / "datasources" / "prometheus.yaml")[0]["datasources"]
    assert source["url"].split("//")[1].split(":")[0] in services


def test_the_probes_ask_for_what_the_watcher_serves(watcher: Watcher):
    sidecar = containers()[0]
    (port,) = sidecar["ports"]
    assert f"--listen=0.0.0.0:{port['containerPort']}" in sidecar["args"]
    probes = [sidecar[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")]
    assert {probe["port"] for probe in probes} == {port["name"]}
    annotations = template()["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    paths = [probe["path"] for probe in probes] + [annotations["prometheus.io/path"]]
    test = load(COMPOSE[0])[0]["services"]["watcher"]["healthcheck"]["test"]
    paths += re.findall(r"9490(/\w+)", " ".join(test))
    assert len(paths) == 4
    watcher.start("--listen", 0)
    shown = wait_until(
        lambda: re.search(r"http://127\.0\.0\.1:\d+", watcher.log.read_text()), "it listens"
    )
    wait_until(lambda: watcher.status().get("worker") == "ready", "a worker")
    for path in paths:
        with urlopen(shown[0] + path, timeout=60) as answer:
            assert answer.status == 200, path


# -- signals: the queue is finished before the end


def give_work(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir)
    for step in range(1, count + 1):
        manager.save(100 * step, model_tensors(1000, str(step)))


def test_the_hook_of_the_sidecar_lets_it_finish_its_queue(watcher: Watcher):
    give_work(watcher, 4)
    daemon = watcher.start(STUB_SECONDS=0.3)
    wait_until(watcher.evaluations, "an evaluation")
    shell, option, script = containers()[0]["lifecycle"]["preStop"]["exec"]["command"]
    # In the container the watcher is process 1, and gone as soon as it has ended.
    hook = subprocess.Popen([shell, option, script.replace("USR1 1", f"USR1 {daemon.pid}")])
    try:
        assert daemon.wait(timeout=60) == 0
        assert hook.wait(timeout=60) == 0
    finally:
        hook.kill()
        hook.wait()
    assert set(watcher.states().values()) == {"scored"}


# -- Slurm: the script with small stand-ins for Slurm's commands

_SLURM = {
    # The name of the step, then its command, as this process.
    "srun": """
        while [[ $1 == --* ]]; do
            [[ $1 == --job-name=* ]] && echo $$ > "$STEPS/${1#*=}"
            shift
        done
        CUDA_VISIBLE_DEVICES=1 exec "$@"
    """,
    "squeue": "echo '1.0 train'; echo '1.1 watch'",
    # All processes of the step.
    "scancel": 'kill -TERM -- -"$(cat "$STEPS/train")" 2>/dev/null || kill "$(cat "$STEPS/train")"',
    "program": f'exec {shlex.join(CLI)} "$@"',
    "python": f"""
        [[ $1 == -m ]] && echo $$ > "$STEPS/trainer" || exec {sys.executable} {STUB} "$@"
        for word in "$@"; do [[ $word == --model_dir=* ]] && model_dir=${{word#*=}}; done
        exec {sys.executable} {FAKE_TRAINER} "$model_dir" $FAKE_TRAINER
    """,
}


class Job:
    """A run of the script in a folder; `end` kills what it left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model_dir = folder / "run" / "model_dir"
        for name in ("bin", "steps", "data"):
            (folder / name).mkdir()
        for name, text in _SLURM.items():
            program = folder / "bin" / name
            program.write_text(f"#!/bin/bash\n{text}\n")
            program.chmod(0o755)
        (folder / "data" / "pipeline.config").write_text("the stub evaluator does not read it\n")

    def submit(self, **steer: object) -> None:
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "STEPS": self.folder / "steps",
            "SLURM_JOB_ID": 1,
            "RUN_DIR": self.folder / "run",
            "DATA_DIR": self.folder / "data",
            "TRAINING_PYTHON": self.folder / "bin" / "python",
            "CHECKPOINT_WATCHER": self.folder / "bin" / "program",
            "CHECKPOINT_WATCHER_EVICT_SECONDS": 0.2,
            **steer,
        }
        self.process = subprocess.Popen(
            ["bash", str(SBATCH)],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def log(self) -> str:
        """What it printed, once it has ended."""
        return self.process.communicate(timeout=60)[0]

    def states(self) -> dict[str, str]:
        database = self.model_dir / "watcher" / "watcher.db"
        if not database.exists():
            return {}
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
            try:
                return dict(db.execute("SELECT checkpoint, state FROM history"))
            except sqlite3.OperationalError:  # not migrated yet
                return {}

    def end(self) -> None:
        pids = [int(path.read_text()) for path in (self.folder / "steps").iterdir()]
        for pid in [self.process.pid, *pids]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """A job that is not submitted yet; its processes end with the test."""
    job = Job(tmp_path)
    yield job
    job.end()


@pytest.mark.slow
def test_the_job_ends_when_the_queue_is_finished_after_the_trainer(job: Job):
    job.submit(FAKE_TRAINER="--saves 5 --interval 0.1 --max-to-keep 0", STUB_SECONDS=0.4)
    log = job.log()
    assert job.process.returncode == 0, log
    assert "device=gpu:1" in log
    assert job.states() == {"ckpt-1": "untrained", **{f"ckpt-{n}": "scored" for n in range(2, 6)}}
    assert "the watcher ended with" not in log


@pytest.mark.slow
def test_an_early_stop_ends_the_job_with_code_0(job: Job):
    job.submit(
        FAKE_TRAINER="--saves 1000 --interval 0.2 --max-to-keep 0",
        STUB_SCORES='{"ckpt-2": 0.9}',
        CHECKPOINT_WATCHER_PATIENCE=2,
    )
    log = job.log()
    assert job.process.returncode == 0 and (job.model_dir / "EARLY_STOP").exists(), log


@pytest.mark.slow
def test_when_time_runs_out_the_trainer_is_ended_and_what_waits_is_still_evaluated(job: Job):
    job.submit(FAKE_TRAINER="--saves 1000 --interval 0.2 --max-to-keep 0", STUB_SECONDS=0.5)
    wait_until(lambda: list(job.states().values()).count("pending") > 2, "a queue")
    job.process.send_signal(signal.SIGUSR1)
    log = job.log()
    assert job.process.returncode == 128 + signal.SIGTERM, log
    found = job.states()
    assert found.pop("ckpt-1") == "untrained" and set(found.values()) == {"scored"}
    assert "the watcher ended with" not in log
    assert not alive(int((job.folder / "steps" / "trainer").read_text()))
