"""Getting in: through the jump hosts to the last SSH server, with what each is shown and must show.

What asyncssh raises while it connects does not leave this module: its traceback may hold the passphrase.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from asyncexp.config.models import SshConfig
from asyncexp.errors import SshTunnelError
from asyncexp.tunnel.errors import TunnelAway, in_words, translated
from asyncexp.tunnel.host_keys import DEFAULT_HOSTS, SYSTEM_HOSTS, Door
from asyncexp.tunnel.keys import OWN_KEYS, agent_has, read_key
from asyncexp.tunnel.ssh_config import at_home, config_files, named_files, options_for

OPEN_SECONDS = 20.0
"""So long it may take to connect and to be let in, all jump hosts included: less than a call's own limit."""
KEEPALIVE_SECONDS = 5.0
KEEPALIVE_COUNT = 3
"""A server that leaves so many questions in a row unanswered, one each `KEEPALIVE_SECONDS`, is taken for gone."""
MAX_HOSTS = 8

_JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>.+)@)?(?P<host>\[[^]]+\]|[^:@]+)(?::(?P<port>\d+))?/?")


class _Client(asyncssh.SSHClient):
    """Notes a host key that is not trusted, and tells when the connection is lost."""

    def __init__(self, door: Door, lost: Callable[[str], None]) -> None:
        self._door = door
        self._tell = lost

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self._door.shown = key
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell(in_words(exc) if exc is not None else "closed")


@dataclass(slots=True)
class Opening:
    """One attempt to get to the last server."""

    ssh: SshConfig
    lost: Callable[[str], None]
    line_so_far: list[asyncssh.SSHClientConnection] = field(default_factory=list)
    doors: list[Door] = field(default_factory=list)
    hosts: int = 0
    """How many are on the way, as far as it is known."""

    async def line(self) -> list[asyncssh.SSHClientConnection]:
        """The open connections, the last one to the server that knows the database.

        Raises:
            SshTunnelError: see `Tunnel.open`.
        """
        failure: SshTunnelError | None = None
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._reach(self.ssh.address, self.ssh.port, self.ssh.user, last=True)
        except TimeoutError:
            where = self.doors[-1].place if self.doors else f"SSH server {self.ssh.address}"
            failure = TunnelAway(f"{where} does not answer within {OPEN_SECONDS:g} s")
        except SshTunnelError as trouble:
            failure = trouble
        except BaseException:
            await self._give_up()
            raise
        if failure is not None:
            await self._give_up()
            raise failure
        return self.line_so_far

    async def _give_up(self) -> None:
        line, self.line_so_far = self.line_so_far, []
        for connection in reversed(line):
            connection.abort()
            await connection.wait_closed()

    async def _reach(self, host: str, port: int | None, user: str | None, *, last: bool, follow: bool = True) -> None:
        options = options_for(host, port, user)
        self.hosts += 1
        if self.hosts > MAX_HOSTS:
            raise SshTunnelError(
                f"SSH server {self.ssh.address}: ProxyJump in ~/.ssh/config leads over more than {MAX_HOSTS} hosts, or "
                f"in a circle (at {host}); a jump host needs an entry of its own, with `ProxyJump none`"
            )
        if follow and options.tunnel:
            await self._jump(str(options.tunnel))
        keys, words = await self._keys(options) if last else ({}, OWN_KEYS)
        door = Door(options, self._hosts(options, last=last), list(self.doors), words)
        self.doors.append(door)
        self.line_so_far.append(await self._enter(door, host, keys, last=last))

    async def _jump(self, jumps: str) -> None:
        """`ProxyJump`: the first may have jump hosts of its own, the others are reached from the one before."""
        for number, jump in enumerate(jumps.split(",")):
            found = _JUMP.fullmatch(jump.strip())
            if found is None:
                raise SshTunnelError(f"~/.ssh/config: ProxyJump {jump!r} is not of the form user@host:port")
            port = int(found["port"]) if found["port"] else None
            await self._reach(found["host"].strip("[]"), port, found["user"], last=False, follow=number == 0)

    async def _enter(self, door: Door, host: str, named: dict[str, Any], *, last: bool) -> asyncssh.SSHClientConnection:
        options, secret = door.options, self.ssh.passphrase
        asked = bool(options.keepalive_interval)
        if secret is not None and not named:
            named["passphrase"] = secret.get_secret_value()
        failure: SshTunnelError
        try:
            return await asyncssh.connect(
                host,
                options.port,
                username=options.username,
                config=config_files(),
                tunnel=self.line_so_far[-1] if self.line_so_far else None,
                known_hosts=door.known(),
                client_factory=lambda: _Client(door, self.lost if last else _ignored),
                keepalive_interval=options.keepalive_interval if asked else KEEPALIVE_SECONDS,
                keepalive_count_max=options.keepalive_count_max if asked else KEEPALIVE_COUNT,
                **named,
            )
        except Exception as error:  # noqa: BLE001  (not one goes on: their tracebacks hold the passphrase)
            failure = translated(error, door)
        finally:
            named.clear()
        raise failure

    def _hosts(self, options: asyncssh.SSHClientConnectionOptions, *, last: bool) -> list[Path]:
        """The last server is looked up in `known_hosts` alone, if that is given; a jump host there, too."""
        given = [Path(self.ssh.known_hosts)] if self.ssh.known_hosts else []
        if given and last:
            return given
        own = named_files(options, "UserKnownHostsFile") or [at_home(name) for name in DEFAULT_HOSTS]
        return [*own, *given, SYSTEM_HOSTS]

    async def _keys(self, options: asyncssh.SSHClientConnectionOptions) -> tuple[dict[str, Any], str]:
        """The keys to show to the last server, as options and in words; none: those that ssh would show."""
        if self.ssh.key_file is None:
            return {}, OWN_KEYS
        path = Path(self.ssh.key_file)
        key, trouble = read_key(path, self.ssh)
        if key is not None:
            certificate = path.with_name(f"{path.name}-cert.pub")
            keys = [(key, str(certificate)) if certificate.exists() else key]
            return {"client_keys": keys, "agent_path": None}, f"key_file {path}"
        if self.ssh.passphrase is None and await agent_has(path, options):
            return {"client_keys": [], "agent_identities": f"{path}.pub"}, f"key_file {path}, from the agent"
        raise SshTunnelError(trouble)


def _ignored(_: str) -> None:
    """A jump host's connection broke: the one through it says so."""
