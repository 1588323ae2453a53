"""Joint: one end of the connection between the bridge and the task.

A connection of dask's takes whatever is written, and keeps in memory what the other side does not
read. So each end says what it has taken, and no more than WINDOW_BYTES are on their way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from distributed.comm import Comm, CommClosedError

PIECE_BYTES = 256 << 10
WINDOW_BYTES = 4 << 20
IN, OUT, ERR, CODE = "in", "out", "err", "code"
_TAKEN = "taken"


class Joint:
    """Sends pieces of bytes, and gives those that come, each no faster than it is taken."""

    def __init__(self, comm: Comm) -> None:
        """Begin to read; to be made in the event loop."""
        self._comm = comm
        self._under_way = 0
        self._room = asyncio.Event()
        self._room.set()
        self._come: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(CommClosedError):
            while True:
                ((kind, value),) = (await self._comm.read()).items()
                if kind == _TAKEN:
                    self._under_way -= value
                    if self._under_way < WINDOW_BYTES:
                        self._room.set()
                else:
                    self._come.put_nowait((kind, value))
        self._come.put_nowait(None)
        self._room.set()

    async def send(self, kind: str, data: bytes) -> None:
        """Send a piece, once there is room for it.

        Raises:
            CommClosedError: the connection is lost.
        """
        await self._room.wait()
        self._under_way += len(data)
        if self._under_way >= WINDOW_BYTES:
            self._room.clear()
        await self._comm.write({kind: data})

    async def end(self, code: int) -> None:
        """Say that nothing comes any more, and with which exit code."""
        with contextlib.suppress(CommClosedError):
            await self._comm.write({CODE: code})

    async def pieces(self) -> AsyncIterator[tuple[str, Any]]:
        """Give what comes, (kind, bytes) or (CODE, int), until the connection is lost.

        A piece counts as taken when the next one is asked for.
        """
        while (said := await self._come.get()) is not None:
            yield said
            if isinstance(said[1], bytes):
                with contextlib.suppress(CommClosedError):
                    await self._comm.write({_TAKEN: len(said[1])})

    def close(self) -> None:
        """Read no more."""
        self._reading.cancel()
