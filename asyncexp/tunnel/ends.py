"""The two ends of a connection that is passed on; each tells the other to wait while it cannot keep up.

How it comes about is for `works` to know.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncssh

if TYPE_CHECKING:
    from asyncexp.tunnel.works import Works


class Near(asyncio.Protocol):
    """A client on this machine. What it says waits until there is a server to hear it."""

    def __init__(self, works: Works) -> None:
        self.transport: asyncio.Transport | None = None
        self._works = works
        self._far: asyncssh.SSHTCPChannel[bytes] | None = None
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._works.admit(self)

    def meet(self, far: asyncssh.SSHTCPChannel[bytes]) -> None:
        if self.transport is None or self.transport.is_closing():
            far.abort()
            return
        self._far = far
        if self._early:
            self._far.write(bytes(self._early))
            self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._far is None:
            self._early += data
        elif not self._far.is_closing():
            self._far.write(data)

    def eof_received(self) -> bool:
        if self._far is None or self._far.is_closing():
            return False
        self._far.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._far is not None:
            self._far.pause_reading()

    def resume_writing(self) -> None:
        if self._far is not None:
            self._far.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._works.leave(self)
        if self._far is not None:
            self._far.close()

    def drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Far(asyncssh.SSHTCPSession[bytes]):
    """The database's server, as the channel through the SSH connection has it."""

    def __init__(self, near: Near) -> None:
        assert near.transport is not None
        self._near = near.transport

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002
        if not self._near.is_closing():
            self._near.write(data)

    def eof_received(self) -> bool:
        if not self._near.is_closing():
            self._near.write_eof()
        return True

    def pause_writing(self) -> None:
        self._near.pause_reading()

    def resume_writing(self) -> None:
        self._near.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._near.close()
        else:
            self._near.abort()
