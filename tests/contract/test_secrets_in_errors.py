"""No secret is in anything that goes wrong: whatever is done to show an error, with the locals of its frames too."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import logging
import pickle
import shlex
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from asyncexp import Experimenter
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseConnectionError, PyExperimenterError
from tests.contract.canary import Canary, by_rich, told, user
from tests.servers import HOST, Server, free_port
from tests.sshd import make_key
from tests.studies import write_configuration

SERVERS = ("postgresql", "mysql")


@dataclass
class Place:
    """A study whose credentials are wherever a test puts them."""

    folder: Path
    target: Target
    canary: Canary
    set: Callable[[str, str], None]
    """Sets an environment variable."""
    database: dict[str, Any]
    """What the configuration says beside provider and name."""
    credentials: Path | None = None

    @property
    def url(self) -> str:
        name = {"mysql": "mysql", "postgresql": "postgresql"}[self.target.provider]
        return f"{name}://{self.target.user}:{quote(self.canary.password, safe='')}@{HOST}:{self.target.port}/x"

    def write(self, text: str, name: str = "credentials.yml", mode: int = 0o600) -> None:
        """A credentials file."""
        self.credentials = self.folder / name
        self.credentials.touch(mode=0o600)
        self.credentials.write_text(text)
        self.credentials.chmod(mode)

    def write_home(self, name: str, text: str, mode: int = 0o600) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        path.chmod(mode)

    def sections(self, **server: Any) -> str:
        """The YAML of the right credentials, with the canary as the password."""
        standard = {"server": self.target.host, "port": self.target.port} | server
        login = {"user": self.target.user, "password": self.canary.password}
        whole = {"CREDENTIALS": {"Database": login, "Connection": {"Standard": standard}}}
        return yaml.safe_dump(whole, allow_unicode=True)

    def log_in(self, **server: Any) -> None:
        """Writes a credentials file as it should be; only that the password is wrong."""
        self.write(self.sections(**server))


@pytest.fixture
def place(provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSSLMODE", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    nowhere = Target(provider, "none", HOST, free_port(), "me")
    return Place(tmp_path, nowhere, Canary(), monkeypatch.setenv, {})


async def failure(place: Place) -> BaseException:
    """The error that the study ends with. The frame of this function knows no secret."""
    path = write_configuration(place.folder, place.target)
    content = yaml.safe_load(path.read_text())
    content["PY_EXPERIMENTER"]["Database"] |= place.database
    path.write_text(yaml.safe_dump(content))
    return await _failure(path, place.credentials)


async def _failure(path: Path, credentials: Path | None) -> BaseException:
    settings = {"logger_name": "asyncexp-tests", "log_file": None}
    try:
        async with Experimenter(path, credentials, **settings) as experimenter:  # type: ignore[arg-type]
            await experimenter.fill_table_from_config()
    except PyExperimenterError as error:
        return error
    raise AssertionError("it was let in")


# ------------------------------------------------------------------------------------ what is wrong


def wrong_in_the_file(place: Place) -> None:
    place.log_in()


def wrong_in_asyncexp_s_variable(place: Place) -> None:
    place.log_in()
    place.set("ASYNCEXP_DATABASE__PASSWORD", place.canary.password + "x")


def wrong_in_the_url(place: Place) -> None:
    place.set("DATABASE_URL", place.url)


def wrong_in_the_client_s_own(place: Place) -> None:
    place.set("ASYNCEXP_DATABASE__HOST", HOST)
    place.set("ASYNCEXP_DATABASE__PORT", str(place.target.port))
    place.set("ASYNCEXP_DATABASE__USER", str(place.target.user))
    escaped = place.canary.password.replace("\\", "\\\\").replace(":", "\\:")
    place.write_home(".pgpass", f"*:*:*:*:{escaped}\n")
    place.write_home(".my.cnf", f"[client]\npassword='{place.canary.password}'\n")


def wrong_in_pgpassword(place: Place) -> None:
    place.set("ASYNCEXP_DATABASE__USER", str(place.target.user))
    place.set("ASYNCEXP_DATABASE__PORT", str(place.target.port))
    place.set("PGPASSWORD", place.canary.password)


def nobody_listens(place: Place) -> None:
    place.log_in(port=free_port())


def no_such_host(place: Place) -> None:
    place.log_in(server="nowhere.invalid")


def no_tls_there(place: Place) -> None:
    place.log_in()
    place.database["tls"] = "verify-full"


def no_tls_file(place: Place) -> None:
    place.log_in()
    place.database |= {"tls": "verify-full", "tls_ca": "missing.pem"}


def a_broken_tls_key(place: Place) -> None:
    """The key is a secret, too."""
    place.log_in()
    place.write_home("cert.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    place.write_home("key.pem", f"-----BEGIN PRIVATE KEY-----\n{place.canary.cores[0]}\n-----END PRIVATE KEY-----\n")
    place.database |= {"tls": "verify-full", "tls_cert": "cert.pem", "tls_key": "key.pem"}


def a_tls_key_that_others_can_read(place: Place) -> None:
    a_broken_tls_key(place)
    (place.folder / "key.pem").chmod(0o644)


def others_can_read_the_file(place: Place) -> None:
    place.write(place.sections(), mode=0o644)


def others_can_read_the_client_s_own(place: Place) -> None:
    wrong_in_the_client_s_own(place)
    for name in (".pgpass", ".my.cnf"):
        (place.folder / name).chmod(0o644)


def no_yaml(place: Place) -> None:
    place.write(place.sections() + f"x: [{place.canary.cores[0]}\n")


def a_key_twice(place: Place) -> None:
    place.write(place.sections() + "CREDENTIALS: {}\n")


def an_unknown_key(place: Place) -> None:
    place.write(place.sections().replace("password", "pasword"))


def a_comma_in_braces(place: Place) -> None:
    one, two = place.canary.cores
    place.write(f"CREDENTIALS:\n  Database: {{user: me, password: {one},{two}}}\n")


def a_word_in_braces_twice(place: Place) -> None:
    one, _ = place.canary.cores
    place.write(f"CREDENTIALS:\n  Database: {{user: me, password: x, {one}, {one}}}\n")


def a_password_in_braces(place: Place) -> None:
    one, _ = place.canary.cores
    place.write(f"CREDENTIALS:\n  Database: {{user: me, password: {{{one}}}}}\n")


def a_tag(place: Place) -> None:
    one, _ = place.canary.cores
    place.write(f"CREDENTIALS:\n  Database: {{user: me, password: !{one} [a]}}\n")


def a_tag_on_text(place: Place) -> None:
    one, _ = place.canary.cores
    place.write(f"CREDENTIALS:\n  Database: {{user: me, password: !{one} a}}\n")


def an_alias(place: Place) -> None:
    one, _ = place.canary.cores
    place.write(f"CREDENTIALS:\n  Database: {{user: me, password: *{one}}}\n")


def an_interpolation(place: Place) -> None:
    one, _ = place.canary.cores
    place.write(f"CREDENTIALS:\n  Database: {{user: me, password: '${{{one}'}}\n")


def an_interpolation_that_leads_nowhere(place: Place) -> None:
    one, two = place.canary.cores
    place.write(f"CREDENTIALS:\n  Database: {{user: {one}, password: '{two}${{nowhere}}'}}\n")


def no_mapping(place: Place) -> None:
    place.write(f"CREDENTIALS:\n  Database: {place.canary.cores[0]}\n")


def a_port_that_is_none(place: Place) -> None:
    place.log_in(port=place.canary.cores[0])


def a_line_that_is_no_setting(place: Place) -> None:
    place.write(f"[CREDENTIALS]\nuser = me\n{place.canary.cores[0]}\n", "credentials.cfg")


def a_key_of_ini_that_is_unknown(place: Place) -> None:
    place.write(f"[CREDENTIALS]\nuser = me\npassword = a\n{place.canary.cores[0]} = b\n", "credentials.cfg")


def a_section_of_ini_that_is_unknown(place: Place) -> None:
    place.write(f"[CREDENTIALS]\nuser = me\npassword = a\n[{place.canary.cores[0]}]\n", "credentials.cfg")


def a_key_of_ini_twice(place: Place) -> None:
    one, _ = place.canary.cores
    place.write(f"[CREDENTIALS]\nuser = me\npassword = a\n{one} = 1\n{one} = 2\n", "credentials.cfg")


def a_percent_sign_in_ini(place: Place) -> None:
    place.write(f"[CREDENTIALS]\nuser = me\npassword = {place.canary.cores[0]}%\n", "credentials.cfg")


def no_text(place: Place) -> None:
    place.write("x")
    assert place.credentials is not None
    place.credentials.write_bytes(place.sections().encode("utf-16"))


def no_user_for_the_password(place: Place) -> None:
    place.set("ASYNCEXP_DATABASE__PASSWORD", place.canary.password)
    place.set("PGPASSWORD", place.canary.password)


def no_port_in_the_environment(place: Place) -> None:
    place.set("ASYNCEXP_DATABASE__PASSWORD", place.canary.password)
    place.set("ASYNCEXP_DATABASE__PORT", "none")


def no_url(place: Place) -> None:
    place.set("DATABASE_URL", place.url.replace(f"{HOST}:", f"[{HOST}:"))


def a_url_with_a_mode_that_is_unknown(place: Place) -> None:
    place.set("DATABASE_URL", place.url + "?sslmode=maybe")


def a_url_whose_password_is_not_encoded(place: Place) -> None:
    one, two = place.canary.cores
    place.set("DATABASE_URL", f"{place.target.provider}://me:{one}?sslmode={two}@{HOST}/x")


def a_url_whose_password_begins_like_a_port(place: Place) -> None:
    one, _ = place.canary.cores
    place.canary = Canary(("4321", one))
    place.set("DATABASE_URL", f"{place.target.provider}://me:4321#{one}@{HOST}/x")


def a_url_as_the_server(place: Place) -> None:
    place.log_in(server=place.url)


def a_setting_that_is_unknown(place: Place) -> None:
    place.log_in()
    place.set("ASYNCEXP_DATABASE__PASSWORT", place.canary.password)


def a_password_in_the_configuration(place: Place) -> None:
    place.database["password"] = place.canary.password


def a_wrong_configuration(place: Place) -> None:
    """Nothing is wrong with the password, which the environment has."""
    place.set("ASYNCEXP_DATABASE__PASSWORD", place.canary.password)
    place.database["table"] = None


def a_wrong_passphrase(place: Place) -> None:
    through_ssh(place, "another")


def no_ssh_server(place: Place) -> None:
    through_ssh(place, place.canary.password)


def through_ssh(place: Place, passphrase: str) -> None:
    """With the canary for a passphrase; whose key it opens is seen to before anybody is asked."""
    place.database["use_ssh_tunnel"] = True
    key = make_key(place.folder / "key", passphrase)
    known_hosts = place.folder / "known_hosts"
    known_hosts.touch()
    way = {"address": HOST, "port": free_port(), "user": "me", "key_file": str(key), "known_hosts": str(known_hosts)}
    content = yaml.safe_load(place.sections())
    content["CREDENTIALS"]["Connection"]["Ssh"] = way | {"passphrase": place.canary.password}
    place.write(yaml.safe_dump(content))


def no_such_database(place: Place) -> None:
    place.log_in()


# ------------------------------------------------------------------------------------------ the tests

AT_A_SERVER = (
    wrong_in_the_file,
    wrong_in_asyncexp_s_variable,
    wrong_in_the_url,
    wrong_in_the_client_s_own,
    no_tls_there,
)
BEFORE_A_SERVER = (
    *(nobody_listens, no_such_host, no_tls_file, others_can_read_the_file, others_can_read_the_client_s_own, no_yaml),
    *(a_key_twice, an_unknown_key, a_comma_in_braces, a_word_in_braces_twice, a_password_in_braces, a_tag),
    *(a_tag_on_text, an_alias, an_interpolation, an_interpolation_that_leads_nowhere, no_mapping, a_port_that_is_none),
    *(a_line_that_is_no_setting, a_key_of_ini_that_is_unknown, a_section_of_ini_that_is_unknown, a_key_of_ini_twice),
    *(a_percent_sign_in_ini, no_text, no_user_for_the_password, no_port_in_the_environment, no_url),
    *(a_url_with_a_mode_that_is_unknown, a_url_whose_password_is_not_encoded, a_url_as_the_server),
    *(a_url_whose_password_begins_like_a_port, a_setting_that_is_unknown, a_password_in_the_configuration),
    *(a_wrong_configuration, a_wrong_passphrase, no_ssh_server, a_broken_tls_key),
    a_tls_key_that_others_can_read,
)


async def check(place: Place, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> BaseException:
    caplog.set_level(logging.DEBUG)
    error = await failure(place)
    assert not place.canary.is_in(told(error))
    assert not place.canary.is_in(caplog.text, *capfd.readouterr())
    return error


@pytest.mark.parametrize("provider", SERVERS)
@pytest.mark.parametrize("wrong", AT_A_SERVER, ids=lambda wrong: wrong.__name__)
async def test_what_a_server_refuses_tells_no_secret(
    place: Place,
    server: Server,
    wrong: Callable[[Place], None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place.target = server.target("none")
    wrong(place)
    error = await check(place, caplog, capfd)
    assert isinstance(error, DatabaseConnectionError)
    assert str(server.port) in str(error)


@pytest.mark.parametrize("provider", ["postgresql"])
async def test_a_wrong_pgpassword_is_not_told(
    place: Place, server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    place.target = server.target("none")
    wrong_in_pgpassword(place)
    assert "not let in" in str(await check(place, caplog, capfd))


@pytest.mark.parametrize("provider", SERVERS)
async def test_a_database_that_does_not_exist_tells_no_secret(
    place: Place, server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with user(server, place.canary) as name:
        place.target = replace(server.target("none"), user=name)
        place.log_in()
        assert "no" in str(await check(place, caplog, capfd))


@pytest.mark.parametrize("provider", SERVERS)
@pytest.mark.parametrize("wrong", BEFORE_A_SERVER, ids=lambda wrong: wrong.__name__)
async def test_what_goes_wrong_before_a_server_is_asked_tells_no_secret(
    place: Place,
    wrong: Callable[[Place], None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    wrong(place)
    await check(place, caplog, capfd)


GREETINGS = {
    "mail": b"220 mail.example ESMTP\r\n" * 50,
    "a mutilated greeting": b"\x05\0\0\0\x0a5.5.",
    "an unfinished string": b"\x03\0\0\0\x0aab",
    "noise": bytes(range(256)),
    "nothing": b"",
}


@pytest.mark.parametrize("provider", SERVERS)
@pytest.mark.parametrize("greeting", GREETINGS)
async def test_what_is_no_such_server_tells_no_secret(
    place: Place, greeting: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETINGS[greeting])
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, HOST, 0) as mail:
        place.log_in(port=mail.sockets[0].getsockname()[1])
        error = await check(place, caplog, capfd)
    assert isinstance(error, DatabaseConnectionError)


async def test_these_tests_see_a_secret_in_the_locals_of_a_frame() -> None:
    canary = Canary()

    def fails(password: str) -> None:
        raise ValueError("it is not here")

    with pytest.raises(ValueError, match="it is not here") as caught:
        fails(canary.password)
    assert canary.is_in(told(caught.value))
    assert canary.is_in(by_rich(caught.value))
    assert not canary.is_in(*traceback.format_exception(caught.value))
    hidden = RuntimeError("it came from the other")
    hidden.__context__, hidden.__suppress_context__ = caught.value, True
    assert canary.is_in(told(hidden))


def test_a_canary_is_seen_in_every_form() -> None:
    canary = Canary()
    secret = canary.password
    forms: tuple[str | bytes, ...] = (
        *(secret, repr(secret), ascii(secret), quote(secret), quote(secret, safe=""), shlex.quote(secret)),
        *(
            html.escape(secret),
            json.dumps(secret),
            yaml.safe_dump(secret),
            repr(secret.encode()),
            secret.encode().hex(),
        ),
        *(base64.b64encode(b"x" * before + secret.encode()) for before in range(3)),
        *(base64.urlsafe_b64encode(f"{before}:{secret}".encode()) for before in ("", "u", "us")),
        *(pickle.dumps(secret), secret.encode("utf-16-le"), secret.encode("utf-8")[:20], secret[20:]),
    )
    for form in forms:
        assert canary.is_in(b"before" + (form.encode() if isinstance(form, str) else form) + b"after")
        assert not Canary().is_in(form)
