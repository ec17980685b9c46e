"""pgbouncer in transaction mode, in front of a private PostgreSQL server.

with pgbouncer(server) as bouncer:
    target = bouncer.target(database)
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from asyncexp.db.base import Target
from tests import servers
from tests.certificates import Identity
from tests.servers import HOST, PASSWORD, START_SECONDS, USER, PostgresServer

POOL = 3
"""Connections to the server, which all clients share: each soon gets one that another has used."""


class Pgbouncer:
    """A pgbouncer that runs as the server's user; on the same port again after a restart."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self._server = server
        self.folder = folder
        self._settings: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = servers.free_port()

    def target(self, database: str) -> Target:
        return replace(self._server.target(database), port=self.port, pgbouncer=True)

    def start(self, **settings: str) -> None:
        """With settings beyond the usual ones, kept for later starts; returns when it answers."""
        self._settings |= settings
        path = self._write()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._server.as_account(servers.binary("pgbouncer", "pgbouncer"), str(path), ends_with_us=True),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        servers.PIDS.add(self._process.pid)
        self._wait_until_it_answers()

    def stop(self) -> None:
        """All its clients lose their connections."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_SECONDS)
            servers.PIDS.discard(self._process.pid)
            self._process = None

    def speak_tls(self, identity: Identity) -> None:
        """Starts anew, and lets in only who comes encrypted."""
        names = {"client_tls_cert_file": identity.certificate, "client_tls_key_file": identity.key}
        for file in names.values():
            self._server.own(file)
        self.stop()
        self.start(client_tls_sslmode="require", **{name: str(file) for name, file in names.items()})

    def _write(self) -> Path:
        users, path = self.folder / "users.txt", self.folder / "pgbouncer.ini"
        users.write_text(f'"{USER}" "{PASSWORD}"\n')
        settings = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": "transaction",
            "default_pool_size": str(POOL),
            "max_client_conn": "200",
            "server_login_retry": "0.1",
        } | self._settings
        lines = ["[databases]", f"* = host={HOST} port={self._server.port}", "[pgbouncer]"]
        path.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
        for file in (self.folder, users, path):
            self._server.own(file)
        return path

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            with suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return
            time.sleep(0.01)
        raise RuntimeError(f"pgbouncer did not start:\n{(self.folder / 'log').read_text()[-3000:]}")


@contextmanager
def pgbouncer(server: PostgresServer) -> Iterator[Pgbouncer]:
    """One with files of its own beside the server's, which go with the server."""
    folder = server.folder / f"pgbouncer-{time.monotonic_ns()}"
    folder.mkdir()
    bouncer = Pgbouncer(server, folder)
    bouncer.start()
    try:
        yield bouncer
    finally:
        bouncer.stop()
