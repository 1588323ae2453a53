"""doctor on a bucket: what a run would lack there is named, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import KEYS, Answer, Run, Server, have_keys_alone, proxied, served
from fake_trainer import write_checkpoint
from watching import STUB, cli

from watcher.checkpoints.bundle_format import OD_API
from watcher.config import Settings
from watcher.config.bucket import parse_place
from watcher.config.source import SourceSettings
from watcher.doctor import bucket
from watcher.doctor.finding import Finding
from watcher.doctor.folders import file_system, local_state
from watcher.sources.bucket import Bucket
from watcher.sources.local import LocalFolder

DENIED = Answer(403, b"<Error><Code>AccessDenied</Code></Error>")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served("s3", tmp_path_factory.mktemp("s3")) as one:
        yield one


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    have_keys_alone(monkeypatch, tmp_path)
    with proxied(server) as made:
        yield made


def look(run: Run, **more: object) -> dict[str, Finding]:
    settings = SourceSettings(endpoint_url=run.proxy.endpoint, **more)
    source = Bucket(parse_place(run.url), OD_API, settings)
    return {one.check: one for one in bucket.model_dir(source, settings)}


def test_a_bucket_that_can_be_read_is_ok_and_has_its_price(run: Run, tmp_path: Path):
    run.save(write_checkpoint(tmp_path, "ckpt-3", 300, {}))
    found = look(run)
    assert found["model_dir"].severity == "ok"
    assert found["model_dir"].message.startswith("1 checkpoints, ckpt-3 written ")
    assert found["polling"].message == "a list each 20 s is 129,600 a month, about 0.65 USD"


def test_what_a_run_would_be_refused_for_is_an_error_with_a_remedy(run: Run):
    empty = look(run)["model_dir"]
    assert empty.severity == "error" and "there is nothing in model_dir" in empty.message
    assert "--wait-for-model-dir" in str(empty.remedy)
    assert look(run, wait_for_model_dir=True)["model_dir"].severity == "ok"
    run.proxy.fault = lambda _: DENIED
    denied = look(run)["model_dir"]
    assert (denied.severity, denied.message) == ("error", f"{run.url}: access is denied")
    assert "right to list the bucket" in str(denied.remedy)


def test_a_right_to_list_alone_is_not_enough(run: Run, tmp_path: Path):
    run.save(write_checkpoint(tmp_path, "ckpt-3", 300, {}))
    run.proxy.fault = lambda request: None if request.is_list else DENIED
    settings = SourceSettings(endpoint_url=run.proxy.endpoint)
    source = Bucket(parse_place(run.url), OD_API, settings)
    errors = [one for one in bucket.model_dir(source, settings) if one.severity == "error"]
    assert len(errors) == 1
    assert "ckpt-3 cannot be read, though it is listed" in errors[0].message


def test_publishing_is_tried_and_leaves_nothing(run: Run):
    place, settings = parse_place(run.url), SourceSettings(endpoint_url=run.proxy.endpoint)
    (found,) = bucket.publishing(place, settings)
    assert found.severity == "ok"
    source = Bucket(place, OD_API, settings)
    assert not source._folder.list()[1]
    run.proxy.fault = lambda request: DENIED if request.method == "PUT" else None
    (found,) = bucket.publishing(place, settings)
    assert found.severity == "error" and "for --publish" in str(found.remedy)


def test_a_state_folder_that_is_not_here_is_an_error(tmp_path: Path):
    settings = Settings.of(
        model_dir="gs://bucket/run", state_dir=str(tmp_path), pipeline_config="p"
    )
    local = "30 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    remote = local + f"31 30 0:99 / {tmp_path} rw - fuse.gcsfuse bucket rw\n"
    assert [one.severity for one in local_state(settings.run, local)] == ["ok"]
    (found,) = local_state(settings.run, remote)
    assert found.severity == "error"
    assert "is on fuse.gcsfuse, not on a disk of this machine" in found.message


def test_a_database_in_a_mounted_bucket_is_an_error(tmp_path: Path):
    run = Settings.of(model_dir=str(tmp_path), pipeline_config="p").run
    for kind, severity in (("gcsfuse", "error"), ("s3fs", "error"), ("sshfs", "warning")):
        mounts = f"30 1 8:1 / / rw - ext4 d rw\n31 30 0:9 / {tmp_path} rw - fuse.{kind} b rw\n"
        found = file_system(run, LocalFolder(tmp_path, OD_API), mounts)
        (place,) = [one for one in found if one.check == "database place"]
        assert place.severity == severity, kind


@pytest.mark.slow
def test_doctor_looks_at_a_bucket(run: Run, tmp_path: Path):
    run.save(write_checkpoint(tmp_path / "t", "ckpt-3", 300, {}))
    pipeline = tmp_path / "pipeline.config"
    pipeline.touch()
    words = [run.url, "--state-dir", tmp_path / "state", "--endpoint-url", run.proxy.endpoint]
    words += ["--pipeline-config", pipeline, "--python", STUB, "--publish", f"{run.url}/best"]
    said = cli("doctor", *words, **KEYS).stdout
    for check in ("model_dir", "polling", "publish", "database place"):
        assert f"ok     {check} " in said, said
    assert "hard links" not in said
    assert "events" not in said.split("ok     ")
