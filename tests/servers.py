"""Private, throw-away database servers: a temporary folder, a free port of 127.0.0.1, a password.

    with postgres_server() as server:
        target = server.fresh()

They end with the process that started them, even when it is killed.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import asyncpg
import psutil
import pymysql

from asyncexp.db.base import Target
from tests.certificates import Authority, Identity

T = TypeVar("T")
HOST = "127.0.0.1"
USER = "admin"
PASSWORD = "a-secret-of-the-tests"
START_SECONDS = 60.0

PIDS: set[int] = set()
"""The servers that run now: a test may find them among its children."""


class SharedTarget(Target):
    """A target whose password is no secret: it may be sent to a child process."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, each.name) for each in fields(self))


class Server(ABC):
    """One server; every database that `fresh` makes on it is empty and of a new name."""

    provider: ClassVar[Any]
    account: ClassVar[str]
    """The system user that the server runs as when we are root."""

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable
        self.port = 0
        self._owner = os.getpid()
        self._tls: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"asyncexp-server-{os.getpid()}-", dir="/tmp"))
        self.own(self.folder)

    # ---------------------------------------------------------------------------- what tests use

    def target(self, database: str) -> Target:
        return SharedTarget(self.provider, database, HOST, self.port, USER, PASSWORD)

    def fresh(self) -> Target:
        """A new, empty database."""
        name = f"t{os.getpid()}_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.target(name)

    @abstractmethod
    def sql(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Runs a statement as the server's administrator, on a connection of its own."""

    @abstractmethod
    def drop(self, database: str) -> None:
        """Drops a database; who is in it is thrown out."""

    @abstractmethod
    def sessions(self, database: str) -> list[int]:
        """Numbers of the sessions that are in a database."""

    @abstractmethod
    def end_sessions(self, database: str) -> int:
        """Ends those sessions by the administrator's command; how many there were."""

    # --------------------------------------------------------------------------- its life and death

    def start(self) -> None:
        """Starts it and returns when it answers; on the port it had, if it had one."""
        for _ in range(5 if not self.port else 1):
            self.port = self.port or free_port()
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self.as_account(*self.command(), ends_with_us=True),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=self._environment(),
                    start_new_session=True,
                )
            PIDS.add(self._process.pid)
            if self._wait_until_it_answers():
                return
            self.kill()
        raise RuntimeError(f"{self.provider} did not start:\n{(self.folder / 'log').read_text()[-3000:]}")

    def stop(self) -> None:
        """An orderly stop that waits for nobody."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """As a power cut of the server would: no orderly end."""
        self._end(self.kill_signal)

    def restart(self, *, immediate: bool = False) -> None:
        """Stops it, in order or at once, and starts it on the same port."""
        self.kill() if immediate else self.stop()
        self.start()

    def freeze(self) -> None:
        """Stops the clock of all its processes, until `thaw`."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def speak_tls(self, identity: Identity, clients: Authority | None = None) -> None:
        """Shows a certificate from now on, and checks those that clients show by an authority, if one is given."""
        files = {"certificate": identity.certificate, "key": identity.key}
        if clients is not None:
            files["authority"] = clients.path
        for name, file in files.items():
            copy = self.folder / f"{name}.pem"
            copy.touch(0o600)
            copy.write_bytes(file.read_bytes())
            self.own(copy)
        settings = self.tls_settings(*(str(self.folder / f"{name}.pem") for name in files))
        if settings == self._tls:
            self.reload()
        else:
            self._tls = settings
            self.restart()

    @abstractmethod
    def reload(self) -> None:
        """Makes it read its certificates anew; it has when this returns."""

    @abstractmethod
    def tls_settings(self, certificate: str, key: str, authority: str | None = None) -> dict[str, str]: ...

    def remove(self) -> None:
        """Ends it and removes its folder; nothing in a forked child."""
        if os.getpid() != self._owner:
            return
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    kill_signal: ClassVar[signal.Signals] = signal.SIGKILL

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool: ...

    def _wait_until_it_answers(self) -> bool:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            if self.answers():
                return True
            time.sleep(0.02)
        return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        family = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        with suppress(ProcessLookupError):
            process.send_signal(how)
        process.wait(START_SECONDS)
        psutil.wait_procs(family, timeout=10)
        PIDS.discard(process.pid)

    def _signal_all(self, which: signal.Signals) -> None:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(which)

    # ------------------------------------------------------------------------------------- its user

    def own(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, self.account, self.account)

    def as_account(self, *command: str, ends_with_us: bool = False) -> list[str]:
        """A command as the server's user: the servers refuse to run as root."""
        line = [binary("setpriv", "util-linux")]
        if os.geteuid() == 0:
            line += [f"--reuid={self.account}", f"--regid={self.account}", "--init-groups"]
        if ends_with_us:  # it follows the thread that starts the server, which is the main one
            line += [f"--pdeathsig={self.kill_signal.name.removeprefix('SIG')}"]
        return [*line, "--", *command]

    def _environment(self) -> dict[str, str]:
        return os.environ | {"TMPDIR": str(self.folder)}

    def run(self, *command: str) -> None:
        done = subprocess.run(
            self.as_account(*command),
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout}\n{done.stderr}")


