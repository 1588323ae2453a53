"""What is not evaluated although it looks like a checkpoint is told, with what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors, write_checkpoint
from folder_source import scan
from watching import Watcher, wait_until

from watcher.checkpoints.bundle_format import MODEL_GARDEN, OD_API
from watcher.config import Settings
from watcher.doctor import folders
from watcher.sources import local
from watcher.sources.passed_over import Entry, look, passed_over

NOW = 1000.0
OLD, NEW = NOW - 3600, NOW - 1


def kinds(*names: str, written_at: float = OLD, links: tuple[str, ...] = ()) -> dict[str, str]:
    """Kind to names, as text, of files of these names."""
    entries = [Entry(name, name in links, written_at) for name in names]
    return {one.kind: " ".join(one.names) for one in passed_over(entries, OD_API, NOW)}


def whole(*prefixes: str) -> list[str]:
    ends = (".index", ".data-00000-of-00001")
    return [prefix + end for prefix in prefixes for end in ends]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (whole("ckpt-1", "ckpt-20"), {}),
        (["ckpt-1.index"], {}),  # it ends as corrupt, which is an outcome
        (whole("ckpt-0"), {"exported": "ckpt-0"}),
        (whole("checkpoint/ckpt-0"), {"exported": "checkpoint/ckpt-0"}),
        (whole("model.ckpt-50", "model.ckpt"), {"tf1": "model.ckpt model.ckpt-50"}),
        (whole("my_ckpt-9", "my_ckpt-10"), {"name": "my_ckpt-9 my_ckpt-10"}),
        (whole("ckpt-03", f"ckpt-{'9' * 30}"), {"name": f"ckpt-03 ckpt-{'9' * 30}"}),
        (whole("variables"), {"name": "variables"}),
        (["vocabulary.index", "ckpt-3_temp", "checkpoint", "events.out.tfevents.1"], {}),
        (["ckpt-12.index.bak", "ckpt-12.index~"], {"copy": "ckpt-12.index.bak ckpt-12.index~"}),
        (whole("checkpoint/ckpt-3", "ckpt-1"), {"folder": "checkpoint/ckpt-3"}),
        (["ckpt-3.data-00000-of-00002"], {"no index": "ckpt-3"}),
        (["logs.data-00000-of-00002"], {}),
    ],
)
def test_each_name_that_is_not_looked_at_has_its_reason(names: list[str], expected: object):
    assert kinds(*names) == expected


def test_a_link_is_told_of_and_a_save_under_way_is_not():
    assert kinds("ckpt-1.index", links=("ckpt-1.index",)) == {"link": "ckpt-1"}
    assert kinds("ckpt-1.data-00000-of-00001", written_at=NEW) == {}


def test_what_model_garden_keeps_by_itself_is_told_as_that():
    names = ["best_ckpt/best_ckpt-1", "ema_checkpoints/average_weights-20", "other/ckpt-20"]
    entries = [Entry(name, written_at=OLD) for name in whole(*names, "my_ckpt-3", "ckpt-20")]
    found = {one.kind: one for one in passed_over(entries, MODEL_GARDEN, NOW)}
    assert {kind: list(one.names) for kind, one in found.items()} == {
        "own best": names[:2],
        "folder": names[2:],
        "name": ["my_ckpt-3"],
    }
    assert "Model Garden keeps by itself" in str(found["own best"])
    assert "with the step for N" in str(found["name"]) and "OD API" not in str(found["name"])


def test_of_many_a_few_are_named_and_all_counted():
    [found] = passed_over(
        [Entry(name) for name in whole(*(f"my_ckpt-{n}" for n in range(9)))], OD_API, NOW
    )
    assert "my_ckpt-0, my_ckpt-1, my_ckpt-2 and 6 more: " in str(found)


def test_the_runs_own_folders_and_half_saves_are_left_out(tmp_path: Path):
    for folder in ("best", "best-loss", "elsewhere", "ckpt-3_temp"):
        write_checkpoint(tmp_path / folder, "ckpt-7", 100, model_tensors(4000, 1))
    for folder in ("best-loss", "elsewhere"):
        (tmp_path / folder / "best.json").touch()
    assert look(tmp_path, OD_API) == []
    write_checkpoint(tmp_path / "other", "ckpt-7", 100, model_tensors(4000, 1))
    assert [one.names for one in look(tmp_path, OD_API)] == [("other/ckpt-7",)]


def save_passed_over(folder: Path) -> None:
    """What the model zoo brings, and a trainer that names its checkpoints otherwise."""
    write_checkpoint(folder, "ckpt-0", None, model_tensors(4000, 0))
    write_checkpoint(folder, "my_ckpt-3", 300, model_tensors(4000, 3))


def test_run_tells_each_reason_once_and_evaluates_the_others(watcher: Watcher):
    save_passed_over(watcher.model_dir)
    Manager(watcher.model_dir).save(100, model_tensors(4000, 1))
    watcher.start("--rescan-seconds", 0.2)
    wait_until(lambda: watcher.states() == {"ckpt-1": "scored"}, "what is looked at is evaluated")
    events = [row["message"] for row in watcher.query("SELECT message FROM events")]
    assert watcher.stop() == 0
    for text in ("not evaluated: ckpt-0: what a training starts", "not evaluated: my_ckpt-3: the"):
        assert watcher.log.read_text().count(text) == 1
        assert len([message for message in events if message.startswith(text)]) == 1


@pytest.mark.parametrize("evaluated", [0, 1])
def test_doctor_tells_of_them_and_warns_where_there_is_nothing_else(tmp_path: Path, evaluated: int):
    save_passed_over(tmp_path)
    for number in range(evaluated):
        write_checkpoint(tmp_path, f"ckpt-{number + 1}", 100, model_tensors(4000, 1))
    settings = Settings.of(model_dir=str(tmp_path), pipeline_config="-")
    first, *others = folders.model_dir(settings.run, settings.source, [])
    severity = "note" if evaluated else "warning"
    assert first.severity == ("ok" if evaluated else "warning")
    assert [(one.check, one.severity) for one in others] == 2 * [("passed over", severity)]
    assert all(one.remedy for one in others)


def test_what_the_advice_for_ckpt_0_makes_of_it_is_evaluated(watcher: Watcher):
    save_passed_over(watcher.model_dir.parent / "zoo")
    for file in (watcher.model_dir.parent / "zoo").glob("ckpt-0.*"):
        file.rename(watcher.model_dir / file.name.replace("ckpt-0", "ckpt-1"))
    assert [found.name for found in scan(watcher.model_dir)] == ["ckpt-1"]
    assert watcher.run() == 0
    assert watcher.states() == {"ckpt-1": "scored"}


def test_a_name_in_another_encoding_than_utf_8_is_told_and_stops_nothing(watcher: Watcher):
    Manager(watcher.model_dir).save(100, model_tensors(500, "0"))
    odd = watcher.model_dir / os.fsdecode(b"sauv\xe9")
    odd.mkdir()
    for file in watcher.model_dir.glob("ckpt-1.*"):
        shutil.copy(file, odd / file.name)
    assert watcher.run() == 0
    assert watcher.states() == {"ckpt-1": "scored"}
    told = watcher.query("SELECT message FROM events WHERE message LIKE 'not evaluated: sauv%'")
    assert told[0]["message"].startswith(r"not evaluated: sauv\udce9/ckpt-1: ")


def test_a_file_that_cannot_be_looked_at_hides_no_other_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number in (1, 2):
        write_checkpoint(tmp_path, f"ckpt-{number}", 100, model_tensors(500, "0"))
    real = local.os.scandir

    class Bad:
        name = "ckpt-1.index"

        def inode(self) -> int:
            return 7

        def stat(self, **_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

    @contextlib.contextmanager
    def scandir(folder: Path):
        with real(folder) as entries:
            yield [Bad() if entry.name == Bad.name else entry for entry in entries]

    monkeypatch.setattr(local.os, "scandir", scandir)
    found = scan(tmp_path)
    assert [one.name for one in found] == ["ckpt-1", "ckpt-2"]
    assert found[0].signature[0] == (7, -1, -1)
