"""The way into the database: who wins over whom, and that no secret is ever told."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import yaml

from asyncexp import config
from asyncexp.config.models import Configuration
from asyncexp.errors import ConfigError, InvalidConfigError, NoConfigFileError

CANARY = "hunter2-canary"
Configure = Callable[..., Configuration]
Write = Callable[..., Path]


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    monkeypatch.chdir(tmp_path)

    def configure(provider: str = "postgresql", **database: Any) -> Configuration:
        table = {"name": "runs", "keyfields": {"seed": "INT"}}
        whole = {"provider": provider, "database": "lab", "table": table, **database}
        (tmp_path / "study.yml").write_text(yaml.safe_dump({"PY_EXPERIMENTER": {"Database": whole}}))
        return config.load("study.yml", environment={})

    return configure


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "credentials.yml", mode: int = 0o600) -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


WHOLE = f"""\
CREDENTIALS:
  Database:
    user: me
    password: {CANARY}
  Connection:
    Standard:
      server: db.lab
      port: 5433
    Ssh:
      server: inner.lab
      address: login.lab
      port: 2222
      user: sshme
      key_file: ~/.ssh/lab
      ssh_private_key_password: {CANARY}
      known_hosts: hosts
      remote_address: 10.0.0.5
      local_port: 7000
