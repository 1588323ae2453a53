"""Settings of health, metrics and notifications."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from watcher.config.evaluation import EvaluationSettings
from watcher.config.paths import PATHS
from watcher.config.rules import about

# They may hold passwords, and are neither shown nor recorded.
SECRET = ("notify", "notify_command")


class ServiceSettings(EvaluationSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How others are told of the run."""

    tensorboard: Annotated[
        bool, about("Write event files for TensorBoard, as the OD API's own evaluation does.")
    ] = True
    tensorboard_categories: Annotated[
        bool,
        about(
            "Write each category's AP for TensorBoard, too, of evaluations from then on; many"
            " categories are many charts."
        ),
    ] = False
    visualizations: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        about(
            "How many images of the eval set TensorBoard shows with what was detected."
            " Default: the pipeline's num_visualizations.",
            "N",
        ),
    ] = None
    listen: Annotated[
        int | str | None,
        about(
            "Serve /healthz, /readyz and /metrics there, on 127.0.0.1 unless HOST is given."
            " Port 0 takes a free one. Default: off.",
            "[HOST:]PORT",
        ),
    ] = None
    health_seconds: Annotated[
        float,
        about("How late the loop may be before /healthz says that it is stuck.", "SECONDS", gt=0),
    ] = 120.0
    notify: Annotated[
        tuple[str, ...],
        about(
            "Tell of a new best, early stop, degradation and failure there, with apprise.", "URL"
        ),
    ] = ()
    notify_command: Annotated[
        tuple[str, ...],
        about(
            "A program and its arguments that is run for each notice, with JSON on standard input"
            " and without a shell.",
            "PROGRAM|ARGUMENT",
        ),
    ] = ()
    notify_seconds: Annotated[
        float, about("Time that one notice may take to be delivered.", "SECONDS", gt=0)
    ] = 30.0

    def to_show(self) -> dict[str, Any]:
        """Return all settings that others may see: those without a password in them.

        Paths are absolute: whoever reads them later is elsewhere.
        """
        shown: dict[str, Any] = msgspec.to_builtins(self)
        for name in ("model_dir", "device_lock_dir", *PATHS):
            if shown[name]:
                shown[name] = str(Path(shown[name]).absolute())
        for board in shown["board"]:
            if board["folder"]:
                board["folder"] = str(Path(shown["model_dir"], board["folder"]))
        # A name without a folder is looked for on PATH, or among the entry points.
        if shown["python"] and "/" in shown["python"]:
            shown["python"] = str(Path(shown["python"]).absolute())
        plugins = [one.rpartition(":") for one in shown["metric_plugin"]]
        shown["metric_plugin"] = [
            f"{Path(file).absolute()}:{function}" if colon else function
            for file, colon, function in plugins
        ]
        return {name: value for name, value in shown.items() if name not in SECRET}

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Host and port of `listen`, None when it is off."""
        return None if self.listen is None else parse_address(str(self.listen))


def parse_address(text: str) -> tuple[str, int]:
    """Read `PORT`, `HOST:PORT` or `[IPV6]:PORT`; raises ValueError with the rule."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("Expected an IPv6 address in brackets, [::1]:PORT")
    if (colon and not host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("Expected PORT or HOST:PORT, with a port from 0 to 65535")
    return host or "127.0.0.1", int(port)
