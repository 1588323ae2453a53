"""Task: what runs on a dask worker, by its importable name: a command, joined to whoever asked.

The command runs as a child, so that what crashes there is never the dask worker. It ends with the
connection, whichever side breaks that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

from distributed import get_worker
from distributed.comm import Comm, CommClosedError, listen
from distributed.utils import sync

READ_BYTES = 256 << 10
OUT, ERR = "out", "err"
# As a shell has it.
NOT_FOUND = 127
_CONNECT_SECONDS = 60.0
_ENDING_SECONDS = 5.0


def carry(command: Sequence[str], token: str) -> dict[str, Any]:
    """Run a command on this worker, with input and output of whoever connects with the token.

    The address to connect to is logged under the topic `token`.

    Returns:
        `code`, its exit code, 127 where it cannot be started; None where nobody connected, and then
        `reason`.
    """
    worker = get_worker()
    found: dict[str, Any] = sync(worker.loop, _carry, worker, list(command), token)
    return found


async def _carry(worker: Any, command: list[str], token: str) -> dict[str, Any]:
    caller: asyncio.Future[Comm] = asyncio.get_running_loop().create_future()
    answered = asyncio.Event()

    async def take(comm: Comm) -> None:
        if caller.done() or not await _has_token(comm, token):
            await comm.close()
            return
        caller.set_result(comm)
        await answered.wait()  # the connection is closed when this returns

    scheme = worker.address.partition("://")[0]
    host = worker.address.partition("://")[2].rpartition(":")[0]
    options = worker.security.get_listen_args("worker")
    async with await listen(f"{scheme}://{host}:0", take, **options) as listener:
        worker.log_event(token, {"address": listener.contact_address})
        try:
            comm = await asyncio.wait_for(caller, _CONNECT_SECONDS)
            return await _joined(command, comm)
        except TimeoutError:
            return {"code": None, "reason": "the watcher's bridge did not connect"}
        finally:
            answered.set()


async def _has_token(comm: Comm, token: str) -> bool:
    with contextlib.suppress(CommClosedError, TimeoutError):
        said = await asyncio.wait_for(comm.read(), _ENDING_SECONDS)
        return isinstance(said, str) and hmac.compare_digest(said, token)
    return False


async def _joined(command: list[str], comm: Comm) -> dict[str, Any]:
    pipe = asyncio.subprocess.PIPE
    try:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        text = f"cannot start {command[0]}: {error.strerror}\n"
        await comm.write({ERR: text.encode()})
        await comm.write({"code": NOT_FOUND})
        return {"code": NOT_FOUND}
    assert child.stdin and child.stdout and child.stderr
    incoming = asyncio.create_task(_pass_in(comm, child.stdin))
    outgoing = [
        asyncio.create_task(_pass_out(comm, stream, kind))
        for kind, stream in ((OUT, child.stdout), (ERR, child.stderr))
    ]
    try:
        ended = asyncio.create_task(child.wait())
        await asyncio.wait([incoming, ended], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            # Its input has ended, which ends it; what does not end in time is killed.
            await asyncio.wait([ended], timeout=_ENDING_SECONDS)
        else:
            await asyncio.wait(outgoing, timeout=_ENDING_SECONDS)
    finally:
        incoming.cancel()
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        code = await child.wait()
        with contextlib.suppress(CommClosedError):
            await comm.write({"code": code})
    return {"code": code}


async def _pass_in(comm: Comm, stream: asyncio.StreamWriter) -> None:
    with contextlib.suppress(CommClosedError, OSError):
        while data := await comm.read():
            stream.write(data)
            await stream.drain()
    with contextlib.suppress(OSError):
        stream.close()


async def _pass_out(comm: Comm, stream: asyncio.StreamReader, kind: str) -> None:
    with contextlib.suppress(CommClosedError):
        async for data in _pieces(stream):
            await comm.write({kind: data})


async def _pieces(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await stream.read(READ_BYTES):
        yield data
