"""The way to a database through an SSH server: the only module that knows asyncssh.

A `Tunnel` listens on a port of this machine and passes on what comes there, on a thread with an event loop of
its own. The port stays while the SSH connection behind it breaks and is built anew: to the rest that is an outage of
the database. Host keys are checked always; what `~/.ssh/config` says counts as it does for `ssh`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import shlex
import socket
import stat
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from asyncexp.background import DaemonThreads
from asyncexp.config.models import SshConfig
from asyncexp.db.whole import Declined, immortal
from asyncexp.errors import DatabaseError, SshTunnelError

Address = tuple[str, int]

OPEN_SECONDS = 20.0
"""So long it may take to connect and to be let in, all jump hosts included: less than a call's own limit."""
KEEPALIVE_SECONDS = 5.0
KEEPALIVE_COUNT = 3
"""A server that leaves so many questions in a row unanswered, one each `KEEPALIVE_SECONDS`, is taken for gone."""
CLOSE_SECONDS = 5.0
MAX_HOSTS = 8
CLOSED = "The SSH tunnel was closed meanwhile."
SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
SYSTEM_HOSTS = Path("/etc/ssh/ssh_known_hosts")
DEFAULT_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


class TunnelAway(Declined, SshTunnelError):
    """The SSH server cannot be reached at the moment: an outage of the database behind it, worth another try."""


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
        self._works: _Works | None = None
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

    def _working(self) -> _Works:
        with self._making:  # the worker's loop and its service thread may both be here
            if self._works is None or self._works.over:
                self._works = _Works(self._ssh, self._logger, any_port=self._any_port)
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


# ------------------------------------------------------------------------------------- the thread


class _Works:
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
        self._clients: set[_Near] = set()
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
            self._line = await _Opening(self._ssh, self._lost).line()
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
            return await self.loop.create_server(lambda: _Near(self), self._ssh.local_address, self._port)
        except OSError as error:
            raise _cannot_listen(self._ssh.local_address, self._port, error) from None

    # ---------------------------------------------------------------------------------- connections

    def admit(self, client: _Near) -> None:
        """Connects a client here with the server over there."""
        self._clients.add(client)
        task = self.loop.create_task(self._pass_on(client))
        self._admitting.add(task)
        task.add_done_callback(self._admitting.discard)

    def leave(self, client: _Near) -> None:
        self._clients.discard(client)

    async def _pass_on(self, client: _Near) -> None:
        try:
            await asyncio.shield(self._open())
            channel, _ = await self._line[-1].create_connection(
                lambda: _Far(client), self._ssh.remote_address, self._ssh.remote_port
            )
        except asyncssh.ChannelOpenError as refused:
            self._refusal = _refused(self._ssh, refused, lasting=not self._passed_on)
            client.drop()
        except (SshTunnelError, asyncssh.Error, OSError, IndexError):  # `open` says why
            client.drop()
        except BaseException:
            client.drop()
            raise
        else:
            self._passed_on = True
            client.meet(channel)


_alive: weakref.WeakSet[_Works] = weakref.WeakSet()


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


class _Near(asyncio.Protocol):
    """A client on this machine. What it says waits until there is a server to hear it."""

    def __init__(self, works: _Works) -> None:
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


class _Far(asyncssh.SSHTCPSession[bytes]):
    """The database's server, as the channel through the SSH connection has it."""

    def __init__(self, near: _Near) -> None:
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


# ------------------------------------------------------------------------------------- the doors


