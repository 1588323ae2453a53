"""What is published is what `best/` shows, whole at any instant, through all that goes wrong."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import BUCKET, KEYS, Answer, Request, Run, Server, have_keys_alone, proxied, served
from fake_trainer import Manager, model_tensors, write_checkpoint
from watching import Watcher, cli, wait_until

from watcher.checkpoints.bundle import verify
from watcher.config import load_settings
from watcher.config.bucket import parse_place
from watcher.config.run import RunSettings
from watcher.config.source import SourceSettings
from watcher.errors import ConfigError, CorruptCheckpoint
from watcher.service import publish
from watcher.service.publish import Publication
from watcher.sources.object_store import ObjectError, ObjectFolder

CLAIM = "checkpoint-watcher.json"
DATA = "ckpt-1.data-00000-of-00001"


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with served(request.param, tmp_path_factory.mktemp(request.param)) as one:
        yield one


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    have_keys_alone(monkeypatch, tmp_path)
    monkeypatch.setattr(publish, "_FIRST_RETRY_SECONDS", 0.05)
    with proxied(server) as made:
        yield made


def source_of(run: Run, port: int | None = None) -> SourceSettings:
    """Return how obstore reaches the server, past the proxy where a port is given."""
    url = run.proxy.endpoint if port is None else f"http://127.0.0.1:{port}"
    return SourceSettings(endpoint_url=url)


def environment_of(run: Run) -> dict[str, str]:
    """Return the same for a program."""
    return {"CHECKPOINT_WATCHER_ENDPOINT_URL": run.proxy.endpoint, **KEYS}


class Local:
    """A best/ as the watcher writes one, and what publishes it."""

    def __init__(self, folder: Path, run: Run, uuid: str = "one") -> None:
        self.uuid, self.there = uuid, run
        self.settings = RunSettings(model_dir=str(folder), state_dir=str(folder / "watcher"))
        self.best = folder / "best"
        self.settings.state_path.mkdir(parents=True)
        self.best.mkdir()

    def publication(self, evict_seconds: float = 0.0) -> Publication:
        source = source_of(self.there)
        place = parse_place(self.there.url)
        return Publication(place, self.settings, self.uuid, source, evict_seconds)

    def show(self, *numbers: int, size: int = 2000, anew: str = "") -> None:
        """Let best/ hold these, the first as the best; `anew` is of a trainer that started over."""
        rows = []
        for number in numbers:
            name = f"ckpt-{number}"
            if not (self.best / f"{name}.index").exists():
                write_checkpoint(
                    self.best, name, number, model_tensors(size, f"{self.uuid}{number}{anew}")
                )
            sha256 = f"{number}{anew}" * 8
            rows.append({"checkpoint": name, "sha256": sha256, "rank": len(rows) + 1})
        content = {"run_uuid": self.uuid, "checkpoints": rows}
        self._replace(self.best / "best.json", json.dumps(content))
        self._replace(self.best / "checkpoint", f'model_checkpoint_path: "ckpt-{numbers[0]}"\n')
        for file in self.best.glob("ckpt-*.*"):
            if int(file.name.split(".")[0].removeprefix("ckpt-")) not in numbers:
                file.unlink()

    def _replace(self, path: Path, text: str) -> None:
        path.with_suffix(".tmp").write_text(text)
        path.with_suffix(".tmp").rename(path)

    def names(self) -> set[str]:
        """Names of what lies there now, without what says whose it is."""
        place = parse_place(self.there.url)
        folder = ObjectFolder(place, source_of(self.there, self.there.server.port))
        return {one.name for one in folder.list()[0]} - {CLAIM}


@pytest.fixture
def local(run: Run, tmp_path: Path) -> Local:
    return Local(tmp_path / "run", run)


def object_of(request: Request) -> str:
    return request.path.split("/")[3].partition("?")[0]


def puts(run: Run) -> list[str]:
    names = [object_of(one) for one in run.proxy.requests if one.method == "PUT"]
    return [name for name in names if name != CLAIM]


def files_of(*numbers: int) -> set[str]:
    ends = (".index", ".data-00000-of-00001")
    return {f"ckpt-{number}{end}" for number in numbers for end in ends}


def test_data_come_first_and_the_name_of_the_best_last(local: Local, run: Run):
    local.show(2, 1)
    local.publication().update()
    assert local.names() == {*files_of(1, 2), "best.json", "checkpoint"}
    order = puts(run)
    assert order[-2:] == ["best.json", "checkpoint"]
    for number in (1, 2):
        assert order.index(f"ckpt-{number}.data-00000-of-00001") < order.index(
            f"ckpt-{number}.index"
        )
    for name in local.names():
        assert run.server.get(f"{run.prefix}/{name}") == (local.best / name).read_bytes()


def test_what_is_there_is_not_uploaded_again(local: Local, run: Run):
    local.show(2, 1)
    local.publication().update()
    run.proxy.requests.clear()
    local.publication().update()  # as the next start
    assert not puts(run)
    local.show(3, 2)
    local.publication().update()
    assert set(puts(run)) == {*files_of(3), "best.json", "checkpoint"}


def test_what_fell_out_goes_after_a_while_and_what_is_not_ours_stays(
    local: Local, run: Run, monkeypatch: pytest.MonkeyPatch
):
    run.put("notes.txt", b"a user's")
    run.put("ckpt-9.index", b"a user's, too")
    local.show(2, 1)
    one = local.publication(evict_seconds=0.3)
    one.update()
    local.show(3, 2)
    one.update()
    assert files_of(1) <= local.names()
    wait_until(lambda: one._evict_at() <= publish.time.monotonic(), "it is due")
    deleted: list[str] = []

    def delete(folder: ObjectFolder, name: str) -> None:
        deleted.append(name)
        really(folder, name)

    really = ObjectFolder.delete
    monkeypatch.setattr(ObjectFolder, "delete", delete)
    one.update()
    assert deleted[0] == "ckpt-1.index" and set(deleted) == files_of(1)  # no index without data
    theirs = {"notes.txt", "ckpt-9.index"}
    assert local.names() == {*files_of(2, 3), "best.json", "checkpoint", *theirs}


def test_an_upload_that_breaks_off_is_gone_on_with(local: Local, run: Run):
    local.show(3, 2, 1)
    seen: list[str] = []

    def break_off(request: Request) -> Answer | None:
        if request.method == "PUT" and object_of(request) != CLAIM:
            seen.append(request.path)
            return Answer(503, b"<Error><Code>SlowDown</Code></Error>") if len(seen) > 3 else None
        return None

    run.proxy.fault = break_off
    with pytest.raises(ObjectError, match="throttles"):
        local.publication().update()
    assert "checkpoint" not in local.names()
    run.proxy.fault = lambda _: None
    first = set(puts(run)[:3])
    run.proxy.requests.clear()
    local.publication().update()
    assert not first & set(puts(run))
    assert local.names() == {*files_of(1, 2, 3), "best.json", "checkpoint"}


def test_a_folder_of_another_run_is_left_as_it_is(local: Local, run: Run, tmp_path: Path):
    local.show(1)
    local.publication().update()
    other = Local(tmp_path / "other", run, uuid="two")
    other.show(2)
    with pytest.raises(ObjectError, match=r"belongs to another run.*give --publish a folder"):
        other.publication().update()
    assert local.names() == {*files_of(1), "best.json", "checkpoint"}


def test_of_two_runs_that_begin_at_once_one_has_the_folder(local: Local, run: Run, tmp_path: Path):
    other = Local(tmp_path / "other", run, uuid="two")
    local.show(1)
    other.show(2)

    def come_first(request: Request) -> None:
        if request.method == "PUT":
            run.proxy.fault = lambda _: None
            other.publication().update()

    run.proxy.fault = come_first
    with pytest.raises(ObjectError, match="belongs to another run"):
        local.publication().update()
    assert local.names() == {*files_of(2), "best.json", "checkpoint"}
    assert json.loads(run.server.get(f"{run.prefix}/{CLAIM}") or b"")["run_uuid"] == "two"


@pytest.mark.parametrize("name", ["checkpoint", "best.json", DATA, "EARLY_STOP"])
def test_an_object_of_somebody_else_is_not_written_over(local: Local, run: Run, name: str):
    run.put(name, b"a trainer's")
    local.show(1)
    local.settings.sentinel_path.write_text('{"reason": "patience"}')
    for _ in range(2):
        with pytest.raises(ObjectError, match=f"{name} was not put there by this run"):
            local.publication().update()
    assert run.server.get(f"{run.prefix}/{name}") == b"a trainer's"
    assert "checkpoint" not in local.names() - {name}


def test_one_that_comes_between_is_not_written_over_either(local: Local, run: Run):
    local.show(1)

    def come_between(request: Request) -> None:
        if request.method == "PUT" and object_of(request) == DATA:
            run.put("ckpt-1.index", b"a trainer's")

    run.proxy.fault = come_between
    with pytest.raises(ObjectError, match=r"ckpt-1\.index was not put there by this run"):
        local.publication().update()
    assert run.server.get(f"{run.prefix}/ckpt-1.index") == b"a trainer's"


def test_one_that_somebody_replaced_is_neither_written_over_nor_deleted(local: Local, run: Run):
    local.show(2, 1)
    local.publication().update()
    run.put("checkpoint", b"a trainer's")
    run.put(DATA, b"a trainer's")
    local.show(3, 2)
    with pytest.raises(ObjectError, match="checkpoint was not put there by this run"):
        local.publication().update()
    run.delete("checkpoint")  # as the hint says
    local.publication().update()
    assert run.server.get(f"{run.prefix}/{DATA}") == b"a trainer's"
    assert local.names() == {*files_of(2, 3), "best.json", "checkpoint", DATA}


def test_what_was_published_is_known_again_where_the_state_folder_was_lost(local: Local, run: Run):
    run.put("notes.txt", b"a user's")
    local.show(2, 1)
    local.settings.sentinel_path.write_text('{"run": "one"}')
    local.publication().update()
    (local.settings.state_path / publish.FILE_NAME).unlink()
    local.show(3, 2)
    local.settings.sentinel_path.unlink()
    run.proxy.requests.clear()
    local.publication().update()
    assert set(puts(run)) == {*files_of(3), "best.json", "checkpoint"}
    assert local.names() == {*files_of(2, 3), "best.json", "checkpoint", "notes.txt"}


def test_an_upload_that_nobody_heard_the_end_of_is_known(local: Local, run: Run):
    local.show(1)
    cut = Answer(503, b"<Error><Code>SlowDown</Code></Error>")

    def cut_off(request: Request) -> Answer | None:
        there = DATA in local.names()
        return cut if request.method == "GET" and there else None  # the list after it

    run.proxy.fault = cut_off
    with pytest.raises(ObjectError):
        local.publication().update()
    run.proxy.fault = lambda _: None
    run.proxy.requests.clear()
    local.publication().update()
    assert puts(run) == ["ckpt-1.index", "best.json", "checkpoint"]


def test_one_that_failed_makes_nothing_of_somebody_else_ours(local: Local, run: Run):
    local.show(1)
    local.publication().update()
    local.show(2)
    busy = Answer(503, b"<Error><Code>SlowDown</Code></Error>")
    run.proxy.fault = lambda request: (
        busy if request.method == "PUT" and object_of(request) == "checkpoint" else None
    )
    with pytest.raises(ObjectError):
        local.publication().update()
    run.put("checkpoint", b"a trainer's")
    run.proxy.fault = lambda _: None
    with pytest.raises(ObjectError, match="checkpoint was not put there by this run"):
        local.publication().update()
    assert run.server.get(f"{run.prefix}/checkpoint") == b"a trainer's"


def test_a_name_that_comes_back_with_other_content_is_named_by_nothing_meanwhile(
    local: Local, run: Run
):
    local.show(1)
    local.publication().update()
    local.show(2)  # that is not seen: nothing is published meanwhile
    local.show(1, anew="again")
    torn: list[str] = []

    def look(request: Request) -> None:
        there = local.names()
        if files_of(1) - there and there & {"checkpoint", "best.json"}:
            torn.append(f"{there} before {request.path}")
        if request.method == "PUT" and object_of(request) in files_of(1) & there:
            torn.append(f"{request.path} is written over")

    run.proxy.fault = look
    run.proxy.requests.clear()
    local.publication().update()
    assert {*files_of(1), "checkpoint", "best.json"} == set(puts(run))
    assert not torn
    for name in local.names():
        assert run.server.get(f"{run.prefix}/{name}") == (local.best / name).read_bytes()


def test_a_best_in_between_two_states_is_not_published(
    local: Local, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(publish, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(publish, "_CHANGES_TOLD", 3)
    local.show(1)
    local.publication().update()
    state = (local.best / "checkpoint").read_text()
    local.show(2)
    (local.best / "checkpoint").write_text(state)  # a crash came before this was replaced
    local.settings.sentinel_path.write_text('{"reason": "patience"}')
    with local.publication() as one:
        wait_until(lambda: one.problem is not None, "it is told")
        assert "do not name the same checkpoints" in str(one.problem)
        # The sentinel does not wait for that.
        assert local.names() == {*files_of(1), "best.json", "checkpoint", "EARLY_STOP"}
        local.show(2)
        wait_until(lambda: files_of(2) <= local.names(), "it goes on")
    assert one.problem is None


def test_a_local_folder_that_is_lost_costs_nothing_there(local: Local, run: Run):
    local.show(1)
    local.publication().update()
    for file in local.best.iterdir():
        file.unlink()
    local.publication().update()
    assert local.names() == {*files_of(1), "best.json", "checkpoint"}


def test_the_sentinel_comes_before_all_else_and_goes_with_the_local_one(local: Local, run: Run):
    local.show(1)
    local.settings.sentinel_path.write_text('{"reason": "patience"}')
    local.publication().update()
    assert puts(run)[0] == "EARLY_STOP"
    local.settings.sentinel_path.unlink()
    local.publication().update()
    assert "EARLY_STOP" not in local.names()


def test_a_sentinel_does_not_wait_for_uploads_that_have_begun(local: Local, run: Run):
    local.show(3, 2, 1)

    def stop_now(request: Request) -> None:
        if request.method == "PUT" and object_of(request) != CLAIM:
            local.settings.sentinel_path.write_text('{"reason": "patience"}')

    run.proxy.fault = stop_now
    local.publication().update()
    assert puts(run)[1] == "EARLY_STOP"


def test_at_any_instant_what_is_named_there_is_whole(local: Local, run: Run, tmp_path: Path):
    torn: list[str] = []
    ended = threading.Event()

    def look() -> None:
        place = tmp_path / "seen"
        place.mkdir()
        while not ended.wait(0.01):
            state = run.server.get(f"{run.prefix}/checkpoint")
            if state is None:
                continue
            name = state.decode().split('"')[1]
            for file in sorted(files_of(int(name.removeprefix("ckpt-")))):
                (place / file).write_bytes(run.server.get(f"{run.prefix}/{file}") or b"")
            try:
                verify(place / name)
            except CorruptCheckpoint as error:
                torn.append(f"{name}: {error}")

    looking = threading.Thread(target=look)
    looking.start()
    one = local.publication(evict_seconds=0.5)
    for number in range(1, 8):
        local.show(number, size=200_000)
        one.update()
    ended.set()
    looking.join()
    assert not torn


@pytest.mark.slow
def test_a_run_publishes_its_best_and_its_end(watcher: Watcher, run: Run):
    manager = Manager(watcher.model_dir)
    for number in (1, 2, 3):
        manager.save(100 * number, model_tensors(2000, number))
    flags = ["--publish", run.url, "--max-steps", 300]
    assert watcher.run(*flags, "--top-k", 2, **environment_of(run)) == 0
    for name in (*files_of(2, 3), "best.json", "checkpoint"):
        assert run.server.get(f"{run.prefix}/{name}") == (watcher.best_dir / name).read_bytes()
    stop = run.server.get(f"{run.prefix}/EARLY_STOP")
    assert stop and json.loads(stop) == watcher.stop_notice()
    # And another machine sees it there.
    where = environment_of(run)
    shown = cli("status", run.url, **where).stdout
    assert re.search(r"1  ckpt-3 +300  0\.0030", shown) and "max_steps" in shown
    told = json.loads(cli("status", run.url, "--json", **where).stdout)
    assert [row["checkpoint"] for row in told["best"]["checkpoints"]] == ["ckpt-3", "ckpt-2"]
    nothing = cli("status", f"{run.url}/nowhere", **where)
    assert nothing.returncode == 1 and "no best.json is published" in nothing.stderr


def test_status_of_a_url_shows_what_a_row_does_not_tell_as_a_dash(run: Run):
    rows = [{"rank": 1, "checkpoint": "ckpt-1", "global_step": None, "score": None}, {}]
    run.put("best.json", json.dumps({"run": "some", "checkpoints": rows}).encode())
    shown = cli("status", run.url, **environment_of(run))
    assert shown.returncode == 0
    assert re.search(r"1  ckpt-1 +-  -\n +-  - +-  -", shown.stdout)


@pytest.mark.slow
def test_a_run_goes_on_where_nothing_can_be_published(watcher: Watcher, run: Run):
    Manager(watcher.model_dir).save(100, model_tensors(2000, 1))
    run.proxy.fault = lambda _: Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
    assert watcher.run("--publish", run.url, **environment_of(run)) == 0
    assert watcher.states() == {"ckpt-1": "scored"}
    log = watcher.log.read_text()
    assert log.count("access is denied") == 1
    assert "not all of best/ is published" in log


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"publish": "here"}, r"publish \(here\) is invalid: expected a folder in a bucket"),
        ({"publish": "s3:/b/run"}, "did you mean s3://b/run"),
        (
            {"model_dir": f"s3://{BUCKET}/run", "state_dir": "s", "publish": f"s3://{BUCKET}/run/"},
            f"publish .s3://{BUCKET}/run. is MODEL_DIR",
        ),
    ],
)
def test_a_wrong_place_to_publish_to_is_refused(flags: dict[str, str], told: str):
    with pytest.raises(ConfigError, match=told):
        load_settings({"model_dir": "m", "pipeline_config": "p", **flags}, {}, None)
