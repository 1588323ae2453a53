"""Bridge: submits the task, connects to where it runs, and passes bytes both ways.

Nothing of an evaluation is known here. When the connection, the worker or the scheduler is lost
the bridge ends, and whoever started it starts another, with a new client: one of dask's that lost
its scheduler stays closed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import secrets
import sys
from typing import Any
from urllib.parse import urlsplit

import dask
import distributed
from distributed import Client, Security
from distributed.comm import Comm, CommClosedError, connect

from watcher.dask_bridge import task

RESOURCE = "EVAL_GPU"
FAILED, USAGE = 1, 2
_WAIT_SECONDS = 50.0
_CONNECT_SECONDS = 10.0


class Trouble(Exception):
    """Raised when the bridge cannot go on; its text is for people."""


def main(words: list[str] | None = None) -> int:
    """Run the bridge; returns the command's exit code, 1 for trouble on the way."""
    options = _options(words)
    # Retried by whoever started the bridge, who knows what became of the evaluation.
    dask.config.set({"distributed.comm.retry.count": 0, "distributed.comm.timeouts.connect": "10s"})
    try:
        return asyncio.run(_run(options))
    except Trouble as error:
        print(f"{options.scheduler}: {error}", file=sys.stderr)
        return FAILED


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m watcher.dask_bridge", description=__doc__)
    parser.add_argument("scheduler", help="such as tls://scheduler:8786")
    parser.add_argument("--tls-ca-file", help="who signed the cluster's certificates")
    parser.add_argument("--tls-cert", help="our certificate")
    parser.add_argument("--tls-key", help="its key")
    parser.add_argument(
        "--resource", default=RESOURCE, help="of which a worker needs one free (%(default)s)"
    )
    parser.add_argument(
        "--wait-seconds",
        type=float,
        default=_WAIT_SECONDS,
        help="how long to wait for such a worker; less than connect_timeout (%(default)s)",
    )
    parser.add_argument("command", nargs="+", help="what to run there")
    options = parser.parse_args(words)
    if reason := _refused(options.scheduler):
        parser.error(reason)
    return options


def _refused(scheduler: str) -> str | None:
    """Say why an address cannot be used, None when it can."""
    address = urlsplit(scheduler)
    if address.scheme not in ("tls", "tcp") or not address.hostname:
        return f"scheduler ({scheduler}) must be an address such as tls://scheduler:8786"
    is_loopback = address.hostname == "localhost"
    with contextlib.suppress(ValueError):
        is_loopback = ipaddress.ip_address(address.hostname).is_loopback
    if address.scheme == "tcp" and not is_loopback:
        return (
            f"scheduler ({scheduler}) is not encrypted: without TLS its port runs anybody's code;"
            " give tls:// with --tls-ca-file, --tls-cert and --tls-key"
        )
    return None


def _security(options: argparse.Namespace) -> Security:
    if options.scheduler.startswith("tcp"):
        return Security()
    return Security(
        tls_ca_file=options.tls_ca_file,
        tls_client_cert=options.tls_cert,
        tls_client_key=options.tls_key,
        require_encryption=True,
    )


async def _run(options: argparse.Namespace) -> int:
    try:
        security = _security(options)
        client = await Client(
            options.scheduler,
            security=security,
            asynchronous=True,
            timeout=_CONNECT_SECONDS,
            set_as_default=False,
        )
    except (OSError, TimeoutError, RuntimeError, ValueError) as error:
        raise Trouble(f"the scheduler cannot be reached: {error}") from error
    try:
        await _require_versions(client)
        return await _carried(client, security, options)
    except CommClosedError as error:
        raise Trouble(f"the connection was lost: {error}") from error
    finally:
        # A client whose scheduler is gone waits for it.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.close(timeout=1), 2)


async def _require_versions(client: Client) -> None:
    """Raise Trouble unless all sides have one version of dask: others die at their first task."""
    found = await client.get_versions(check=False)
    sides = {"the scheduler": found["scheduler"], **found["workers"]}
    for name, side in sides.items():
        if side is None:
            continue
        version = side["packages"]["distributed"]
        if version != distributed.__version__:
            raise Trouble(
                f"{name} has distributed {version}, this bridge {distributed.__version__};"
                " install one version everywhere"
            )


async def _carried(client: Client, security: Security, options: argparse.Namespace) -> int:
    token = secrets.token_hex(16)
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    client.subscribe_topic(token, lambda event: told.put_nowait(event[1]))
    future = client.submit(
        task.carry,
        options.command,
        token,
        key=f"checkpoint-watcher-{token}",
        pure=False,
        retries=0,
        resources={options.resource: 1},
    )
    placed = asyncio.create_task(told.get())
    over = asyncio.create_task(_result(future))
    await asyncio.wait(
        [placed, over], timeout=options.wait_seconds, return_when=asyncio.FIRST_COMPLETED
    )
    if over.done():
        raise Trouble(over.result().get("reason", "the task ended"))
    if not placed.done():
        placed.cancel()
        await client.cancel([future])
        raise Trouble(
            f"no worker with {options.resource}=1 was free within {options.wait_seconds:g} s"
        )
    address = placed.result()["address"]
    comm = await connect(address, _CONNECT_SECONDS, **security.get_connection_args("client"))
    await comm.write(token)
    try:
        code = await _pass(comm)
    finally:
        await comm.close()
    if code is None:
        raise Trouble(f"the dask worker at {address} is gone")
    return code


async def _result(future: Any) -> dict[str, Any]:
    """Return what the task returned; what it raised as a reason."""
    try:
        found: dict[str, Any] = await future
    except Exception as error:  # whatever dask makes of a worker that died or cannot import it
        return {"reason": f"the task failed: {type(error).__name__}: {error}"}
    return {"reason": found.get("reason", f"it ended with exit code {found.get('code')}")}


async def _pass(comm: Comm) -> int | None:
    """Pass bytes both ways; returns the command's exit code, None where the other side is lost."""
    reading = asyncio.create_task(_pass_in(comm))
    try:
        while True:
            said = await comm.read()
            if "code" in said:
                return int(said["code"])
            for kind, descriptor in ((task.OUT, 1), (task.ERR, 2)):
                if kind in said:
                    await asyncio.to_thread(_write, descriptor, said[kind])
    except CommClosedError:
        return None
    finally:
        reading.cancel()


async def _pass_in(comm: Comm) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=task.READ_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with contextlib.suppress(CommClosedError):
        while data := await reader.read(task.READ_BYTES):
            await comm.write(data)
        await comm.write(b"")


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
