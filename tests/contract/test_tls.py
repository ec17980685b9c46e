"""TLS, on real servers with certificates of the tests: the server is asked what is encrypted, and the wire heard."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from asyncexp import ResultProcessor
from asyncexp.db import connect
from asyncexp.db.base import Database, Outage, Target
from asyncexp.errors import DatabaseConnectionError
from tests.certificates import Authority, Identity
from tests.contract.functions import Attaches, Gated, nothing
from tests.contract.shared import Shared
from tests.contract.support import eventually, numbers, statuses
from tests.proxy import Proxy
from tests.servers import PASSWORD, USER, MariadbServer, PostgresServer, Server
from tests.sshd import ssh_server
from tests.studies import experimenter

pytestmark = [
    pytest.mark.parametrize("provider", ["postgresql", "mysql"]),
    # asyncpg leaves the socket of a failed handshake to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""With what a client of PostgreSQL asks whether the server can encrypt."""
SECRET = {
    "postgresql": "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
    "mysql": "SELECT variable_value <> '' FROM information_schema.session_status WHERE variable_name = 'Ssl_cipher'",
}
ACCOUNTS = ("certified", "secretive", "plain")
"""Who must come with a certificate, who encrypted, and who (on PostgreSQL) must not be encrypted."""


LINES = (
    "hostssl all certified 127.0.0.1/32 scram-sha-256 clientcert=verify-ca",
    "hostssl all secretive 127.0.0.1/32 scram-sha-256",
    "hostnossl all plain 127.0.0.1/32 scram-sha-256",
    f"host all {USER} 127.0.0.1/32 scram-sha-256",
)
"""How PostgreSQL is told so."""


@dataclass(frozen=True)
class House:
    """A server with TLS, an empty database on it, and what its clients need."""

    server: Server
    target: Target
    authority: Authority
    other: Authority
    """One that nobody here trusts."""
    ours: Identity
    """The server's usual certificate."""

    def insisting(self, **changed: Any) -> Target:
        return replace(self.target, **({"tls": "verify-full", "tls_ca": str(self.authority.path)} | changed))

    def as_(self, user: str, **changed: Any) -> Target:
        return replace(self.insisting(), user=user, **changed)

    def showing(self, identity: Identity, **changed: Any) -> Target:
        shown = {"tls_cert": str(identity.certificate), "tls_key": str(identity.key)}
        return self.as_("certified", **shown, **changed)


@pytest.fixture(scope="module")
def houses() -> Iterator[Callable[[str], House]]:
    """One server of each kind, made when it is first asked for."""
    made: dict[str, House] = {}
    folder = Path(tempfile.mkdtemp(prefix="asyncexp-certificates-", dir="/tmp"))  # open to any user
    authority, other = Authority(folder), Authority(folder, "stranger")

    def house(provider: str) -> House:
        if provider not in made:
            server = {"postgresql": PostgresServer, "mysql": MariadbServer}[provider]()
            made[provider] = House(server, server.target("-"), authority, other, authority.issue())
            server.speak_tls(made[provider].ours, authority)
            _open_accounts(server)
        return made[provider]

    yield house
    for each in made.values():
        each.server.remove()
    shutil.rmtree(folder)


