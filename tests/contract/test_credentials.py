"""Credentials from every source, against real servers: who is let in shows which source won, and was read right.

Each source has a user and a password of its own. Where the databases' own clients read the same files they are asked.
"""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from asyncexp import Experimenter, config
from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseConnectionError, InvalidConfigError
from tests.contract.functions import nothing
from tests.servers import HOST, PostgresServer, Server

ODD = [
    "simple",
    """it's "quoted" `so`""",
    "back\\slash \\n \\\\ \\",
    "${not} ${oc.env:HOME} $x \\${y}",
    "100% %41 %(x)s %%",
    "co:lon::s # ha;sh ! [x] {y} =/?&@",
    "pä55wörd € 🔑",
    "-leading: dash, 'and' \"all\"",
    "tab\there",
]
"""Passwords. None has blanks at its ends: an INI file takes those away."""
SOURCES = ("environment", "file", "cfg", "url", "variables", "pgpass", "my.cnf")
"""From strongest to weakest, but that a credentials file is either `file` or `cfg`."""
servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
pytestmark = servers_only


@dataclass(frozen=True)
class Account:
    user: str
    password: str


@dataclass
class Home:
    """A folder with the files that sources are, and the variables."""

    folder: Path
    target: Target
    environment: dict[str, str]
    credentials: Path | None = None

    def put(self, source: str, account: Account) -> None:
        """Writes what a source says: where, who, and the password."""
        port = str(self.target.port)
        if source == "environment":
            names = ("USER", account.user), ("PASSWORD", account.password), ("HOST", HOST), ("PORT", port)
            self.environment |= {f"ASYNCEXP_DATABASE__{name}": value for name, value in names}
        elif source == "file":
            self._write_yaml(account)
        elif source == "cfg":
            secret = account.password.replace("%", "%%")
            lines = f"host = {HOST}", f"port = {port}", f"user = {account.user}", f"password = {secret}"
            self.credentials = self.write("credentials.cfg", "\n".join(["[CREDENTIALS]", *lines]))
        elif source == "url":
            secret = quote(account.password, safe="")
            self.environment["DATABASE_URL"] = (
                f"{self.target.provider}://{account.user}:{secret}@{HOST}:{port}/elsewhere"
            )
        elif source == "my.cnf":
            secret = account.password.replace("\\", "\\\\").replace('"', '\\"')
            options = f'host={HOST}\nport = {port}\nuser={account.user} # who\npassword = "{secret}" # and how'
            self.write(".my.cnf", f"[mysqldump]\npassword=no\n[client]\n{options}\n[other]\nuser=no")
        else:
            self.environment |= {"PGHOST": HOST, "PGPORT": port, "PGUSER": account.user}
            if source == "variables":
                self.environment["PGPASSWORD"] = account.password
            else:
                secret = account.password.replace("\\", "\\\\").replace(":", "\\:")
                mine = f"other:{port}:*:{account.user}:no\n{HOST}:*:*:{account.user}:{secret}"
                self.write(".pgpass", f"# of the tests\n{mine}\n*:*:*:*:no")

    def _write_yaml(self, account: Account) -> None:
        """As a user would: a literal `${` is `\\${`, with the backslashes right before it doubled."""
        secret = account.password.replace("\\${", "\\\\${").replace("${", "\\${")
        login = {"user": account.user, "password": secret}
        server = {"server": HOST, "port": self.target.port}
        content = {"CREDENTIALS": {"Database": login, "Connection": {"Standard": server}}}
        self.credentials = self.write("credentials.yml", yaml.safe_dump(content, allow_unicode=True))

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text + "\n")
        path.chmod(mode)
        return path

    def way(self, **database: Any) -> Target:
        """As whom and where the library would enter by all this."""
        return config.target(self.configuration(**database), self.credentials, self.environment)

    def configuration(self, **database: Any) -> Any:
        return config.load(self.configured(**database), environment=self.environment)

    def configured(self, **database: Any) -> Path:
        table = {"name": "experiments", "keyfields": {"number": {"type": "INT", "values": [1, 2]}}}
        known = {"provider": self.target.provider, "database": self.target.database, "table": table, **database}
        return self.write("study.yml", yaml.safe_dump({"PY_EXPERIMENTER": {"Database": known}}))


