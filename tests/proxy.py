"""A TCP proxy that misbehaves on request, to put between a database and its client.

async with Proxy(target) as proxy:
    database = connect(proxy.target)
    proxy.swallow()
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from functools import partial
from typing import Self

from asyncexp.db.base import Target


class Commits:
    """Tells what a client sends that commits: a COMMIT, or a flush that is one statement by itself.

    Such a statement is named with its text once, by PostgreSQL's protocol, and by that name ever after.
    """

    _PARSED = re.compile(rb"P.{4}(\w+)\0WITH [^\0]*last_flush", re.DOTALL)
    _BOUND = re.compile(rb"B.{4}\0(\w+)\0", re.DOTALL)

    def __init__(self) -> None:
        self._flushes: set[bytes] = set()
        self._open = False

    def __call__(self, data: bytes) -> bool:
        """Whether this packet, the next one of a connection, ends a transaction with what it wrote."""
        self._flushes.update(self._PARSED.findall(data))
        if data[5:10] == b"BEGIN":
            self._open = True
        elif data.rstrip(b"\0").endswith((b"COMMIT", b"ROLLBACK")):
            self._open = False
            return data.rstrip(b"\0").endswith(b"COMMIT")
        return not self._open and not self._flushes.isdisjoint(self._BOUND.findall(data))


class Proxy:
    """Forwards bytes between clients and the server of a target until it is told otherwise."""

    def __init__(self, target: Target, host: str = "127.0.0.1") -> None:
        self._behind = target
        self._host = host
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._swallowing = False
        self._waits = False
        """For a commit."""
        self._armed = False
        self._swallows = False
        """Whether the answer to the marked packet, and what follows, is swallowed instead of the connection cut."""
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.heard: bytearray | None = None
        """What clients say, if it is set to something."""
        self.fired = asyncio.Event()
        """Set when what `cut_after_commit` or `swallow_after_commit` waits for has been answered."""

    @property
    def target(self) -> Target:
        """The same database, through the proxy."""
        assert self._server is not None
        return replace(self._behind, host=self._host, port=self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)  # in which aborted transports close their sockets

    # ---------------------------------------------------------------------------------- switches

    def stall(self) -> None:
        """Nothing passes either way; connections stay open, new ones too."""
        self._flowing.clear()

    def swallow(self) -> None:
        """What clients say reaches the server; its answers are lost."""
        self._swallowing = True

    def resume(self) -> None:
        """Behaves again, and waits for no packet any more. What was swallowed is gone."""
        self._swallowing = False
        self._waits = self._armed = False
        self._flowing.set()

    def cut(self) -> None:
        """Cuts all connections at once."""
        for writer in self._writers:
            writer.transport.abort()

    def cut_after_commit(self) -> None:
        """Cuts the connection on which the next commit is sent, when the server has answered it.

        The answer itself is lost.
        """
        self._waits, self._swallows = True, False
        self.fired.clear()

    def swallow_after_commit(self) -> None:
        """Loses the answer to the next commit, and all later ones; nothing is cut."""
        self._waits, self._swallows = True, True
        self.fired.clear()

    # --------------------------------------------------------------------------------- forwarding

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """No coroutine: the connection is known from its first moment, whenever the proxy ends."""
        self._writers.add(writer)
        handler = asyncio.create_task(self._pair(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(partial(self._ended, writer))

    def _ended(self, writer: asyncio.StreamWriter, handler: asyncio.Task[None]) -> None:
        writer.transport.abort()
        self._writers.discard(writer)
        self._handlers.discard(handler)

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._behind.host, self._behind.port)
        except OSError:
            return
        self._writers.add(far_writer)
        try:
            up = asyncio.create_task(self._forward(reader, far_writer))
            down = asyncio.create_task(self._back(far_reader, writer))
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (up, down):
                    task.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        finally:
            far_writer.transport.abort()
            self._writers.discard(far_writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commits = Commits()
        while data := await reader.read(65536):
            if self.heard is not None:
                self.heard += data
            await self._flowing.wait()
            if commits(data) and self._waits:
                self._waits, self._armed = False, True
            writer.write(data)
            await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            if self._armed:
                self._armed, self._swallowing = False, self._swallows
                self.fired.set()
                if not self._swallows:
                    return
            if not self._swallowing:
                writer.write(data)
                await writer.drain()
