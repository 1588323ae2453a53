"""od-api-today in environments made for it: a real wheel in a real venv, with made-up packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from watching import ROOT

SOURCE = ROOT / "deploy" / "od-api-today"
PTH = "od_api_today.pth"
# A start of the OD API as far as these packages go: what it sees is printed.
INPUTS = """
import json, os, sys
from tensorflow.compat.v1 import estimator
print(json.dumps({
    "argv": sys.argv[1:],
    "mode": estimator.ModeKeys.EVAL,
    "keras": os.environ.get("TF_USE_LEGACY_KERAS"),
}))
"""
# As protoc 3.14 began a file, and what reads no more of it than that.
OLD_MESSAGES = "DESCRIPTOR = _descriptor.FileDescriptor(\n"
# What the OD API imports of others when it starts.
NEEDS = (
    *("official", "tf_slim", "lvis", "pycocotools", "PIL", "cv2"),
    *("matplotlib", "pandas", "scipy", "six", "yaml", "gin"),
)
GENERATED = "tensorflow/core/framework/attr_value_pb2.py"
FITTING = {
    "tensorflow": "2.20.0",
    "keras": "3.15.1",
    "tf-keras": "2.20.1",
    "tensorboard": "2.20.0",
    "protobuf": "3.20.3",
    "numpy": "1.23.5",
}


@dataclass(frozen=True)
class Environment:
    """A venv with the wheel installed, and packages that are names, versions and a few lines."""

    root: Path

    @property
    def site(self) -> Path:
        return next((self.root / "lib").glob("python3*")) / "site-packages"

    def has(self, name: str, version: str) -> None:
        """Installs a distribution of which there is nothing but its version."""
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )

    def module(self, path: str, text: str = "") -> None:
        file = self.site / path
        for folder in (file.parent, *file.parent.relative_to(self.site).parents):
            package = self.site / folder
            package.mkdir(parents=True, exist_ok=True)
            if package != self.site:
                (package / "__init__.py").touch()
        file.write_text(text)

    def lose_hooks(self) -> None:
        """Takes the wheel away again."""
        (self.site / PTH).unlink()
        shutil.rmtree(self.site / "od_api_today")

    def python(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
        clean.pop("TF_USE_LEGACY_KERAS", None)
        return subprocess.run(
            [self.root / "bin" / "python", *arguments],
            capture_output=True,
            text=True,
            cwd=self.root,
            env=clean | variables,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built from a copy of its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Environment:
    made = Environment(tmp_path / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.root], check=True)
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(made.site)
    return made


def od_api(environment: Environment, **versions: str) -> None:
    """Installs the packages of a start, in versions that fit unless others are given."""
    for name, version in (FITTING | versions).items():
        if version:
            environment.has(name, version)
    # No module of this name is left out: the hooks look for it before they use it.
    for name in ("tf_keras", "tensorflow_io", "pip", *NEEDS):
        environment.module(f"{name}/__init__.py")
    environment.module("numpy.py")
    environment.module("tensorflow/compat/v1.py")
    environment.module("object_detection/inputs.py", INPUTS)


def test_the_wheel_asks_for_no_other_and_is_read_at_each_start(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        assert PTH in packed.namelist()
        metadata = next(name for name in packed.namelist() if name.endswith("METADATA"))
        assert "Requires-Dist" not in packed.read(metadata).decode()


def test_nothing_happens_where_the_od_api_is_not_imported(environment: Environment) -> None:
    od_api(environment)
    program = (
        "import sys, os, json, tensorflow, tf_keras; print(json.dumps(["
        "sorted(name for name in sys.modules if name.startswith('od_api')),"
        "'importlib.metadata' in sys.modules, 'numpy' in sys.modules,"
        "os.environ.get('TF_USE_LEGACY_KERAS')]))"
    )
    ran = environment.python("-c", program)
    assert (json.loads(ran.stdout), ran.stderr) == ([["od_api_today"], False, False, None], "")


def test_the_od_api_starts_with_what_its_tensorflow_no_longer_has(environment: Environment) -> None:
    od_api(environment)
    ran = environment.python("-m", "object_detection.inputs", "--flag")
    # Executed as __main__ it has no hook; what it imports has.
    assert "cannot import name 'estimator'" in ran.stderr
    ran = environment.python("-c", "import object_detection.inputs", "--flag")
    assert json.loads(ran.stdout) == {"argv": ["--flag"], "mode": "eval", "keras": "1"}
    assert ran.stderr == ""


def test_who_asks_whether_there_is_an_od_api_has_not_imported_it(environment: Environment) -> None:
    od_api(environment)
    program = (
        "import importlib.util, os; found = importlib.util.find_spec('object_detection');"
        "assert found.origin.endswith('object_detection/__init__.py');"
        "print(os.environ.get('TF_USE_LEGACY_KERAS'))"
    )
    assert environment.python("-c", program).stdout == "None\n"


def test_what_is_lent_is_taken_back(environment: Environment) -> None:
    od_api(environment)
    program = (
        "import object_detection.inputs, tensorflow.compat.v1 as v1;"
        "assert not hasattr(v1, 'estimator');"
        "assert type(object_detection.inputs.__loader__).__module__ != 'od_api_today.finder';"
        "print(object_detection.inputs.estimator.ModeKeys.TRAIN);"
        "object_detection.inputs.estimator.Estimator"
    )
    ran = environment.python("-c", program)
    assert ran.stdout.splitlines()[-1] == "train"
    assert "no tf.estimator.Estimator either" in ran.stderr


def test_an_estimator_that_is_there_is_the_one_that_is_taken(environment: Environment) -> None:
    od_api(environment)
    there = "class estimator:\n    class ModeKeys:\n        EVAL = 'its own'\n"
    environment.module("tensorflow/compat/v1.py", there)
    ran = environment.python("-c", "import object_detection.inputs")
    assert json.loads(ran.stdout)["mode"] == "its own"


@pytest.mark.parametrize("words", [("-m", "runs.it"), ("runs/it.py",)])
def test_a_module_or_a_script_starts_with_the_hooks_where_no_pth_file_is_read(
    environment: Environment, words: tuple[str, ...]
) -> None:
    od_api(environment)
    (environment.site / PTH).unlink()
    runs = environment.root / "runs"
    runs.mkdir()
    (runs / "beside.py").touch()
    first = "import beside\n" if words[0] != "-m" else "import runs.beside\n"
    (runs / "it.py").write_text(f"{first}import object_detection.inputs\nraise SystemExit(7)\n")
    assert environment.python(*words, "--flag", "1").returncode == 1
    ran = environment.python("-m", "od_api_today", *words, "--flag", "1")
    assert (ran.returncode, ran.stderr) == (7, "")
    assert json.loads(ran.stdout) == {"argv": ["--flag", "1"], "mode": "eval", "keras": "1"}


def test_a_tensorflow_that_the_hooks_do_not_know_is_told_once_and_left_alone(
    environment: Environment,
) -> None:
    od_api(environment, tensorflow="2.99.1")
    program = (
        "import os, object_detection\n"
        "for _ in range(2):\n"
        "    try: import object_detection.inputs\n"
        "    except ImportError as error: print(error.name)\n"
        "print(os.environ.get('TF_USE_LEGACY_KERAS'))\n"
    )
    ran = environment.python("-c", program)
    assert ran.stdout.split() == ["tensorflow.compat.v1"] * 2 + ["None"]
    (line,) = ran.stderr.splitlines()
    assert "TensorFlow 2.99.1" in line and "up to 2.21" in line
    forced = environment.python("-c", "import object_detection.inputs", OD_API_TODAY_FORCE="1")
    assert json.loads(forced.stdout)["mode"] == "eval"


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"tf-keras": "2.19.0"}, ["it is 2.19: {pip} 'tf-keras==2.20.*'"]),
        ({"tf-keras": ""}, ["there is none: {pip} 'tf-keras==2.20.*'"]),
        (
            {"tensorflow": "2.21.0", "tf-keras": "2.21.0", "tensorboard": ""},
            ["no TensorBoard, without which tf.summary.image raises: {pip} 'tensorboard==2.21.*'"],
        ),
        ({"keras": "2.15.0", "tf-keras": "", "tensorflow": "2.15.1"}, []),
        ({"protobuf": ""}, ["2.20.0 needs protobuf 3.20.3 or newer, and there is none: {pip}"]),
    ],
)
def test_a_package_that_no_hook_brings_is_named_with_its_command(
    environment: Environment, versions: dict[str, str], told: list[str]
) -> None:
    od_api(environment, **versions)
    told = [text.format(pip=f"{environment.root}/bin/python -m pip install") for text in told]
    ran = environment.python("-c", "import object_detection.inputs")
    lines = ran.stderr.splitlines()
    assert len(lines) == len(told) and all(map(str.__contains__, lines, told)), lines
    report = environment.python("-m", "od_api_today")
    assert report.returncode == bool(told)
    assert all(text in report.stdout for text in told)
    assert "put in place at each start" in report.stdout


@pytest.mark.parametrize("protobuf", ["5.29.6", "6.31.0", "6.31.1", "7.36.2"])
def test_a_protobuf_older_than_that_of_tensorflows_messages_is_named(
    environment: Environment, protobuf: str
) -> None:
    od_api(environment, protobuf=protobuf)
    environment.module(GENERATED, "# Generated by protoc.\n# Protobuf Python Version: 6.31.1\n")
    report = environment.python("-m", "od_api_today")
    told = f"TensorFlow 2.20.0 needs protobuf 6.31.1 or newer, and it is {protobuf}"
    command = f"{environment.root}/bin/python -m pip install 'protobuf>=6.31.1'"
    is_old = protobuf < "6.31.1"
    assert (f"{told}: {command}" in report.stdout.splitlines()) is is_old is bool(report.returncode)
    assert ([told, command] in remedies(environment)) is is_old


def test_what_the_od_api_imports_and_is_not_there_is_named_with_a_command(
    environment: Environment,
) -> None:
    od_api(environment)
    for name in ("gin", "official", "pip", "object_detection"):
        shutil.rmtree(environment.site / name)
    report = environment.python("-m", "od_api_today")
    *_, line = report.stdout.splitlines()
    uv = f"uv pip install --python {environment.root}/bin/python"
    assert report.returncode == 1 and line == (
        "the OD API imports what is not installed (tf-models-research-object-detection,"
        f" tf-models-official, gin-config): {uv} gin-config"
        f" && {uv} --no-deps tf-models-research-object-detection tf-models-official"
    )
    environment.module("object_detection/__init__.py")
    *_, found = remedies(environment)
    assert found == [
        "the OD API imports what is not installed (tf-models-official, gin-config)",
        f"{uv} gin-config && {uv} --no-deps tf-models-official",
    ]


def test_doctor_and_the_hooks_know_the_same_packages(environment: Environment) -> None:
    program = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from evaluators.od_api import blockers\n"
        "from od_api_today import environment as hooks\n"
        "api = 'tf-models-research-object-detection'\n"
        "assert blockers.TENSORFLOWS == hooks.TENSORFLOWS\n"
        "assert (('object_detection', api), *blockers._NEEDS) == hooks.NEEDS\n"
        "assert (api, *blockers._ALONE) == hooks.ALONE\n"
        "assert blockers._NEWEST_TENSORBOARD == hooks.NEWEST_TENSORBOARD"
    )
    ran = environment.python("-c", program)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--help"], 0, "usage: python -m od_api_today"),
        (["-m"], 2, "usage: python -m od_api_today"),
        (["-m", "nosuch.module"], 1, "od-api-today: there is no module nosuch.module"),
        (["-m", "six.nosuch"], 1, "od-api-today: there is no module six.nosuch"),
        (["nosuch.py"], 1, "od-api-today: there is no file nosuch.py"),
    ],
)
def test_what_cannot_be_started_is_told_in_a_line(
    environment: Environment, arguments: list[str], status: int, told: str
) -> None:
    od_api(environment)
    ran = environment.python("-m", "od_api_today", *arguments)
    said = ran.stdout if status == 0 else ran.stderr
    assert ran.returncode == status and said.startswith(told), ran.stderr
    assert status != 1 or said.count("\n") == 1


# -- doctor's list of what stands in the way


BLOCKED = {
    "the OD API's message files": {"protobuf": "5.29.6"},
    "control_flow_ops.case": {"tensorflow": "2.14.1", "keras": "2.14.0"},
    "no estimator": {"tensorflow": "2.16.2", "tf-keras": "2.16.0"},
    "tf.keras is Keras 3": {"tensorflow": "2.16.2", "tf-keras": "2.16.0"},
    "ResNets would be built from Keras 3": {"tensorflow": "2.16.2", "tf-keras": "2.16.0"},
    "no tensorflow_io": {},
    "tf-keras 2.20 beside TensorFlow 2.20: there is none": {"tf-keras": ""},
    "it is 2.18": {"tf-keras": "2.18.0"},
    "there is no TensorBoard": {"tensorboard": ""},
}
OLD_FILES = {
    "object_detection/protos/pipeline_pb2.py": OLD_MESSAGES,
    "object_detection/inputs.py": "from tensorflow.compat.v1 import estimator as tf_estimator\n",
    "object_detection/models/keras_models/resnet_v1.py": "from keras.applications import resnet\n",
    "object_detection/meta_architectures/deepmac_meta_arch.py": "import tensorflow_io as tfio\n",
    "tf_slim/data/tfexample_decoder.py": "    image = control_flow_ops.case(\n",
}


def remedies(environment: Environment) -> list[list[str]]:
    program = (
        f"import json, sys; sys.path.append({str(ROOT)!r})\n"
        "from evaluators.od_api import blockers\n"
        "print(json.dumps(blockers.remedies()))"
    )
    ran = environment.python("-c", program)
    assert ran.returncode == 0, ran.stderr
    found: list[list[str]] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("told", BLOCKED)
def test_each_thing_that_stands_in_the_way_is_named_with_a_command(
    environment: Environment, told: str
) -> None:
    od_api(environment, **BLOCKED[told])
    environment.lose_hooks()
    for file, text in OLD_FILES.items():
        environment.module(file, text)
    if told == "no tensorflow_io":
        shutil.rmtree(environment.site / "tensorflow_io")
    found = {what: command for what, command in remedies(environment) if told in what}
    (command,) = found.values()
    wanted = (
        "tf-keras==2.20" if "tf-keras" in BLOCKED[told] and "2.16" not in str(BLOCKED[told]) else ""
    )
    assert (wanted or ("tensorboard==2.20" if "TensorBoard" in told else "od-api-today")) in command
    assert command.startswith(f"{environment.root}/bin/python -m pip install ")


def test_what_was_patched_by_hand_is_not_in_the_way(environment: Environment) -> None:
    od_api(environment, protobuf="5.29.6", tensorflow="2.15.1", keras="2.15.0")
    environment.lose_hooks()
    for file in OLD_FILES:
        environment.module(file, "# mended here\n")
    assert remedies(environment) == []


def test_init_and_doctor_name_what_stands_in_the_way_and_the_command(
    environment: Environment, tmp_path: Path
) -> None:
    od_api(environment, protobuf="7.36.2")
    environment.lose_hooks()
    environment.module("object_detection/protos/__init__.py")
    error = "raise TypeError('Descriptors cannot be created directly.\\nMore information: ...')\n"
    messages = environment.site / "object_detection" / "protos" / "pipeline_pb2.py"
    messages.write_text(f'"""{OLD_MESSAGES}"""\n{error}')
    python, model_dir = environment.root / "bin" / "python", tmp_path / "model_dir"
    model_dir.mkdir()
    (tmp_path / "pipeline.config").write_text("model { ssd { num_classes: 2 } }\n")
    given = ["--python", str(python), "--pipeline-config", str(tmp_path / "pipeline.config")]
    told = "protobuf 4 and newer refuse the OD API's message files"
    command = f"{python} -m pip install --upgrade od-api-today"
    for words in (["init", str(model_dir), *given, "-o", "-"], ["doctor", str(model_dir), *given]):
        ran = subprocess.run(
            [sys.executable, "-m", "watcher", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "1000"},
        )
        said = " ".join((ran.stdout + ran.stderr).split())
        assert told in said and command in said and "created directly." in said, said
        assert "More information" not in said