class PostgresServer(Server):
    """PostgreSQL."""

    provider = "postgresql"
    account = "postgres"
    stop_signal = signal.SIGINT
    kill_signal = signal.SIGQUIT

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        self.own(secret)
        self.run(
            *(postgres("initdb"), "-D", str(self.folder / "data"), "-U", USER, f"--pwfile={secret}"),
            *("--auth=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
        )
        self.start()

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "120",
            "shared_buffers": "128MB",
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        settings |= self._tls
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [postgres("postgres"), "-D", str(self.folder / "data"), *options]

    def reload(self) -> None:
        """pg_hba.conf too. A session inherits the time of the latest reload from the postmaster that began it."""
        [(before,)] = self.sql("SELECT pg_conf_load_time() FROM pg_reload_conf()")
        end = time.monotonic() + START_SECONDS
        while self.sql("SELECT pg_conf_load_time()") == [(before,)]:
            if time.monotonic() > end:
                raise RuntimeError("PostgreSQL does not read its files anew")
            time.sleep(0.01)

    def tls_settings(self, certificate: str, key: str, authority: str | None = None) -> dict[str, str]:
        return {"ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key, "ssl_ca_file": authority or ""}

    def let_in(self, *lines: str) -> None:
        """Replaces pg_hba.conf."""
        (self.folder / "data" / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))
        self.reload()

    def answers(self) -> bool:
        with suppress(OSError, asyncpg.PostgresError):
            return self.sql("SELECT 1") == [(1,)]
        return False

    def sql(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        async def ask() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(
                host=HOST, port=self.port, user=USER, password=PASSWORD, database=database or "postgres", timeout=20
            )
            try:
                return [tuple(record) for record in await connection.fetch(statement)]
            finally:
                await connection.close()

        return in_thread(lambda: asyncio.run(ask()))

    def drop(self, database: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def sessions(self, database: str) -> list[int]:
        rows = self.sql(f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}'")
        return [pid for (pid,) in rows]

    def end_sessions(self, database: str) -> int:
        return len(self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"))


class MariadbServer(Server):
    """MariaDB."""

    provider = "mysql"
    account = "mysql"

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        who = f"'{USER}'@'%'"
        (self.folder / "init.sql").write_text(
            f"CREATE USER IF NOT EXISTS {who} IDENTIFIED BY '{PASSWORD}';\n"
            f"GRANT ALL ON *.* TO {who} WITH GRANT OPTION;\n"
        )
        self.own(self.folder / "init.sql")
        self.run(
            *(binary("mariadb-install-db", "mariadb-server"), "--no-defaults", f"--datadir={self.folder}/data"),
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
        )
        self.start()

    def command(self) -> list[str]:
        settings = {
            "datadir": f"{self.folder}/data",
            "tmpdir": str(self.folder),
            "socket": f"{self.folder}/socket",
            "pid-file": f"{self.folder}/pid",
            "port": str(self.port),
            "bind-address": HOST,
            "init-file": f"{self.folder}/init.sql",
            "innodb-buffer-pool-size": "128M",
            "innodb-log-file-size": "96M",
            "innodb-flush-log-at-trx-commit": "1" if self.durable else "2",
            "max-connections": "200",
        }
        options = [f"--{name}={value}" for name, value in (settings | self._tls).items()]
        return [binary("mariadbd", "mariadb-server"), "--no-defaults", "--skip-name-resolve", *options]

    def reload(self) -> None:
        self.sql("FLUSH SSL")

    def tls_settings(self, certificate: str, key: str, authority: str | None = None) -> dict[str, str]:
        return {"ssl-cert": certificate, "ssl-key": key} | ({"ssl-ca": authority} if authority else {})

    def answers(self) -> bool:
        with suppress(pymysql.MySQLError):
            return self.sql("SELECT 1") == [(1,)]
        return False

    def sql(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        connection = pymysql.connect(
            host=HOST,
            port=self.port,
            user=USER,
            password=PASSWORD,
            database=database,
            autocommit=True,
            connect_timeout=20,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def drop(self, database: str) -> None:
        self.end_sessions(database)
        self.sql(f"DROP DATABASE IF EXISTS {database}")

    def sessions(self, database: str) -> list[int]:
        rows = self.sql(f"SELECT id FROM information_schema.processlist WHERE db = '{database}'")
        return [number for (number,) in rows]

    def end_sessions(self, database: str) -> int:
        sessions = self.sessions(database)
        for number in sessions:
            with suppress(pymysql.OperationalError):
                self.sql(f"KILL {number}")
        return len(sessions)


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[PostgresServer]:
    """A PostgreSQL server; `durable` if it shall write to the disk as one in earnest does."""
    with _until_exit(PostgresServer(durable=durable)) as server:
        yield server


@contextmanager
def mariadb_server(*, durable: bool = False) -> Iterator[MariadbServer]:
    """A MariaDB server; `durable` if it shall write to the disk as one in earnest does."""
    with _until_exit(MariadbServer(durable=durable)) as server:
        yield server


S = TypeVar("S", bound=Server)


@contextmanager
def _until_exit(server: S) -> Iterator[S]:
    atexit.register(server.remove)
    try:
        yield server
    finally:
        atexit.unregister(server.remove)
        server.remove()


# ------------------------------------------------------------------------------------------- finding


def binary(name: str, package: str) -> str:
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
    if found is None:
        raise FileNotFoundError(f"{name} is missing; install it: apt-get install {package}")
    return found


def postgres(name: str) -> str:
    """A program of the newest PostgreSQL server; Debian keeps them off the PATH."""

    def version(path: Path) -> float:
        return float(path.parts[-3])

    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=version)
    return str(debian[-1]) if debian else binary(name, "postgresql")


def free_port() -> int:
    """Below those that Linux gives to whoever asks for any: nobody takes it while a server is away."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


def sweep() -> None:
    """Removes what servers of processes that were killed have left."""
    for folder in Path("/tmp").glob("asyncexp-server-*"):  # noqa: S108
        owner = re.match(r"asyncexp-server-(\d+)-", folder.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            shutil.rmtree(folder, ignore_errors=True)


def in_thread(job: Callable[[], T]) -> T:
    """Runs a job that needs an event loop of its own, from wherever there is one already."""
    box: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            box.append(job())
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return box[0]
