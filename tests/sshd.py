"""Private, throw-away SSH servers and agents: a temporary folder, a free port of 127.0.0.1, keys of their own.

    with ssh_server() as server:
        server.connection()  # what to write under Connection.Ssh

They end with the process that started them, even when it is killed.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.servers import HOST, PIDS, START_SECONDS, binary, free_port, sweep

ACCOUNT = "nobody"
"""The system user that a server runs as when we are root, and whom it lets in."""
PASSPHRASE = "a-passphrase-of-the-tests"


def make_key(path: Path, passphrase: str = "") -> Path:
    """A new key pair; the public key stands beside it as `<name>.pub`."""
    subprocess.run(
        [binary("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-a", "4", "-N", passphrase, "-f", str(path)],
        check=True,
    )
    return path


class SshServer:
    """One sshd, which lets its user in with the key `key`, to pass on connections if `forwarding` says so."""

    def __init__(self, forwarding: str = "local") -> None:
        self.port = 0
        self.forwarding = forwarding
        self.user = ACCOUNT if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"asyncexp-server-{os.getpid()}-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.key = make_key(self.folder / "client_key")
        self.authorized = self.folder / "authorized_keys"
        self.authorized.write_bytes(self.key.with_suffix(".pub").read_bytes())
        self.new_host_key()
        self.start()

    # ---------------------------------------------------------------------------- what tests use

    def connection(self, **more: Any) -> dict[str, Any]:
        """The keys of `Connection.Ssh` that lead through this server; those that are None are left out."""
        port = more.get("port") or self.port
        known = self.folder / "known_hosts"
        known.write_text(self.known_hosts(port))
        given = {"address": HOST, "port": port, "user": self.user}
        given |= {"key_file": str(self.key), "known_hosts": str(known), **more}
        return {name: value for name, value in given.items() if value is not None}

    def known_hosts(self, port: int | None = None) -> str:
        """The line of a file of known hosts that is right for this server, or for a way to it at another port."""
        return f"[{HOST}]:{port or self.port} {(self.folder / 'host_key.pub').read_text()}"

    def allow(self, public_key: Path) -> None:
        with self.authorized.open("ab") as file:
            file.write(public_key.read_bytes())

    def new_host_key(self) -> None:
        """Another one, from the next start on."""
        for file in self.folder.glob("host_key*"):
            file.unlink()
        self._give_away(make_key(self.folder / "host_key"))

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve connections: one or two for each."""
        if self._process is None or self._process.poll() is not None:
            return []
        return psutil.Process(self._process.pid).children(recursive=True)

    def cut(self) -> None:
        """Kills those."""
        for session in self.sessions():
            with suppress(psutil.NoSuchProcess):
                session.kill()

    # --------------------------------------------------------------------------- its life and death

    def start(self) -> None:
        """Starts it and returns when it answers; on the port it had, if it had one."""
        for _ in range(5 if not self.port else 1):
            self.port = self.port or free_port()
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            PIDS.add(self._process.pid)
            if self._wait_until_it_answers():
                return
            self.kill()
            self.port = 0
        raise RuntimeError(f"sshd did not start:\n{self.log()[-3000:]}")

    def kill(self) -> None:
        """Ends it and all its sessions."""
        self.cut()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(START_SECONDS)
            PIDS.discard(process.pid)

    def restart(self) -> None:
        """Ends it, its sessions too, and starts it on the same port."""
        self.kill()
        self.start()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def remove(self) -> None:
        """Ends it and removes its folder; nothing in a forked child."""
        if os.getpid() == self._owner:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self) -> list[str]:
        settings = {
            "ListenAddress": HOST,
            "Port": self.port,
            "HostKey": self.folder / "host_key",
            "PidFile": "none",
            "AuthorizedKeysFile": self.authorized,
            "StrictModes": "no",
            "UsePAM": "yes",  # else it takes accounts without a password for locked
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "AllowTcpForwarding": self.forwarding,
            "LogLevel": "VERBOSE",
        }
        options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        line = [binary("setpriv", "util-linux"), "--pdeathsig=KILL"]
        if os.geteuid() == 0:
            line += [f"--reuid={ACCOUNT}", "--regid=nogroup", "--clear-groups"]
        return [*line, "--", binary("sshd", "openssh-server"), "-D", "-e", "-f", "/dev/null", *options]

    def _wait_until_it_answers(self) -> bool:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            with suppress(OSError), socket.create_connection((HOST, self.port), 1) as probe:
                if probe.recv(4) == b"SSH-":
                    return True
            time.sleep(0.01)
        return False

    def _give_away(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, ACCOUNT)


class Agent:
    """One ssh-agent, which holds no key at first."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "agent"
        self._process = subprocess.Popen(
            [
                *(binary("setpriv", "util-linux"), "--pdeathsig=KILL", "--"),
                *(binary("ssh-agent", "openssh-client"), "-D", "-a", str(self.socket)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        PIDS.add(self._process.pid)
        end = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            assert time.monotonic() < end, "the agent does not answer"
            time.sleep(0.01)

    def add(self, key: Path) -> None:
        """A key without passphrase, whose file is no longer needed then."""
        subprocess.run(
            [binary("ssh-add", "openssh-client"), "-q", str(key)],
            env=os.environ | {"SSH_AUTH_SOCK": str(self.socket)},
            check=True,
        )

    def end(self) -> None:
        self._process.kill()
        self._process.wait(START_SECONDS)
        PIDS.discard(self._process.pid)


@contextmanager
def ssh_server(forwarding: str = "local") -> Iterator[SshServer]:
    server = SshServer(forwarding)
    atexit.register(server.remove)
    try:
        yield server
    finally:
        atexit.unregister(server.remove)
        server.remove()


@contextmanager
def ssh_agent(folder: Path) -> Iterator[Agent]:
    agent = Agent(folder)
    try:
        yield agent
    finally:
        agent.end()
