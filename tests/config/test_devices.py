"""Devices of other hosts in the settings: what is taken, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from watcher.config import Settings, load, load_settings, make_settings
from watcher.config.devices import check_device
from watcher.errors import ConfigError

BASE = {"model_dir": "m", "pipeline_config": "p"}


def loaded(tmp_path: Path, text: str, **flags: object) -> Settings:
    file = tmp_path / "run.toml"
    file.write_text(text)
    return load_settings({**BASE, **flags}, {}, file)


TWO = """
[[device]]
device = "cpu"
[[device]]
host = "far-1"
device = "gpu:1"
launcher = ["srun", "-n1"]
python = "/env/bin/python"
"""


def test_tables_name_devices_here_and_there(tmp_path: Path):
    devices = loaded(tmp_path, TWO).carrier.devices
    assert devices.here == "cpu" and [one.name for one in devices.there] == ["far-1/gpu:1"]
    assert devices.there[0].launching == ("srun", "-n1") and not devices.there[0].has_shell


def test_a_flag_chooses_and_a_device_of_a_known_host_is_reached_as_its_table_says(tmp_path: Path):
    devices = loaded(tmp_path, TWO, device="far-1/gpu:0,far-2/cpu").carrier.devices
    assert devices.here is None
    first, second = devices.there
    assert (first.name, first.python) == ("far-1/gpu:0", "/env/bin/python")
    assert second.launching[0] == "ssh" and second.launching[-1] == "far-2" and second.has_shell


@pytest.mark.parametrize(
    "device", ["cpu,gpu:1", "auto,cpu", "h/any", "-oProxyCommand=x/cpu", "a b/cpu", "h/", "x"]
)
def test_a_device_that_nobody_can_mean_is_refused(device: str):
    with pytest.raises(ValueError, match="Expected"):
        check_device(device)


def test_a_device_is_named_once():
    with pytest.raises(ValueError, match="each device once"):
        check_device("far-1/cpu,far-1/cpu")
    check_device("GPU-1234,MIG-GPU-12/1/0,far-1/MIG-GPU-12/1/0,cpu@host.example/cpu")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            'hots = "a"',
            "it has a key hots (did you mean host?), and may have device, host, launcher",
        ),
        ('launcher = ["ssh"]', "expected launcher beside host alone"),
        ('host = "-x"', "device[0].host"),
        ('host = "a"\ndevice = "tpu"', "is invalid: expected cpu, auto, gpu:N"),
        ('host = "a"\npath_map = {"models" = "/m"}', "expected absolute folders in path_map"),
        ('host = "a"\nconnect_timeout = 0', "device[0].connect_timeout"),
        ('host = "a"\nconnect_timeout = nan', "device[0].connect_timeout"),
        ('host = "a"\nconnect_timeout = 1e20', "expected a connect_timeout"),
        ('host = "a"\nagent = []', "device[0].agent"),
    ],
)
def test_a_table_that_is_wrong_is_told_by_its_key(tmp_path: Path, table: str, said: str):
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, "[[device]]\n" + table)
    assert said in refused.value.message and refused.value.message.startswith("device")


def test_tables_are_remembered_and_shown_as_they_are_named(tmp_path: Path):
    shown = load(Settings, BASE, {}, None).settings.to_show()
    assert not shown["device_tables"]
    shown = loaded(tmp_path, TWO).to_show()
    assert shown["device"] == "cpu,far-1/gpu:1"
    assert shown["device_tables"][1]["launcher"] == ("srun", "-n1")


def test_what_a_start_recorded_of_tables_loads_again(tmp_path: Path):
    recorded = msgspec.json.decode(msgspec.json.encode(loaded(tmp_path, TWO).to_show()))
    tables = {name: recorded[name] for name in ("device", "device_tables")}
    again = make_settings({**BASE, **tables}, dict.fromkeys(tables, "before"))
    assert again.carrier.devices == loaded(tmp_path, TWO).carrier.devices