@dataclass(slots=True)
class _Door:
    """One SSH server on the way, with what `~/.ssh/config` says of it."""

    options: asyncssh.SSHClientConnectionOptions
    hosts: list[Path]
    """The files of known hosts that count here, the first that one would write into first."""
    before: list[_Door]
    """The jump hosts on the way to it."""
    keys: str
    """What is shown there as a key, in words."""
    shown: asyncssh.SSHKey | None = None
    """The host key that the server showed and that is not trusted."""

    @property
    def host(self) -> str:
        return self.options.host

    @property
    def place(self) -> str:
        way = ", ".join(f"{door.host}:{door.options.port}" for door in self.before)
        by = f" by way of {way}" if way else ""
        return f"SSH server {self.options.username}@{self.host}:{self.options.port}{by}"

    def known(self) -> bytes:
        """What is known of hosts; never empty, which asyncssh takes for "look in ~/.ssh/known_hosts"."""
        return b"\n".join([*map(_content, self.hosts), b""]) + b"\n"

    def others(self) -> Path | None:
        """The file that knows other keys of this server."""
        alias = self.options.host_key_alias or self.host
        port = self.options.port if self.options.port != asyncssh.DEFAULT_PORT else None
        for file in self.hosts:
            with suppress(ValueError):
                if asyncssh.match_known_hosts(_content(file), alias, "", port)[0]:
                    return file
        return None

    def scan(self, file: Path) -> str:
        """The command that notes the server's keys; behind jump hosts the last of them looks."""
        port = f"-p {self.options.port} " if self.options.port != asyncssh.DEFAULT_PORT else ""
        command = f"ssh-keyscan {port}{shlex.quote(self.host)}"
        if self.before:
            command = f"ssh {_as_target(self.before)} {command}"
        if self.options.host_key_alias:
            command += f" | sed 's/^[^ ]*/{self.options.host_key_alias}/'"
        made = "" if file.parent.is_dir() else f"mkdir -p -m 700 {_quoted(file.parent)} && "
        return f"{made}{command} >> {_quoted(file)}"

    def mistrust(self) -> str:
        """Why its key is refused, and what to run if it is right all the same."""
        shown = f" ({self.shown.get_algorithm()} {self.shown.get_fingerprint()})" if self.shown is not None else ""
        file = self.others()
        if file is None:
            return (
                f"{self.place}: its host key{shown} is unknown. Compare it with what its administrators say, and if it "
                f"is right, run: {self.scan(self.hosts[0])}"
            )
        name = self.options.host_key_alias or self.host
        if self.options.port != asyncssh.DEFAULT_PORT and not self.options.host_key_alias:
            name = f"[{name}]:{self.options.port}"
        return (
            f"{self.place}: its host key has CHANGED{shown}; {file} has another. Somebody may be listening in "
            f"between. If its administrators say that the new one is right, run: "
            f"ssh-keygen -R {shlex.quote(name)} -f {_quoted(file)} && {self.scan(file)}"
        )


class _Client(asyncssh.SSHClient):
    """Notes a host key that is not trusted, and tells when the connection is lost."""

    def __init__(self, door: _Door, lost: Callable[[str], None]) -> None:
        self._door = door
        self._tell = lost

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self._door.shown = key
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell(_words(exc) if exc is not None else "closed")


@dataclass(slots=True)
class _Opening:
    """One attempt to get to the last server."""

    ssh: SshConfig
    lost: Callable[[str], None]
    line_so_far: list[asyncssh.SSHClientConnection] = field(default_factory=list)
    doors: list[_Door] = field(default_factory=list)
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
        options = _options(host, port, user)
        self.hosts += 1
        if self.hosts > MAX_HOSTS:
            raise SshTunnelError(
                f"SSH server {self.ssh.address}: ProxyJump in ~/.ssh/config leads over more than {MAX_HOSTS} hosts, or "
                f"in a circle (at {host}); a jump host needs an entry of its own, with `ProxyJump none`"
            )
        if follow and options.tunnel:
            await self._jump(str(options.tunnel))
        keys, words = await self._keys(options) if last else ({}, _OWN_KEYS)
        door = _Door(options, self._hosts(options, last=last), list(self.doors), words)
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

    async def _enter(
        self, door: _Door, host: str, named: dict[str, Any], *, last: bool
    ) -> asyncssh.SSHClientConnection:
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
                config=_config_files(),
                tunnel=self.line_so_far[-1] if self.line_so_far else None,
                known_hosts=door.known(),
                client_factory=lambda: _Client(door, self.lost if last else _ignored),
                keepalive_interval=options.keepalive_interval if asked else KEEPALIVE_SECONDS,
                keepalive_count_max=options.keepalive_count_max if asked else KEEPALIVE_COUNT,
                **named,
            )
        except Exception as error:  # noqa: BLE001  (not one goes on: their tracebacks hold the passphrase)
            failure = _translated(error, door)
        finally:
            named.clear()
        raise failure

    def _hosts(self, options: asyncssh.SSHClientConnectionOptions, *, last: bool) -> list[Path]:
        """The last server is looked up in `known_hosts` alone, if that is given; a jump host there, too."""
        given = [Path(self.ssh.known_hosts)] if self.ssh.known_hosts else []
        if given and last:
            return given
        own = _files(options, "UserKnownHostsFile") or [_at_home(name) for name in DEFAULT_HOSTS]
        return [*own, *given, SYSTEM_HOSTS]

    async def _keys(self, options: asyncssh.SSHClientConnectionOptions) -> tuple[dict[str, Any], str]:
        """The keys to show to the last server, as options and in words; none: those that ssh would show."""
        if self.ssh.key_file is None:
            return {}, _OWN_KEYS
        path = Path(self.ssh.key_file)
        key, trouble = _read_key(path, self.ssh)
        if key is not None:
            certificate = path.with_name(f"{path.name}-cert.pub")
            keys = [(key, str(certificate)) if certificate.exists() else key]
            return {"client_keys": keys, "agent_path": None}, f"key_file {path}"
        if self.ssh.passphrase is None and await _agent_has(path, options):
            return {"client_keys": [], "agent_identities": f"{path}.pub"}, f"key_file {path}, from the agent"
        raise SshTunnelError(trouble)


