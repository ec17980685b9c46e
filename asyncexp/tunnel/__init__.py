"""The way to a database through an SSH server: the only package that knows asyncssh.

A `Tunnel` listens on a port of this machine and passes on what comes there, on a thread with an event loop of
its own. The port stays while the SSH connection behind it breaks and is built anew: to the rest that is an outage of
the database. Host keys are checked always; what `~/.ssh/config` says counts as it does for `ssh`.

| module | what it knows |
|---|---|
| `works` | the thread, the port here, and when the SSH connection is built anew |
| `ends` | one connection that is passed on: the client here, the database's server there |
| `opening` | how to get in, through jump hosts, and with which keys |
| `host_keys` | which host keys are trusted, and what to run when one is not |
| `keys` | the user's keys, the passphrase, the agent |
| `ssh_config` | `~/.ssh/config`, and the files that it names |
| `errors` | what a failure means, in a message, and whether another try is worth while |
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref

from asyncexp.config.models import SshConfig
from asyncexp.errors import DatabaseError
from asyncexp.tunnel.errors import TunnelAway
from asyncexp.tunnel.works import CLOSE_SECONDS, Address, Works

__all__ = ["Address", "Tunnel", "TunnelAway"]


class Tunnel:
    """One way to one database server, for the connections of one event loop. The first `open` opens it.

    Args:
        any_port: take a free port here whatever the configuration says.
    """

    def __init__(self, ssh: SshConfig, logger: logging.Logger, *, any_port: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self._ssh = ssh
        self._logger = logger
        self._any_port = any_port
        self._works: Works | None = None
        self._making = threading.Lock()

    def __str__(self) -> str:
        return f"through SSH server {self._ssh.address}"

    async def open(self) -> Address:
        """Host and port at which the server is to be met now; opens the tunnel, or builds it anew, if need be.

        Raises:
            SshTunnelError: it cannot be opened; the message says where, why, and what mends that.
            TunnelAway: not at the moment. Once it was open, whatever is in the way is taken for that.
        """
        return await self._working().opened()

    def _working(self) -> Works:
        with self._making:  # the worker's loop and its service thread may both be here
            if self._works is None or self._works.over:
                self._works = Works(self._ssh, self._logger, any_port=self._any_port)
                # Whoever forgets to close it: no finaliser waits for a thread.
                weakref.finalize(self, self._works.end)
            return self._works

    def refusal(self) -> DatabaseError | None:
        """Why the SSH server would not pass on a connection, once; None if it did."""
        return None if self._works is None else self._works.take_refusal()

    async def close(self) -> None:
        """Closes it; the next `open` opens it again. Twice is no error."""
        if self._works is not None:
            self._works.end()
            await self._works.ended()

    def end(self) -> None:
        """Closes it, for callers without an event loop."""
        if self._works is not None:
            self._works.end()
            self._works.thread.join(CLOSE_SECONDS)
