"""What a trainer's checkpoints are called and hold is said once, in the format."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from fake_bundle import SUFFIX, floats, int64
from fake_trainer import model_tensors, write_checkpoint

from watcher.checkpoints.bundle import read_index
from watcher.checkpoints.bundle_format import MODEL_GARDEN, OD_API
from watcher.checkpoints.bundle_index import parse_index
from watcher.files.slices import Progress, finish
from watcher.protocols import CheckpointSource
from watcher.sources.local import LocalFolder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name", ["ckpt-0", "ckpt-01", "ckpt-", "ckpt-1.index", "xckpt-1", "ckpt-1\n"]
)
def test_what_is_no_name_of_a_checkpoint_has_no_number(name: str):
    assert OD_API.number(name) is None
    assert not OD_API.is_placed(name)


def test_a_name_goes_to_its_number_and_back():
    assert OD_API.number(OD_API.name(12)) == 12
    assert OD_API.names(range(3, 4)) == "ckpt-3"
    assert OD_API.names(range(3, 8)) == "ckpt-3..ckpt-7"
    assert OD_API.file("ckpt-12.index") == ("ckpt-12", True)
    assert OD_API.file("ckpt-12.data-00000-of-00002") == ("ckpt-12", False)
    assert OD_API.file("ckpt-12_temp") is None and OD_API.is_temporary("ckpt-12_temp")
    assert OD_API.placed_file("ckpt-12-0a1b2c3d.index") == "ckpt-12-0a1b2c3d"


def test_no_other_module_says_what_a_checkpoint_is_called():
    said = re.compile(r"""r?"[^"\n]*ckpt-(\[|\\d|\{|")|"model/"|VARIABLE_VALUE""")
    files = [path for path in (ROOT / "watcher").rglob("*.py") if said.search(path.read_text())]
    assert {path.name for path in files} == {"naming.py", "bundle.py"}


def test_the_source_and_its_format_are_chosen_in_one_place():
    choosing = set()
    for path in (ROOT / "watcher").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for one in node.names if isinstance(node, ast.ImportFrom) else ():
                known = one.name.startswith(("OD_API", "MODEL_GARDEN"))
                of_format = known and "bundle" in str(node.module)
                if one.name in ("LocalFolder", "bundle_format") or of_format:
                    choosing.add(path.relative_to(ROOT / "watcher").as_posix())
    assert choosing == {"sources/choice.py", "checkpoints/bundle_format.py"}


def test_a_trainer_with_other_keys_is_read_by_its_own_format(tmp_path: Path):
    slot = f"backbone/w/.OPTIMIZER_SLOT/optimizer/momentum{SUFFIX}"
    others = {f"{name}{SUFFIX}": int64(7000) for name in ("optimizer/iter", "save_counter")}
    tensors = {
        MODEL_GARDEN.layout.step: int64(7000),
        f"backbone/w{SUFFIX}": floats([1.0, 2.0]),
        slot: floats([0.0, 0.0]),
        **others,
    }
    write_checkpoint(tmp_path, "ckpt-7000", None, tensors)
    (tmp_path / "pins").mkdir()
    garden, od_api = (LocalFolder(tmp_path, one) for one in (MODEL_GARDEN, OD_API))
    (found,) = garden.scan()
    pin = finish(garden.take(found, tmp_path / "pins", None, Progress()))
    assert (pin.global_step, pin.model_variables) == (7000, 1)
    pin = finish(od_api.take(found, tmp_path / "pins", None, Progress()))
    assert (pin.global_step, pin.model_variables) == (None, 0), "as the OD API would read it"


def test_an_index_is_parsed_once_while_its_checkpoint_is_pinned(tmp_path: Path):
    write_checkpoint(tmp_path, "ckpt-1", 100, model_tensors(1000, "1"))
    (tmp_path / "pins").mkdir()
    source: CheckpointSource = LocalFolder(tmp_path, OD_API)
    parse_index.cache_clear()
    (found,) = source.scan()
    source.identify(found)
    pin = finish(source.take(found, tmp_path / "pins", None, Progress()))
    assert source.format.model_variables(read_index(pin.prefix))
    assert parse_index.cache_info().misses == 1