@pytest.fixture
def home(target: Target, tmp_path: Path) -> Home:
    return Home(tmp_path, target, {"HOME": str(tmp_path)})


@pytest.fixture
def account(server: Server, target: Target) -> Iterator[Callable[[str], Account]]:
    """Makes users of this database; they go with the test."""
    made: list[str] = []

    def new(password: str) -> Account:
        user = f"user_{target.database}_{len(made)}"
        made.append(user)
        text = password.replace("'", "''")
        if isinstance(server, PostgresServer):
            server.sql(f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD E'{text.replace(chr(92), chr(92) * 2)}'")
        else:
            server.sql(f"CREATE USER {user} IDENTIFIED BY '{text.replace(chr(92), chr(92) * 2)}'")
            server.sql(f"GRANT ALL ON *.* TO {user}")
        return Account(user, password)

    yield new
    for user in made:
        if isinstance(server, PostgresServer):
            server.sql(f"DROP OWNED BY {user}", target.database)
        server.sql(f"DROP {'ROLE' if isinstance(server, PostgresServer) else 'USER'} {user}")


async def who(target: Target) -> str:
    """As whom the server lets us in."""
    database = connect(target)
    try:
        [(user,)] = await database.fetch("SELECT CURRENT_USER")
        return str(user).partition("@")[0]
    finally:
        await database.close()


def sources(provider: str) -> list[str]:
    left_out = {"postgresql": ("my.cnf",), "mysql": ("variables", "pgpass")}[provider]
    return [each for each in SOURCES if each not in left_out]


# ---------------------------------------------------------------------------------- odd passwords


@pytest.mark.parametrize("source", SOURCES)
async def test_odd_passwords(home: Home, account: Callable[[str], Account], source: str) -> None:
    if source not in sources(home.target.provider):
        return
    for password in ODD:
        mine = account(password)
        home.put(source, mine)
        found = home.way()
        assert (found.user, found.password) == (mine.user, password)
        assert await who(found) == mine.user
        wrong = account(password + "x")
        home.put(source, Account(wrong.user, password))
        with pytest.raises(DatabaseConnectionError, match="check user and password"):
            await who(home.way())


async def test_the_clients_read_their_files_alike(home: Home, account: Callable[[str], Account]) -> None:
    """psql and libpq's file, mariadb and its own: who is let in by them is let in by us."""
    source = {"postgresql": "pgpass", "mysql": "my.cnf"}[home.target.provider]
    for password in ODD:
        mine = account(password)
        home.put(source, mine)
        assert theirs(home) == mine.user
        assert await who(home.way()) == mine.user


def theirs(home: Home) -> str:
    """As whom the database's own client enters."""
    text = "SELECT CURRENT_USER"
    commands = {
        "postgresql": ["psql", "-w", "-At", "-d", home.target.database, "-c", text],
        "mysql": ["mariadb", f"--defaults-file={home.folder / '.my.cnf'}", "-N", "-B", "-e", text],
    }
    done = subprocess.run(
        commands[home.target.provider],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **home.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().partition("@")[0]


MY_CNF = [
    "password=plain#comment",
    "password = ' in single ' # x",
    "password=it\\'s",
    'password="a\\"b#c"#d',
    "password='a\\nb\\s\\tc\\q'",
    "password\t=\ta b\\\\",
    '  password = "unended',
    "password = first\npassword = second",
    "[mysqld]\npassword = other\n[client]\npassword = mine\n[clients]\npassword = no",
    "[ client ]\npassword=x",
    "; password = no\n#password=no\npassword=yes",
]


def test_options_are_read_as_the_client_does(home: Home) -> None:
    """`my_print_defaults` is what scripts read such files with."""
    if home.target.provider != "mysql":
        return
    for text in MY_CNF:
        path = home.write(".my.cnf", text if "[" in text else f"[client]\n{text}")
        printed = subprocess.run(
            ["my_print_defaults", f"--defaults-file={path}", "client"], capture_output=True, text=True, check=True
        ).stdout
        wanted = printed.rstrip("\n").rpartition("--password=")[2] if printed else None
        home.environment["ASYNCEXP_DATABASE__USER"] = "somebody"
        assert home.way().password == wanted, text


PGPASS = [
    "{host}:{port}:{database}:{user}:right",
    "*:*:*:*:right:and more",
    "{host}:{port}:{database}:\\{user}:\\r\\i\\ght",
    " {host}:*:*:*:wrong\n*:*:*:*:right",
    "#{host}:*:*:*:wrong\n*:*:*:*:right",
    ";{host}:*:*:*:wrong\n*:*:*:*:right",
    "\\*:*:*:*:wrong\n*:*:*:*:right",
    "{host}:*:*:wrong\n{host}:*:*:{user}:right\r",
    "{host}:*:{database}x:*:wrong\n*:*:*:{user}x:wrong\n*:*:*:*:right",
]


async def test_lines_are_read_as_libpq_does(home: Home, account: Callable[[str], Account]) -> None:
    if home.target.provider != "postgresql":
        return
    mine = account("right")
    for text in PGPASS:
        home.put("pgpass", mine)
        known = {"host": HOST, "port": home.target.port, "database": home.target.database, "user": mine.user}
        home.write(".pgpass", text.format(**known))
        assert theirs(home) == mine.user
        assert home.way().password == "right", text


# ---------------------------------------------------------------------------------------- who wins


async def test_the_stronger_source_wins(home: Home, account: Callable[[str], Account]) -> None:
    """From the weakest on, each that is added is the one that is let in: and the last ones would be refused."""
    for source in reversed(sources(home.target.provider)):
        mine = account(f"of {source}")
        home.put(source, mine)
        assert await who(home.way()) == mine.user, source


async def test_host_port_user_and_password_are_settled_one_by_one(
    home: Home, account: Callable[[str], Account], server: Server
) -> None:
    mine = account("mine")
    home.put("file", mine)
    assert home.credentials is not None
    wrong = home.credentials.read_text().replace("mine", "another").replace(str(home.target.port), "1")
    home.write("credentials.yml", wrong.replace(mine.user, "nobody"))
    home.environment |= {"ASYNCEXP_DATABASE__PASSWORD": "mine", "ASYNCEXP_DATABASE__USER": mine.user}
    home.environment["ASYNCEXP_DATABASE__HOST"] = ""  # an empty one counts as none
    assert await who(home.way(port=home.target.port)) == mine.user
    home.environment["ASYNCEXP_DATABASE__PORT"] = str(home.target.port)
    assert await who(home.way(host=HOST, port=1)) == mine.user


async def test_the_password_of_another_user_or_server_is_not_tried(
    home: Home, account: Callable[[str], Account]
) -> None:
    mine, other = account("mine"), account("others")
    for source in ("url", {"postgresql": "pgpass", "mysql": "my.cnf"}[home.target.provider]):
        home.put(source, other)
        home.environment |= {"ASYNCEXP_DATABASE__USER": mine.user, "ASYNCEXP_DATABASE__HOST": HOST}
        home.environment["ASYNCEXP_DATABASE__PORT"] = str(home.target.port)
        found = home.way()
        assert found.password in (None, "no")
        with pytest.raises(DatabaseConnectionError, match="check user and password"):
            await who(found)
        home.environment.pop("DATABASE_URL", None)


@pytest.mark.parametrize("text", ["p/w", "p?w", "p#w", "p@/w", "p[w"])
def test_a_url_that_is_not_encoded_is_refused(home: Home, text: str) -> None:
    home.environment["DATABASE_URL"] = f"{home.target.provider}://me:12{text}@{HOST}:5432/lab"
    with pytest.raises(InvalidConfigError, match=r"DATABASE_URL: is no URL such as .*%23 for #") as caught:
        home.way()
    assert text not in str(caught.value)


def test_tls_of_the_clients(home: Home, account: Callable[[str], Account]) -> None:
    mine = account("x")
    home.put("url", mine)
    home.environment["DATABASE_URL"] += "?sslmode=require&sslrootcert=/ca.pem"
    assert (home.way().tls, home.way().tls_ca) == ("verify-full", "/ca.pem")
    home.environment["ASYNCEXP_DATABASE__USER"] = mine.user
    assert (home.way(tls="disable").tls, home.way(host="db.lab").tls_ca) == ("disable", None)
    del home.environment["DATABASE_URL"]
    if home.target.provider == "postgresql":
        home.environment |= {"PGUSER": "me", "PGSSLMODE": "verify-ca", "PGSSLCERT": "/my.pem"}
    else:
        home.write(".my.cnf", f"[client]\nuser={mine.user}\nssl_verify_server_cert\nssl-cert = /my.pem")
    assert (home.way().tls, home.way().tls_cert) == ("verify-full", "/my.pem")


# ------------------------------------------------------------------------------------ open to others


@pytest.mark.parametrize("bits", ["640", "604"])
async def test_a_secret_that_others_can_read_opens_nothing(
    home: Home, account: Callable[[str], Account], bits: str
) -> None:
    mine = account("mine")
    for source, name in (
        ("file", "credentials.yml"),
        ("cfg", "credentials.cfg"),
        {"postgresql": ("pgpass", ".pgpass"), "mysql": ("my.cnf", ".my.cnf")}[home.target.provider],
    ):
        home.credentials = None
        home.put(source, mine)
        path = home.folder / name
        path.chmod(int(bits, 8))
        with pytest.raises(InvalidConfigError, match=f"others can read it .*run: chmod 600 {path}"):
            home.way()
        path.chmod(0o600)
        assert await who(home.way()) == mine.user
    home.environment["ASYNCEXP_DATABASE__PASSWORD"] = "mine"
    path.chmod(int(bits, 8))  # of the client's file nothing is needed now
    assert await who(home.way()) == mine.user


# ------------------------------------------------------------------------------------ the whole way


async def test_an_experimenter_enters_by_what_the_environment_says(
    home: Home, account: Callable[[str], Account], monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    """Its own connections, and those of the copy that a child unpickles, whose sources are those of its own time."""
    mine = account(ODD[1])
    home.put("url", mine)
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.folder)
    async with Experimenter(home.configured(), logger_name="asyncexp-tests", log_file=None) as study:
        await study.fill_table_from_config()
        assert (await study.execute(nothing, max_experiments=1)).done == 1
        copied = pickle.dumps(study)
        assert users(server, home.target) == {mine.user}
    assert mine.password.encode() not in copied
    other = account("another")
    home.put("url", other)
    monkeypatch.setenv("DATABASE_URL", home.environment["DATABASE_URL"])
    async with pickle.loads(copied) as copy:  # noqa: S301  (our own)
        assert (await copy.execute(nothing)).done == 1
        assert users(server, home.target) == {other.user}


def users(server: Server, target: Target) -> set[str]:
    """Who is in the database."""
    named = {
        "postgresql": f"SELECT usename::text FROM pg_stat_activity WHERE datname = '{target.database}'",
        "mysql": f"SELECT user FROM information_schema.processlist WHERE db = '{target.database}'",
    }
    return {str(user) for (user,) in server.sql(named[target.provider])}


async def test_no_driver_looks_for_a_password_by_itself(
    home: Home, account: Callable[[str], Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg would read PGPASSWORD and ~/.pgpass, whatever our order says."""
    mine = account("mine")
    monkeypatch.setenv("PGPASSWORD", mine.password)
    found = Target(home.target.provider, home.target.database, HOST, home.target.port, mine.user)
    with pytest.raises(DatabaseConnectionError, match="check user and password"):
        await who(found)