_OWN_KEYS = "the agent's keys, those that ~/.ssh/config names, and ~/.ssh/id_*"
_JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>.+)@)?(?P<host>\[[^]]+\]|[^:@]+)(?::(?P<port>\d+))?/?")


def _ignored(_: str) -> None:
    """A jump host's connection broke: the one through it says so."""


def _options(host: str, port: int | None, user: str | None) -> asyncssh.SSHClientConnectionOptions:
    """What counts for a host: what is given, then `~/.ssh/config`, then the system's. No key is read."""
    try:
        return asyncssh.SSHClientConnectionOptions(
            host=host,
            port=() if port is None else port,
            username=() if user is None else user,
            config=_config_files(),
            client_keys=None,
            known_hosts=b"",
        )
    except (asyncssh.ConfigParseError, ValueError, OSError) as error:
        raise SshTunnelError(f"SSH server {host}: the configuration of ssh cannot be used ({error}); mend it") from None


def _config_files() -> list[str]:
    files = (_at_home("~/.ssh/config"), SYSTEM_CONFIG)
    return [str(file) for file in files if os.access(file, os.R_OK)]


def _files(options: asyncssh.SSHClientConnectionOptions, name: str) -> list[Path]:
    """What `~/.ssh/config` says under a name that stands for several files."""
    named = options.config.get(name)
    return [_at_home(str(file)) for file in named] if isinstance(named, list | tuple) else []


def _at_home(name: str) -> Path:
    return Path(name).expanduser()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _quoted(file: Path) -> str:
    """For a shell; `~` where the home directory is meant."""
    home = _at_home("~")
    if file.is_relative_to(home):
        return f"~/{shlex.quote(str(file.relative_to(home)))}"
    return shlex.quote(str(file))


def _as_target(doors: Sequence[_Door]) -> str:
    """The last of these servers, as `ssh` is told of it."""
    way = [f"{door.options.username}@{door.host}:{door.options.port}" for door in doors[:-1]]
    jump = f"-J {shlex.quote(','.join(way))} " if way else ""
    last = doors[-1].options
    return f"{jump}-p {last.port} {shlex.quote(f'{last.username}@{last.host}')}"


# --------------------------------------------------------------------------------------- the keys


