"""A MODEL_DIR in a bucket: what is taken for one, and what is refused, with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from watching import STUB, cli

from watcher.config import load_settings
from watcher.config.bucket import Place, as_typed, is_url, parse_place
from watcher.errors import ConfigError

REQUIRED = {"pipeline_config": "p.config", "state_dir": "/var/lib/run"}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("gs://bucket/run", Place("gs", "bucket", "run")),
        ("s3://bucket/a/b c/run-1/", Place("s3", "bucket", "a/b c/run-1")),
        ("gs://bucket", Place("gs", "bucket")),
        ("s3://my.bucket_1/", Place("s3", "my.bucket_1")),
    ],
)
def test_a_url_is_taken_apart(text: str, place: Place):
    assert parse_place(text) == place
    assert str(place) == text.rstrip("/")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("gs:/bucket/run", "did you mean gs://bucket/run"),
        ("gs//bucket/run", "did you mean gs://bucket/run"),
        ("s3:///bucket/run", "did you mean s3://bucket/run"),
        ("S3://bucket/run", "did you mean s3://bucket/run"),
        ("s3a://bucket/run", "did you mean s3://bucket/run"),
        ("gcs://bucket/run", "did you mean gs://bucket/run"),
        ("https://storage.googleapis.com/bucket/run", "gs://bucket/run or s3://bucket/run"),
        ("hdfs://bucket/run", "gs://bucket/run or s3://bucket/run"),
        ("gs://", "nothing is no bucket's name"),
        ("gs://b/run", "b is no bucket's name"),
        ("s3://bucket/a//b", "without empty names"),
        ("s3://bucket/../other", "without empty names"),
        ("s3://bucket/run?versionId=1", "without empty names"),
    ],
)
def test_a_url_that_is_wrong_is_refused_with_what_was_meant(text: str, meant: str):
    with pytest.raises(ConfigError) as raised:
        load_settings({**REQUIRED, "model_dir": text}, {}, None)
    assert meant in raised.value.message
    assert f"model_dir ({text})" in raised.value.message


@pytest.mark.parametrize("text", ["models/gs", "./gs:/bucket", "/gs://x", "a:b", "run-1"])
def test_a_folder_is_no_url(text: str):
    assert not is_url(text)


def test_a_path_that_was_a_url_is_shown_as_one():
    assert as_typed(Path("gs://bucket/run")) == "gs://bucket/run"


def test_the_local_folder_stands_for_a_bucket():
    run = load_settings({**REQUIRED, "model_dir": "gs://bucket/exp/run-7"}, {}, None).run
    state = Path("/var/lib/run")
    assert (run.model_path, run.state_path) == (state, state)
    assert run.best_path == state / "best"
    assert run.sentinel_path == state / "EARLY_STOP"
    assert run.eval_path == state / "eval"
    assert (run.name, run.origin) == ("run-7", Place("gs", "bucket", "exp/run-7"))


def test_a_bucket_needs_a_state_folder_that_is_given():
    flags = {"pipeline_config": "p.config", "model_dir": "gs://bucket/run"}
    with pytest.raises(ConfigError, match="state_dir is not set, and MODEL_DIR is gs://bucket/run"):
        load_settings(flags, {}, None)


@pytest.mark.parametrize("name", ["state_dir", "best_dir", "pipeline_config", "sentinel"])
def test_all_but_model_dir_must_be_on_this_machine(name: str):
    flags = {**REQUIRED, "model_dir": "gs://bucket/run", name: "gs://bucket/other"}
    with pytest.raises(ConfigError, match=rf"{name} \(gs://bucket/other\) must be on this machine"):
        load_settings(flags, {}, None)


def test_only_what_reads_buckets_needs_obstore(tmp_path: Path):
    (tmp_path / "obstore.py").write_text("raise ModuleNotFoundError('obstore', name='obstore')\n")
    (tmp_path / "p.config").touch()
    flags = ["--state-dir", tmp_path / "s", "--pipeline-config", tmp_path / "p.config"]
    answer = cli("run", "gs://bucket/run", *flags, "--python", STUB, PYTHONPATH=str(tmp_path))
    assert answer.returncode == 1
    assert "needs obstore, which is not installed" in answer.stderr
    assert "pip install 'checkpoint-watcher[remote]'" in answer.stderr


def test_commands_that_read_say_where_the_database_of_a_bucket_is():
    for command in (["best"], ["history"], ["keep"], ["requeue"], ["leaderboard"]):
        words = ["ckpt-1"] if command[0] in ("keep", "requeue") else []
        answer = cli(*command, "gs://bucket/run", *words)
        assert answer.returncode == 1, command
        assert "database of gs://bucket/run is on the machine that watches it" in answer.stderr
        assert "--state-dir" in answer.stderr
