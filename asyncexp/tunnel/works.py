"""The thread of a tunnel: its port here, the connections made there, and when the SSH connection is built anew.

A parent's tunnels are none of a forked child: it lets go of them at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncssh

from asyncexp.background import DaemonThreads
from asyncexp.config.models import SshConfig
from asyncexp.db.whole import immortal
from asyncexp.errors import DatabaseError, SshTunnelError
from asyncexp.tunnel.ends import Far, Near
from asyncexp.tunnel.errors import TunnelAway, cannot_listen, not_passed_on
from asyncexp.tunnel.opening import Opening

Address = tuple[str, int]

CLOSE_SECONDS = 5.0
CLOSED = "The SSH tunnel was closed meanwhile."


class Works:
    """One life of a tunnel: its thread, its port here and the SSH connection, which may be built anew.

    Everything without a word about threads runs in its own.
    """

    def __init__(self, ssh: SshConfig, logger: logging.Logger, *, any_port: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="asyncexp tunnel", daemon=True)
        self.over = False
        self._ssh = ssh
        self._logger = logger
        self._port = 0 if any_port else ssh.local_port or 0
        self._pid = os.getpid()
        self._ending = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._line: list[asyncssh.SSHClientConnection] = []
        """The SSH connections, each through the one before; the last leads to the database. Empty: none is open."""
        self._opening: asyncio.Task[Address] | None = None
        self._clients: set[Near] = set()
        self._admitting: set[asyncio.Task[None]] = set()
        self._was_open = False
        self._passed_on = False
        """Whether the SSH server has ever let a connection to the database through."""
        self._said = ""
        """The trouble that the log was told of, as long as it lasts."""
        self._refusal: DatabaseError | None = None
        _alive.add(self)
        try:
            self.thread.start()
        except BaseException:
            self.over = True
            self.loop.close()
            raise

    async def opened(self) -> Address:
        """See `Tunnel.open`; to be awaited on any loop."""
        here = asyncio.get_running_loop()
        answer: asyncio.Future[Address] = here.create_future()

        def begin() -> None:
            self._open().add_done_callback(tell)

        def tell(opening: asyncio.Task[Address]) -> None:
            if not opening.cancelled():
                opening.exception()  # seen, whoever is still there to hear of it
            with suppress(RuntimeError):  # its loop was closed meanwhile
                here.call_soon_threadsafe(_hand_over, opening, answer)

        try:
            self.loop.call_soon_threadsafe(begin)
        except RuntimeError:
            raise TunnelAway(CLOSED) from None
        return await answer

    def take_refusal(self) -> DatabaseError | None:
        """In any thread."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def end(self) -> None:
        """Has it closed, and does not wait for that; in any thread."""
        self.over = True
        if self._pid == os.getpid():
            with suppress(RuntimeError):  # it has ended
                self.loop.call_soon_threadsafe(self._ending.set)

    async def ended(self) -> None:
        """Returns when the thread has ended, or has had its time; to be awaited on any loop."""
        for _ in range(int(CLOSE_SECONDS * 100)):
            if not self.thread.is_alive():
                return
            await asyncio.sleep(0.01)

    def abandon(self) -> None:
        """In a forked child: closes its copies of the sockets, and keeps all else from being finalised."""
        self.over = True
        immortal(self.loop, self)
        transports = [connection.get_extra_info("socket") for connection in self._line[:1]]
        transports += [client.transport.get_extra_info("socket") for client in self._clients if client.transport]
        for sock in [*transports, *(self._listener.sockets if self._listener is not None else ())]:
            if sock is not None and sock.fileno() >= 0:
                os.close(sock.fileno())

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._live())
        except BaseException:
            self._logger.exception("The thread of the SSH tunnel broke")
        finally:
            self.over = True

    async def _live(self) -> None:
        self.loop.set_default_executor(DaemonThreads())
        try:
            await self._ending.wait()
        finally:
            self.over = True
            await self._close()

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        tasks: set[asyncio.Task[Any]] = {*self._admitting, *([self._opening] if self._opening is not None else [])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for client in list(self._clients):
            client.drop()
        line, self._line = self._line, []
        await _closed(line)

    # ---------------------------------------------------------------------------------- the opening

    def _open(self) -> asyncio.Task[Address]:
        """One attempt at a time, however many wait for it."""
        if self._opening is None or self._opening.done():
            self._opening = self.loop.create_task(self._attempt(), name="asyncexp tunnel opening")
        return self._opening

    async def _attempt(self) -> Address:
        if self.over:
            raise TunnelAway(CLOSED)
        if not self._is_open():
            await self._connect()
        if self._listener is None:
            self._listener = await self._listen()
        host, port = self._listener.sockets[0].getsockname()[:2]
        return host, port

    def _is_open(self) -> bool:
        return bool(self._line) and not self._line[-1].is_closed()

    async def _connect(self) -> None:
        for connection in self._line:  # jump hosts, if the last connection broke as soon as it was made
            connection.abort()
        try:
            self._line = await Opening(self._ssh, self._lost).line()
        except SshTunnelError as trouble:
            if not self._was_open:
                raise
            self._say(str(trouble))
            raise TunnelAway(str(trouble)) from None
        if self._was_open:
            self._logger.warning("The SSH tunnel through %s is open again.", self._ssh.address)
        self._was_open, self._said = True, ""

    def _lost(self, why: str) -> None:
        """The connection that leads to the database broke; or none came about."""
        if not self._line:
            return
        if not self.over:
            self._logger.warning("The SSH tunnel through %s broke (%s); it is built anew.", self._ssh.address, why)
        line, self._line = self._line, []
        for connection in line[:-1]:
            connection.abort()

    def _say(self, trouble: str) -> None:
        if trouble != self._said:
            self._said = trouble
            self._logger.warning("The SSH tunnel cannot be built anew yet: %s", trouble)

    async def _listen(self) -> asyncio.Server:
        try:
            return await self.loop.create_server(lambda: Near(self), self._ssh.local_address, self._port)
        except OSError as error:
            raise cannot_listen(self._ssh.local_address, self._port, error) from None

    # ---------------------------------------------------------------------------------- connections

    def admit(self, client: Near) -> None:
        """Connects a client here with the server over there."""
        self._clients.add(client)
        task = self.loop.create_task(self._pass_on(client))
        self._admitting.add(task)
        task.add_done_callback(self._admitting.discard)

    def leave(self, client: Near) -> None:
        self._clients.discard(client)

    async def _pass_on(self, client: Near) -> None:
        try:
            await asyncio.shield(self._open())
            channel, _ = await self._line[-1].create_connection(
                lambda: Far(client), self._ssh.remote_address, self._ssh.remote_port
            )
        except asyncssh.ChannelOpenError as refused:
            self._refusal = not_passed_on(self._ssh, refused, lasting=not self._passed_on)
            client.drop()
        except (SshTunnelError, asyncssh.Error, OSError, IndexError):  # `open` says why
            client.drop()
        except BaseException:
            client.drop()
            raise
        else:
            self._passed_on = True
            client.meet(channel)


_alive: weakref.WeakSet[Works] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """A forked child would keep the SSH connection of a parent that is killed open."""
    for works in list(_alive):
        works.abandon()
    _alive.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def _hand_over(opening: asyncio.Task[Address], answer: asyncio.Future[Address]) -> None:
    """On the loop of who waits, and an exception of its own for each of them."""
    failure = TunnelAway(CLOSED) if opening.cancelled() else opening.exception()
    if answer.done():
        return
    if failure is None:
        answer.set_result(opening.result())
    elif isinstance(failure, SshTunnelError):
        answer.set_exception(type(failure)(str(failure)))
    else:
        answer.set_exception(SshTunnelError(f"The SSH tunnel broke: {type(failure).__name__}: {failure}"))


async def _closed(line: Sequence[asyncssh.SSHClientConnection]) -> None:
    for connection in reversed(line):
        connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS / 2):
                await connection.wait_closed()
        connection.abort()