def _read_key(path: Path, ssh: SshConfig) -> tuple[asyncssh.SSHKey | None, str]:
    """The private key, or what is wrong with it. No error goes on from here: its traceback holds the passphrase."""
    try:
        if (mode := path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            return None, (
                f"key_file {path}: others can read this private key ({stat.filemode(mode)}); run: "
                f"chmod 600 {shlex.quote(str(path))}"
            )
        secret = None if ssh.passphrase is None else ssh.passphrase.get_secret_value()
        return asyncssh.read_private_key(str(path), secret), ""
    except OSError as error:
        return None, f"key_file {path}: the private key cannot be read ({error.strerror}); check `key_file`"
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        return None, f"key_file {path}: {_of_key(str(error), has_passphrase=ssh.passphrase is not None)}"


def _of_key(words: str, *, has_passphrase: bool) -> str:
    if "bcrypt" in words:
        return "the key is encrypted, and the package bcrypt is missing: pip install 'asyncssh[bcrypt]'"
    if words.startswith("Passphrase"):
        return "it is encrypted, and there is no passphrase: write `passphrase`, or add the key to the agent (ssh-add)"
    if has_passphrase and ("passphrase" in words.lower() or "decrypt" in words.lower()):
        return "the passphrase does not open the key; check `passphrase`"
    return "this is no private key that can be read here; check `key_file` (it is the file without .pub)"


async def _agent_has(path: Path, options: asyncssh.SSHClientConnectionOptions) -> bool:
    """Whether the agent holds the same key: then no passphrase is needed."""
    where = options.config.get("IdentityAgent", os.environ.get("SSH_AUTH_SOCK"))
    try:
        public = asyncssh.read_public_key(f"{path}.pub").public_data
        if not where:
            return False
        async with await asyncssh.connect_agent(str(_at_home(str(where)))) as agent:
            held = [pair.public_data for pair in await agent.get_keys()]
    except (OSError, ValueError):
        return False
    return public in held


# ------------------------------------------------------------------------------------------ errors


def _translated(error: Exception, door: _Door) -> SshTunnelError:
    """What a failure to get in means, and whether another try is worth while."""
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        if door.shown is None:
            return SshTunnelError(f"{door.place}: its host key is refused ({_words(error)}); ask its administrators")
        return SshTunnelError(door.mistrust())
    if isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in error.reason and door.others() is not None:
        return SshTunnelError(door.mistrust())
    if isinstance(error, asyncssh.PermissionDenied) or "Too many authentication" in str(error):
        return SshTunnelError(_not_let_in(door))
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
        return SshTunnelError(f"{door.place}: a key of ~/.ssh: {_of_key(str(error), has_passphrase=True)}")
    if isinstance(error, asyncssh.ChannelOpenError):
        return TunnelAway(f"{door.place} cannot be reached from the jump host ({_words(error)}); is it running?")
    if isinstance(error, asyncssh.KeyExchangeFailed | asyncssh.ProtocolNotSupported | asyncssh.ProtocolError):
        return SshTunnelError(f"{door.place}: no SSH connection can be made with it ({_words(error)})")
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return SshTunnelError(f"{door.place}: no such host ({error.strerror}); check `address`")
    if isinstance(error, asyncssh.Error | OSError | TimeoutError | EOFError):
        words = _words(error)
        return TunnelAway(f"{door.place} does not answer ({words}); is it running, are `address` and `port` right?")
    return SshTunnelError(f"{door.place}: {type(error).__name__}: {_words(error)}")


def _words(error: Exception) -> str:
    """What it says in one line; the server may have chosen the words."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "".join(letter if letter.isprintable() else " " for letter in words)[:300]


def _not_let_in(door: _Door) -> str:
    text = (
        f"{door.place}: not let in with {door.keys}; check `user` and `key_file`, and that the public key is in "
        "~/.ssh/authorized_keys there"
    )
    if door.keys == _OWN_KEYS and (locked := _locked_key(door)) is not None:
        text += f". {locked} is encrypted and was left out: write `passphrase`, or add it to the agent (ssh-add)"
    return text


def _locked_key(door: _Door) -> Path | None:
    """The first of the user's keys that needs a passphrase."""
    for path in _files(door.options, "IdentityFile") or [_at_home(f"~/.ssh/{name}") for name in DEFAULT_KEYS]:
        try:
            asyncssh.import_private_key(_content(path))
        except asyncssh.KeyImportError as error:
            if str(error).startswith("Passphrase"):
                return path
    return None


def _refused(ssh: SshConfig, refused: asyncssh.ChannelOpenError, *, lasting: bool) -> DatabaseError:
    """Why the last server would not pass on a connection; `lasting` if what it forbids it has always forbidden."""
    place = f"{ssh.remote_address}:{ssh.remote_port}, as SSH server {ssh.address} sees it,"
    if refused.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        kind = SshTunnelError if lasting else TunnelAway
        return kind(
            f"SSH server {ssh.address} does not pass on connections to {ssh.remote_address}:{ssh.remote_port} "
            f"({_words(refused)}); ask its administrators for AllowTcpForwarding and PermitOpen"
        )
    return TunnelAway(
        f"{place} does not answer ({_words(refused)}); is the database running, are `remote_address` and `remote_port` "
        "right?"
    )


def _cannot_listen(host: str, port: int, error: OSError) -> SshTunnelError:
    where = f"local end of the SSH tunnel, {host}:{port or 'any port'}"
    if error.errno == errno.EADDRINUSE or "already in use" in str(error):
        return SshTunnelError(
            f"{where}: port {port} is taken; give another `local_port`, or leave it out: then a free one is found"
        )
    return SshTunnelError(f"{where}: cannot be listened on ({error}); check `local_address` and `local_port`")