def _open_accounts(server: Server) -> None:
    if isinstance(server, PostgresServer):
        for name in ACCOUNTS:
            server.sql(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        server.let_in(*LINES)
        return
    for name, terms in zip(ACCOUNTS, (" REQUIRE X509", " REQUIRE SSL", ""), strict=True):
        server.sql(f"CREATE USER {name} IDENTIFIED BY '{PASSWORD}'{terms}")
        server.sql(f"GRANT ALL ON *.* TO {name}{terms}")


@pytest.fixture
def house(houses: Callable[[str], House], provider: str) -> Iterator[House]:
    known = houses(provider)
    target = known.server.fresh()
    yield replace(known, target=target)
    left = known.server.sessions(target.database)
    known.server.drop(target.database)
    assert not left, f"sessions left: {left}"


@asynccontextmanager
async def opened(target: Target) -> AsyncIterator[Database]:
    database = connect(target)
    try:
        yield database
    finally:
        await database.close()


async def is_secret(target: Target) -> bool:
    """Whether the server says that the connection is encrypted."""
    async with opened(target) as database:
        [(secret,)] = await database.fetch(SECRET[target.provider])
        return bool(secret)


async def refusal(target: Target) -> str:
    """What opening says: at once, for it is nothing to wait for; where it was; and nothing of the password."""
    database = connect(target)
    try:
        with pytest.raises(DatabaseConnectionError) as caught:
            await database.open()
    finally:
        await database.close()
    assert not isinstance(caught.value, Outage), caught.value
    message = str(caught.value)
    assert f"{target.host}:{target.port}" in message
    assert PASSWORD not in message
    return message


# ------------------------------------------------------------------------------ what is encrypted


async def test_the_server_says_what_is_encrypted(house: House) -> None:
    assert not await is_secret(replace(house.target, tls="disable"))
    assert await is_secret(house.target)
    assert await is_secret(house.insisting())


async def test_an_experimenter_says_it_too(house: House, tmp_path: Path) -> None:
    async with experimenter(tmp_path, house.target) as secret:
        assert ((await secret.server()).tls or "").startswith("TLSv1.")
    async with experimenter(tmp_path, replace(house.target, tls="disable")) as plain:
        assert (await plain.server()).tls is None


async def test_prefer_is_plain_where_the_server_cannot(target: Target) -> None:
    assert not await is_secret(target)


async def test_verify_full_says_nothing_to_a_server_that_cannot(target: Target) -> None:
    async with Proxy(target) as proxy:
        proxy.heard = bytearray()
        message = await refusal(replace(proxy.target, tls="verify-full"))
        assert bytes(proxy.heard) == (SSL_REQUEST if target.provider == "postgresql" else b"")
    assert "offers no TLS, but `tls: verify-full` asks for it" in message
    assert "Turn TLS on" in message


async def test_a_unix_socket_is_never_encrypted(house: House) -> None:
    folder = house.server.folder
    here = str(folder) if house.target.provider == "postgresql" else str(folder / "socket")
    if isinstance(house.server, PostgresServer):
        house.server.let_in(*LINES, f"local all {USER} scram-sha-256")
    for tls in ("prefer", "verify-full"):
        assert not await is_secret(replace(house.target, host=here, tls=tls))


async def test_prefer_takes_any_certificate(house: House) -> None:
    for wrong in (house.other.issue(), house.authority.issue("db.lab"), house.authority.issue(to_days=-0.5)):
        with wearing(house, wrong):
            assert await is_secret(house.target)


# ------------------------------------------------------------------------- the server's certificate


class wearing:
    """The server with another certificate than usual."""

    def __init__(self, house: House, identity: Identity) -> None:
        self._house, self._identity = house, identity

    def __enter__(self) -> None:
        self._house.server.speak_tls(self._identity, self._house.authority)

    def __exit__(self, *_: object) -> None:
        self._house.server.speak_tls(self._house.ours, self._house.authority)


@pytest.mark.parametrize(
    ("issued", "said"),
    [
        ({"stranger": True}, "signed by nobody whom tls_ca .*authority.pem trusts .*set `tls_ca`"),
        ({"name": "db.lab"}, "for another name .*not valid for '127.0.0.1'.*set `host` .*to one that it is for"),
        ({"name": "127.0.0.2"}, "for another name .*not valid for '127.0.0.1'"),
        ({"to_days": -0.5}, "over its time .*expired.*must be renewed there"),
        ({"from_days": 0.5}, "before its time .*not yet valid.*is the clock of this machine right"),
    ],
    ids=["authority", "name", "address", "expired", "not-yet"],
)
async def test_a_wrong_certificate(house: House, issued: dict[str, Any], said: str) -> None:
    with wearing(house, house.other.issue() if "stranger" in issued else house.authority.issue(**issued)):
        async with Proxy(house.insisting()) as proxy:
            proxy.heard = bytearray()
            message = await refusal(proxy.target)
            assert USER.encode() not in proxy.heard
            assert proxy.heard.startswith(SSL_REQUEST) or house.target.provider == "mysql"
    assert re_search(said, message), message


async def test_without_tls_ca_the_systems_authorities_count(house: House) -> None:
    message = await refusal(house.insisting(tls_ca=None))
    assert re_search("signed by nobody whom this system trusts .*set `tls_ca` to the PEM file", message), message


async def test_at_the_end_of_a_tunnel_the_servers_own_name_counts(house: House, tmp_path: Path) -> None:
    with ssh_server() as ssh, wearing(house, house.authority.issue("db.lab")):
        async with experimenter(tmp_path, house.insisting(), ssh=ssh.connection(server="db.lab")) as through:
            database = through._connecting()()
            try:
                assert await database.fetch(SECRET[house.target.provider]) == [(True,)]
            finally:
                await database.close()
        through = experimenter(tmp_path, house.insisting(), ssh=ssh.connection(server="db.lub"))
        with pytest.raises(DatabaseConnectionError, match=r"not valid for 'db.lub'.*`Ssh.server`"):
            await through.counts()
        await through.aclose()


# --------------------------------------------------------------------------- the client's certificate


async def test_a_certificate_of_ours(house: House) -> None:
    ours = house.authority.issue("certified")
    assert await is_secret(house.showing(ours))
    assert await is_secret(house.showing(ours, tls="prefer"))
    both = ours.certificate.with_suffix(".both")
    both.touch(0o600)
    both.write_bytes(ours.certificate.read_bytes() + ours.key.read_bytes())
    assert await is_secret(replace(house.showing(ours), tls_cert=str(both), tls_key=None))


@pytest.mark.parametrize("tls", ["prefer", "verify-full"])
async def test_a_certificate_that_is_wanted_and_missing(house: House, tls: Any) -> None:
    message = await refusal(house.as_("certified", tls=tls))
    assert re_search("not let in.*`tls_cert`", message), message


@pytest.mark.parametrize("wrong", ["stranger", "expired"])
async def test_a_certificate_of_ours_that_is_wrong(house: House, wrong: str) -> None:
    authority = house.other if wrong == "stranger" else house.authority
    identity = authority.issue("certified", to_days=-0.5 if wrong == "expired" else 1)
    for _ in range(10):  # the server's word races with the end of the connection
        message = await refusal(house.showing(identity))
        assert re_search(f"the server refused tls_cert {identity.certificate} .*whose authority it trusts", message)


async def test_an_account_that_must_be_encrypted(house: House) -> None:
    for tls in ("prefer", "verify-full"):
        assert await is_secret(house.as_("secretive", tls=tls))
    message = await refusal(house.as_("secretive", tls="disable"))
    assert re_search("not let in.*`tls`", message), message


async def test_an_account_that_must_not_be_encrypted(house: House) -> None:
    """Only PostgreSQL has such."""
    if house.target.provider == "mysql":
        return
    assert not await is_secret(house.as_("plain", tls="prefer"))
    assert "not let in" in await refusal(house.as_("plain"))


@pytest.mark.parametrize("user", [USER, "secretive", "certified", "plain"])
@pytest.mark.parametrize("tls", ["prefer", "verify-full"])
async def test_a_wrong_password_is_told_as_such(house: House, user: str, tls: Any) -> None:
    if user == "plain" and (tls == "verify-full" or house.target.provider == "mysql"):
        return
    target = replace(house.showing(house.authority.issue("x"), tls=tls), user=user, password="another")
    message = await refusal(target)
    assert re_search("password authentication failed|Access denied", message), message


# -------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("tls", ["prefer", "verify-full"])
async def test_files_that_cannot_be_used(house: House, tls: Any, tmp_path: Path) -> None:
    ours, another = house.authority.issue("certified"), house.authority.issue("certified")
    locked = house.authority.issue("certified", passphrase="of the tests")
    rubbish = tmp_path / "rub bish"
    rubbish.touch(0o600)
    rubbish.write_text("-----BEGIN CERTIFICATE-----\nrubbish\n-----END PRIVATE KEY-----")
    target = house.showing(ours, tls=tls)
    for changed, said in (
        ({"tls_cert": "/not/there.pem"}, r"tls_cert /not/there.pem cannot be read \(No such file or directory\)"),
        ({"tls_key": "/not/there.pem"}, r"tls_key /not/there.pem cannot be read \(No such file"),
        ({"tls_key": str(tmp_path)}, rf"tls_key {tmp_path} cannot be read \(Is a directory"),
        ({"tls_cert": str(ours.key)}, f"tls_cert {ours.key} holds no certificate"),
        ({"tls_key": str(ours.certificate)}, f"tls_key {ours.certificate} holds no private key"),
        ({"tls_key": None}, f"tls_cert {ours.certificate} holds no private key.*in `tls_key`"),
        ({"tls_key": str(another.key)}, f"tls_key {another.key} is not the key of tls_cert {ours.certificate}"),
        ({"tls_key": str(rubbish)}, f"tls_key {rubbish} cannot be used"),
        (
            {"tls_cert": str(locked.certificate), "tls_key": str(locked.key)},
            f"tls_key {locked.key} is locked by a passphrase.*openssl pkey -in {locked.key} -out {locked.key}.open",
        ),
    ):
        message = await refusal(replace(target, **changed))
        assert re_search(said, message), message


async def test_authorities_that_cannot_be_used(house: House, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path, said in (
        ("/not/there.pem", r"tls_ca /not/there.pem cannot be read \(No such file or directory\); give the path"),
        (str(empty), f"tls_ca {empty} holds no certificate in PEM form"),
        (str(house.ours.key), f"tls_ca {house.ours.key} holds no certificate in PEM form"),
    ):
        message = await refusal(house.insisting(tls_ca=path))
        assert re_search(said, message), message


@pytest.mark.parametrize("bits", ["644", "660", "620", "601"])
async def test_a_key_that_is_open_to_others(house: House, bits: str) -> None:
    ours = house.authority.issue("certified")
    ours.key.chmod(int(bits, 8))
    message = await refusal(house.showing(ours))
    assert re_search(rf"tls_key {ours.key} is open to others \(-rw.*\); run: chmod 600 {ours.key}", message), message


async def test_a_key_of_root_may_be_read_by_its_group(house: House) -> None:
    if os.geteuid() != 0:
        return
    ours = house.authority.issue("certified")
    ours.key.chmod(0o640)
    assert await is_secret(house.showing(ours))
    os.chown(ours.key, 65534, -1)
    assert "is open to others" in await refusal(house.showing(ours))


async def test_a_file_that_this_user_may_not_read(house: House) -> None:
    ours = house.authority.issue("certified")
    ours.key.chmod(0o000)
    before = os.geteuid()
    if before == 0:
        house.authority.path.parent.chmod(0o755)
        os.seteuid(65534)
    try:
        message = await refusal(house.showing(ours))
    finally:
        os.seteuid(before)
    assert re_search(rf"tls_key {ours.key} cannot be read \(Permission denied\)", message), message


# -------------------------------------------------------------------------------------- a whole run


@pytest.mark.parametrize("pool", ["task", "process"])
async def test_every_connection_of_a_run_is_encrypted(house: House, tmp_path: Path, shared: Shared, pool: Any) -> None:
    """Main, service thread, attached worker: the server lists them, and lets this account in by no other way."""
    joined, go_on = shared.seen(), shared.gate()
    async with experimenter(tmp_path, house.as_("secretive"), keyfields=numbers(3), n_jobs=3) as study:
        await study.fill_table_from_config()
        run = asyncio.create_task(study.execute(Attaches(study, joined, go_on), pool=pool))
        await eventually(lambda: len(joined) == 3)
        assert sessions(house) == {True: 5}
        go_on.open()
        assert (await run).done == 3
        assert set((await study.get_logtable("steps"))["note"]) == {"attached"}


def sessions(house: House) -> dict[bool, int]:
    """How many sessions of this account there are, encrypted or not. MariaDB lets in no plain one of it."""
    name = house.target.database
    if house.target.provider == "mysql":
        return {True: len(house.server.sessions(name))}
    rows = house.server.sql(
        f"SELECT ssl, COUNT(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE datname = '{name}' GROUP BY ssl"
    )
    return dict(rows)


async def test_a_wrong_certificate_is_not_waited_for(house: House, tmp_path: Path) -> None:
    """`database_wait` would be an hour."""
    with wearing(house, house.authority.issue(to_days=-0.5)):
        study = experimenter(tmp_path, house.insisting(), execution={"database_wait": 3600})
        for call in (study.execute(nothing), study.fill_table_from_config(), study.attach(silent, 1)):
            with pytest.raises(DatabaseConnectionError, match="over its time"):
                await call
        await study.aclose()


async def test_a_run_outlives_a_restart_of_an_encrypted_server(
    house: House, tmp_path: Path, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    started, go_on = shared.seen(), shared.gate()
    settings = {"heartbeat_interval": 0.2, "lease": 60}
    async with experimenter(tmp_path, house.as_("secretive"), keyfields=numbers(8), execution=settings) as study:
        await study.fill_table_from_config()
        run = asyncio.create_task(study.execute(Gated(started, go_on)))
        await eventually(lambda: len(started) == 4)
        house.server.stop()
        go_on.open()
        await eventually(lambda: "The database is away" in caplog.text)
        house.server.start()
        assert (await run).done == 8
        assert set(sessions(house)) == {True}


async def test_a_certificate_that_goes_wrong_in_mid_run_ends_the_run(
    house: House, tmp_path: Path, shared: Shared
) -> None:
    started, go_on = shared.seen(), shared.gate()
    settings = {"heartbeat_interval": 0.2, "lease": 60, "grace": 0.2}
    study = experimenter(tmp_path, house.insisting(), keyfields=numbers(8), execution=settings)
    await study.fill_table_from_config()
    run = asyncio.create_task(study.execute(Gated(started, go_on)))
    await eventually(lambda: len(started) == 4)
    with wearing(house, house.authority.issue(to_days=-0.5)):
        house.server.restart()
        go_on.open()
        with pytest.raises(DatabaseConnectionError, match="over its time"):
            await run
        await study.aclose()
    assert await statuses(house.insisting()) == {"created": 4, "running": 4}  # which others take over in time


async def test_a_handshake_that_is_cut_is_an_outage(house: House) -> None:
    async with cutting(house.insisting()) as target, opened(target) as database:
        with pytest.raises(Outage):
            await database.open()


async def silent(attached: ResultProcessor) -> None: ...


@asynccontextmanager
async def cutting(target: Target) -> AsyncIterator[Target]:
    """A server that agrees to encrypt and ends the connection, as one does that is being stopped."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if target.provider == "mysql":
            far_reader, far_writer = await asyncio.open_connection(target.host, target.port)
            writer.write(await far_reader.read(1000))
            far_writer.transport.abort()
        else:
            await reader.readexactly(len(SSL_REQUEST))
            writer.write(b"S")
        await reader.readuntil(b"\x16\x03")  # the client's hello
        writer.transport.abort()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield replace(target, port=server.sockets[0].getsockname()[1])


def re_search(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.DOTALL) is not None