"""


def test_the_credentials_file(configure: Configure, write: Write) -> None:
    found = config.target(configure(), write(WHOLE), {})
    assert (found.provider, found.database, found.host, found.port) == ("postgresql", "lab", "db.lab", 5433)
    assert (found.user, found.password, found.tls) == ("me", CANARY, "prefer")
    assert CANARY not in repr(found)


def test_the_older_cfg(configure: Configure, write: Write) -> None:
    path = write(f"[CREDENTIALS]\nhost = db.lab\nPort: 3307\nuser=me\npassword = {CANARY}\n", "credentials.cfg")
    found = config.target(configure("mysql"), path, {})
    assert (found.host, found.port, found.user, found.password) == ("db.lab", 3307, "me", CANARY)


def test_the_case_of_sections_does_not_count(configure: Configure, write: Write) -> None:
    lower = WHOLE.replace("CREDENTIALS", "credentials").replace("Database", "database").replace("Standard", "STANDARD")
    assert config.target(configure(), write(lower), {}) == config.target(configure(), write(WHOLE), {})


def test_the_default_place(configure: Configure, write: Write, tmp_path: Path) -> None:
    before = configure()
    (tmp_path / "config").mkdir()
    write(WHOLE, "config/database_credentials.yml")
    assert config.target(before, environment={}).user == "me"
    found = configure()
    assert found.credentials == tmp_path / "config/database_credentials.yml"
    assert config.target(found, environment={}).user == "me"


def test_sqlite_needs_no_credentials(configure: Configure, write: Write) -> None:
    found = configure("sqlite")
    assert config.target(found, "nope.yml", {}).password is None
    assert config.ssh(found, "nope.yml", {}) is None


@pytest.mark.parametrize(("provider", "own"), [("postgresql", "PGUSER"), ("mysql", "~/.my.cnf")])
def test_without_any_the_message_lists_the_ways(configure: Configure, tmp_path: Path, provider: str, own: str) -> None:
    with pytest.raises(NoConfigFileError) as caught:
        config.target(configure(provider), environment={"HOME": str(tmp_path)})
    for way in (
        f"config/database_credentials.cfg in the working directory {Path.cwd()}",
        "ASYNCEXP_DATABASE__USER",
        "DATABASE_URL",
        own,
    ):
        assert way in str(caught.value)


def test_a_file_that_was_named_must_exist(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(NoConfigFileError, match=r"nope\.yml"):
        config.target(configure(), "nope.yml", {"ASYNCEXP_DATABASE__USER": "me"})


# ------------------------------------------------------------------------------------- who wins

ALL: dict[str, str] = {
    "ASYNCEXP_DATABASE__USER": "env",
    "ASYNCEXP_DATABASE__PASSWORD": "envpw",
    "ASYNCEXP_DATABASE__HOST": "env.host",
    "ASYNCEXP_DATABASE__PORT": "1111",
}
PG = {"PGUSER": "pg", "PGPASSWORD": "pgpw", "PGHOST": "pg.host", "PGPORT": "4444"}


def way(found: Any) -> tuple[Any, ...]:
    return found.host, found.port, found.user, found.password


def test_who_wins_field_by_field(configure: Configure, write: Write, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    path = write(WHOLE)
    both = configure(host="conf.host", port=2222)
    assert way(config.target(both, path, {**ALL, **PG, **home})) == ("env.host", 1111, "env", "envpw")
    assert way(config.target(both, path, {**PG, **home})) == ("conf.host", 2222, "me", CANARY)
    assert way(config.target(configure(), path, {**PG, **home})) == ("db.lab", 5433, "me", CANARY)
    only_user = write("CREDENTIALS: {Database: {user: me}}", "user.yml")
    assert way(config.target(configure(), only_user, {**PG, **home})) == ("pg.host", 4444, "me", "pgpw")
    empty = {**dict.fromkeys(ALL, ""), **home}
    assert way(config.target(configure(), path, empty)) == ("db.lab", 5433, "me", CANARY)


def test_database_url(configure: Configure, tmp_path: Path) -> None:
    url = "postgresql+asyncpg://m%40e:p%3Aw@[::1]:6000/other?sslmode=require"
    environment = {"DATABASE_URL": url, "HOME": str(tmp_path)}
    found = config.target(configure(), environment=environment)
    assert (way(found), found.database, found.tls) == (("::1", 6000, "m@e", "p:w"), "lab", "verify-full")
    assert way(config.target(configure(), environment={**environment, **PG})) == ("::1", 6000, "m@e", "p:w")


@pytest.mark.parametrize(
    "url", ["postgresql://me:pw@else.where/x", "postgresql://you:pw@db.lab:5433/x", "mysql://me:pw@db.lab"]
)
def test_the_password_of_another_server_or_user_is_not_used(
    configure: Configure, write: Write, tmp_path: Path, url: str
) -> None:
    path = write(WHOLE.replace(f"    password: {CANARY}\n", "", 1))
    found = config.target(configure(), path, {"DATABASE_URL": url, "HOME": str(tmp_path)})
    assert way(found) == ("db.lab", 5433, "me", None)


@pytest.mark.parametrize(
    ("line", "password"),
    [
        (r"db.lab:5433:lab:me:p\:w\\x", r"p:w\x"),
        ("*:*:*:me:any", "any"),
        ("# db.lab:5433:lab:me:x\n*:*:*:*:second", "second"),
        ("db.lab:5432:lab:me:x", None),
        ("db.lab:5433:lab:you:x", None),
        ("nonsense", None),
    ],
)
def test_pgpass(configure: Configure, write: Write, tmp_path: Path, line: str, password: str | None) -> None:
    write(line + "\n", ".pgpass")
    path = write(WHOLE.replace(f"    password: {CANARY}\n", "", 1))
    assert config.target(configure(), path, {"HOME": str(tmp_path)}).password == password


def test_pgpassfile(configure: Configure, write: Write, tmp_path: Path) -> None:
    other = write("*:*:*:*:elsewhere", "other")
    found = config.target(configure(), environment={"PGUSER": "me", "PGPASSFILE": str(other), "HOME": str(tmp_path)})
    assert way(found) == (None, None, "me", "elsewhere")


def test_my_cnf(configure: Configure, write: Write, tmp_path: Path) -> None:
    write(
        '[mysql]\nuser = no\n[client]\nuser=me # a comment\npassword = "p w"\nhost=my.host\nport=3310\n!include x\n',
        ".my.cnf",
    )
    home = {"HOME": str(tmp_path)}
    assert way(config.target(configure("mysql"), environment=home)) == ("my.host", 3310, "me", "p w")
    other = {**home, "ASYNCEXP_DATABASE__USER": "you"}
    assert way(config.target(configure("mysql"), environment=other)) == (None, None, "you", None)


def test_tls_of_the_clients_yields_to_the_configuration(configure: Configure, tmp_path: Path) -> None:
    environment = {"PGUSER": "me", "PGSSLMODE": "disable", "PGSSLROOTCERT": "/ca.pem", "HOME": str(tmp_path)}
    found = config.target(configure(), environment=environment)
    assert (found.tls, found.tls_ca) == ("disable", "/ca.pem")
    assert config.target(configure(tls="prefer"), environment=environment).tls == "prefer"
    assert config.target(configure(), environment={**environment, "PGSSLROOTCERT": "system"}).tls_ca is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ASYNCEXP_DATABASE__PORT": "x"}, "environment variable ASYNCEXP_DATABASE__PORT: must be a port"),
        ({"PGPORT": "99999"}, "environment variable PGPORT: must be a port"),
        ({"PGUSER": "me", "PGSSLMODE": "maybe"}, "unknown sslmode 'maybe'"),
        ({"DATABASE_URL": f"postgresql://me:{CANARY}@host:port/x"}, "environment variable DATABASE_URL: is no URL"),
        ({"ASYNCEXP_DATABASE__PASWORD": CANARY}, "did you mean 'ASYNCEXP_DATABASE__PASSWORD'?"),
    ],
)
def test_errors_of_the_environment(
    configure: Configure, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        config.target(configure(), environment={**environment, "HOME": str(tmp_path)})
    assert said in str(caught.value)
    assert_untold(caught.value)


# ------------------------------------------------------------------------------------- the tunnel


def test_ssh(configure: Configure, write: Write, tmp_path: Path) -> None:
    found = configure(use_ssh_tunnel=True)
    way_in = config.ssh(found, write(WHOLE), {})
    assert way_in is not None
    assert (way_in.server, way_in.address, way_in.port, way_in.user) == ("inner.lab", "login.lab", 2222, "sshme")
    assert (way_in.key_file, way_in.known_hosts) == (str(Path.home() / ".ssh/lab"), str(tmp_path / "hosts"))
    assert (way_in.remote_address, way_in.remote_port) == ("10.0.0.5", 5432)
    assert (way_in.local_address, way_in.local_port) == ("127.0.0.1", 7000)
    assert way_in.passphrase is not None
    assert way_in.passphrase.get_secret_value() == CANARY
    assert CANARY not in repr(way_in)
    target = config.target(found, write(WHOLE), {})
    assert (target.host, target.port, target.user) == ("inner.lab", None, "me")


def test_ssh_defaults(configure: Configure, write: Write) -> None:
    path = write("CREDENTIALS: {Database: {user: me}, Connection: {Ssh: {address: login, passphrase: x}}}")
    way_in = config.ssh(configure("mysql", use_ssh=True), path, {})
    assert way_in is not None
    assert way_in.model_dump(exclude={"passphrase"}) == {
        "server": "127.0.0.1",
        "address": "login",
        "port": None,
        "user": None,
        "key_file": None,
        "known_hosts": None,
        "remote_address": "127.0.0.1",
        "remote_port": 3306,
        "local_address": "127.0.0.1",
        "local_port": None,
    }
    assert config.ssh(configure("mysql"), path, {}) is None


def test_a_tunnel_without_its_section(configure: Configure, write: Write) -> None:
    path = write("CREDENTIALS: {Database: {user: me}}")
    for ask in (config.ssh, config.target):
        with pytest.raises(InvalidConfigError, match=r"Connection\.Ssh is missing"):
            ask(configure(use_ssh_tunnel=True), path, {})


# ---------------------------------------------------------------------------------------- secrets


def assert_untold(error: BaseException) -> None:
    """The secret is neither in the error nor in whatever led to it."""
    told = "".join(traceback.format_exception(error)) + repr(error)
    seen: BaseException | None = error
    while seen is not None:
        told += repr(seen) + str(seen) + repr(seen.args)
        seen = seen.__cause__ or seen.__context__
    assert CANARY not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE.replace(f"password: {CANARY}", f"password: *{CANARY}", 1), ":4:15: is not valid YAML from here on"),
        (WHOLE.replace(f"password: {CANARY}", f"password: '{CANARY}", 1), "is not valid YAML from here on"),
        (WHOLE.replace(f"password: {CANARY}", f"password: !{CANARY} x", 1), ":4:15: is not valid YAML"),
        (WHOLE.replace(f"password: {CANARY}", f'password: "{CANARY}\\q"', 1), ":4:"),
        (WHOLE.replace(f"password: {CANARY}", f"password: {CANARY}${{", 1), ":4:15: the interpolation"),
        (WHOLE.replace(f"password: {CANARY}", f"password: {CANARY}${{x}}", 1), ":4:15: the interpolation"),
        (WHOLE.replace(f"password: {CANARY}", f"password: !!int {CANARY}", 1), ":4:15: is not a valid int"),
        (WHOLE.replace(f"password: {CANARY}", f"password: [{CANARY}]", 1), ":4:5: password must be text"),
        (WHOLE.replace(f"password: {CANARY}", f"password: {{{CANARY}: 1}}", 1), ":4:5: password must be text"),
        (
            WHOLE.replace(f"password: {CANARY}", f"pasword: {CANARY}", 1),
            ":4:5: unknown key in Database; did you mean 'password'?",
        ),
        (WHOLE.replace("user: me", f"user: {CANARY}\n    user: {CANARY}"), ":4:5: the key stands here a second"),
        (WHOLE.replace("user: me", "user: 7"), ":3:11: user must be text; write it in quotes"),
        (WHOLE.replace("port: 5433", f"port: {CANARY}"), ":8:13: port must be a whole number"),
        (
            WHOLE.replace("      known_hosts", f"      passphrase: {CANARY}\n      known_hosts"),
            ":16:19: passphrase and ssh_private",
        ),
        (WHOLE.replace("CREDENTIALS", "CREDENTIAL"), ":1:1: unknown key; did you mean 'CREDENTIALS'?"),
        (f"{CANARY}", ":1:1: the file has no sections"),
        (f"[CREDENTIALS]\npassword {CANARY}\n", ":2:1: is neither"),
        (f"[CREDENTIALS]\npassword = {CANARY}%\n", ":2:1: holds a % that stands for nothing"),
        (f"[CREDENTIALS]\npassword = {CANARY}\npassword = {CANARY}\n", ":3:1: the key stands"),
        (f"password = {CANARY}\n", ":1:1: there must be a [SECTION]"),
        (f"[CREDENTIALS]\npasswort = {CANARY}\n", ":2:1: unknown key; did you mean 'password'?"),
        (f"[CREDENTIALS]\nport = {CANARY}\n", ":2:8: port must be a whole number"),
    ],
)
def test_what_is_wrong_with_credentials_is_told_without_them(
    configure: Configure, write: Write, text: str, said: str
) -> None:
    assert CANARY in text or "7" in text
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        config.target(configure(), path, {})
    assert f"{path}{said}" in str(caught.value) or said in str(caught.value)
    assert_untold(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yml", WHOLE),
        ("c.yml", f"CREDENTIALS: {{Connection: {{Ssh: {{address: a, PassPhrase: {CANARY}}}}}}}"),
        ("my c.cfg", f"[CREDENTIALS]\nuser = me\npassword = {CANARY}\n"),
    ],
)
def test_a_secret_that_others_can_read_is_refused(
    configure: Configure, write: Write, name: str, text: str, mode: int
) -> None:
    path = write(text, name, mode)
    with pytest.raises(InvalidConfigError) as caught:
        config.target(configure(), path, {})
    command = f"chmod 600 '{path}'" if " " in name else f"chmod 600 {path}"
    assert command in str(caught.value)
    assert_untold(caught.value)


def test_a_file_without_a_secret_may_be_read_by_all(
    configure: Configure, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_PASSWORD", CANARY)
    text = "CREDENTIALS: {Database: {user: me, password: '${oc.env:LAB_PASSWORD}'}}"
    assert config.target(configure(), write(text, mode=0o644), {}).password == CANARY
    text = "CREDENTIALS: {Database: {user: me, password: '${oc.env:LAB_PASSWORD,x}'}}"
    with pytest.raises(InvalidConfigError, match="chmod 600"):
        config.target(configure(), write(text, mode=0o644), {})


@pytest.mark.parametrize(
    ("provider", "name", "text"),
    [("postgresql", ".pgpass", f"*:*:*:*:{CANARY}"), ("mysql", ".my.cnf", f"[client]\npassword={CANARY}")],
)
def test_the_clients_files_are_guarded_too(
    configure: Configure, write: Write, tmp_path: Path, provider: str, name: str, text: str
) -> None:
    write(text, name, 0o644)
    environment = {"HOME": str(tmp_path), "ASYNCEXP_DATABASE__USER": "me"}
    with pytest.raises(InvalidConfigError, match="chmod 600") as caught:
        config.target(configure(provider), environment=environment)
    assert_untold(caught.value)
    environment["ASYNCEXP_DATABASE__PASSWORD"] = "given"
    assert config.target(configure(provider), environment=environment).password == "given"


def test_the_configuration_holds_no_secret(configure: Configure, write: Write, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    write(WHOLE, "config/database_credentials.yml")
    found = configure()
    assert config.target(found, environment={}).password == CANARY
    assert CANARY.encode() not in pickle.dumps(found)
    assert CANARY not in repr(found)


def test_a_target_has_no_pickle_of_its_password(configure: Configure, write: Write) -> None:
    found = config.target(configure(), write(WHOLE), {})
    for copied in (pickle.dumps, cloudpickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="password"):
            copied(found)
    without = replace(found, password=None)
    assert pickle.loads(pickle.dumps(without)) == without  # noqa: S301
