"""Through SSH: a real sshd in front of real databases; what breaks the tunnel is an outage, what forbids it is told."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import re
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncexp import Experimenter, ResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import SshTunnelError
from tests.contract.functions import done, never
from tests.contract.modes import CLASSES, Mode, in_thread
from tests.contract.shared import Gate, Seen, Shared
from tests.contract.sql import fetch as sql
from tests.contract.support import PROJECT, Keys, audit, child, eventually, numbers
from tests.contract.test_outage import Function, everything_ran_once, said, steps
from tests.proxy import Proxy
from tests.servers import HOST, Server, free_port
from tests.sshd import PASSPHRASE, SshServer, make_key, ssh_agent, ssh_server
from tests.studies import experimenter as new_experimenter
from tests.studies import write_configuration, write_credentials

servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
one_server = pytest.mark.parametrize("provider", ["postgresql"])
Through = Callable[..., Experimenter]
NOWHERE = Target("postgresql", "study", HOST, 1, "ada", "")
"""For what fails before a database is asked for."""
QUICK = {"heartbeat_interval": 0.5, "lease": 2}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with an empty `.ssh`, no agent, and no settings of the system."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return folder


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush whose answer was lost is looked up when the server's own limit on it has passed."""
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.5)


@pytest.fixture
def ssh() -> Iterator[SshServer]:
    with ssh_server() as server:
        yield server


@pytest.fixture
async def through(target: Target, tmp_path: Path, mode: Mode, ssh: SshServer) -> AsyncIterator[Through]:
    """Makes experimenters on the database under test that go through the SSH server; each is closed after the test."""
    made: list[Experimenter] = []

    def new(way: dict[str, Any] | None = None, **study: Any) -> Experimenter:
        folder = tmp_path / f"study-{len(made)}"
        folder.mkdir()
        made.append(new_experimenter(folder, target, CLASSES[mode], ssh=way or ssh.connection(), **study))
        return made[-1]

    yield new
    for each in made:
        await each.aclose()


async def refused(tmp_path: Path, way: dict[str, Any], target: Target = NOWHERE) -> str:
    """What a call says that cannot go through; the passphrase is in no part of it."""
    experimenter = new_experimenter(tmp_path, target, ssh=way)
    try:
        with pytest.raises(SshTunnelError) as caught:
            await experimenter.counts()
    finally:
        await experimenter.aclose()
    whole = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert PASSPHRASE not in whole
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def in_shell(command: str) -> str:
    """What a command prints that a user was told to run."""
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def passes(tmp_path: Path, way: dict[str, Any], target: Target) -> None:
    async with new_experimenter(tmp_path, target, ssh=way) as experimenter:
        await experimenter.create_table()
        assert await experimenter.counts() == dict.fromkeys(("created", "running", "done", "error", "paused"), 0)


# ------------------------------------------------------------------------------------------------ open and close


@servers_only
async def test_experiments_run_through_a_tunnel_and_it_ends_with_the_experimenter(
    through: Through, target: Target, ssh: SshServer, shared: Shared
) -> None:
    experimenter, ran = through(keyfields=numbers(8)), shared.seen()
    await experimenter.fill_table_from_config()
    assert (await experimenter.execute(steps(ran), n_jobs=2)).done == 8
    assert ssh.sessions()
    await experimenter.aclose()
    await eventually(lambda: not ssh.sessions())
    await everything_ran_once(target, ran, 8)


@one_server
@pytest.mark.executes_nothing
async def test_closing_one_tunnel_leaves_the_others(through: Through, ssh: SshServer) -> None:
    first, second = through(), through()
    await first.create_table()
    firsts = ssh.sessions()
    await second.create_table()
    seconds = [session for session in ssh.sessions() if session not in firsts]
    await first.close_ssh_tunnel()
    await eventually(lambda: sorted(p.pid for p in ssh.sessions()) == sorted(p.pid for p in seconds))
    assert await second.counts() == await first.counts()  # which opens its own again
    assert len(ssh.sessions()) > len(seconds)
    assert all(session in ssh.sessions() for session in seconds)
    await first.close_ssh()
    await first.close_ssh()


@one_server
@pytest.mark.executes_nothing
async def test_the_given_port_is_listened_on_and_a_second_worker_is_told_that_it_is_taken(
    through: Through, ssh: SshServer, tmp_path: Path, target: Target
) -> None:
    port = free_port()
    way = ssh.connection(local_address="127.0.0.2", local_port=port)
    await through(way).create_table()
    assert await asyncio.to_thread(_answer, port) == b"N"
    ssh.cut()
    await eventually(lambda: not ssh.sessions())
    await eventually(lambda: _answer(port) == b"N")  # which builds it anew, whoever asks
    message = await refused(tmp_path, way, target)
    assert f"127.0.0.2:{port}" in message
    assert re.search(rf"port {port} is taken; give another `local_port`, or leave it out", message)


def _answer(port: int) -> bytes:
    """What PostgreSQL says to "do you speak TLS?"; nothing if the tunnel does not let that through."""
    with socket.create_connection(("127.0.0.2", port), 20) as client:
        try:
            client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
            return client.recv(1)
        except ConnectionError:
            return b""


@one_server
async def test_each_event_loop_and_each_process_has_its_own(ssh: SshServer, target: Target, tmp_path: Path) -> None:
    """With a port given: that of a loop that was closed is free again."""
    experimenter = new_experimenter(tmp_path, target, ssh=ssh.connection(local_port=free_port()))
    copy = pickle.loads(pickle.dumps(experimenter))  # noqa: S301  (its own)

    def in_turn() -> None:
        asyncio.run(experimenter.create_table())  # and leaves it open
        assert asyncio.run(experimenter.counts())["created"] == 0
        asyncio.run(experimenter.aclose())
        asyncio.run(copy.counts())
        asyncio.run(copy.aclose())

    await in_thread(in_turn)
    await eventually(lambda: not ssh.sessions())


@one_server
async def test_a_forked_child_opens_its_own_and_lets_go_of_its_parents(
    ssh: SshServer, target: Target, tmp_path: Path
) -> None:
    async with new_experimenter(tmp_path, target, ssh=ssh.connection()) as experimenter:
        await experimenter.create_table()
        sessions = {session.pid for session in ssh.sessions()}
        [listener] = [tunnel._works._listener for tunnel in experimenter._tunnels.values()]  # type: ignore[union-attr]
        assert listener is not None
        port = listener.sockets[0].getsockname()[1]

        def in_child() -> int:
            mine = psutil.Process().net_connections("tcp")
            assert port not in {connection.laddr.port for connection in mine}
            assert ssh.port not in {connection.raddr.port for connection in mine if connection.raddr}
            asyncio.run(_counts_once(experimenter))
            return 0

        assert await in_thread(_forked, in_child) == 0
        await eventually(lambda: {session.pid for session in ssh.sessions()} == sessions)
        assert (await experimenter.counts())["created"] == 0
        assert {session.pid for session in ssh.sessions()} == sessions


async def _counts_once(experimenter: Experimenter) -> None:
    async with experimenter:
        await experimenter.counts()


def _forked(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work()
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@one_server
async def test_a_tunnel_that_nobody_closes_ends_with_its_experimenter(
    ssh: SshServer, target: Target, tmp_path: Path
) -> None:
    def forget() -> None:
        asyncio.run(new_experimenter(tmp_path, target, ssh=ssh.connection()).create_table())

    await in_thread(forget)

    def gone() -> bool:
        gc.collect()
        return not ssh.sessions() and not any(thread.name == "asyncexp tunnel" for thread in threading.enumerate())

    await eventually(gone)


SCRIPT = """
import sys
from asyncexp.sync import PyExperimenter

def run(keyfields, result_processor, custom_fields):
    result_processor.process_results({"result": keyfields["number"]})

experimenter = PyExperimenter(sys.argv[1], sys.argv[2], log_file=None)
experimenter.fill_table_from_config()
experimenter.execute(run, max_experiments=-1, n_jobs=int(sys.argv[3]))
"""


@servers_only
@pytest.mark.parametrize("n_jobs", ["1", "2"])
async def test_a_blocking_script_that_closes_nothing_ends_in_good_order(
    ssh: SshServer, target: Target, tmp_path: Path, n_jobs: str
) -> None:
    study = write_configuration(tmp_path, target, keyfields=numbers(3), use_ssh_tunnel=True)
    credentials = write_credentials(tmp_path, target, ssh.connection())
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(script), str(study), str(credentials), n_jobs),
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, errors.decode()
    assert b"WARNING" not in errors
    assert b"Traceback" not in errors
    assert await audit(target) == {"done": 3}
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments_workers" WHERE "stopped" IS NULL') == [(0,)]
    await eventually(lambda: not ssh.sessions())


@servers_only
async def test_what_is_large_passes_both_ways(through: Through, target: Target) -> None:
    """Several times what a channel takes before it has to wait."""
    experimenter = through(keyfields=numbers(3))
    await experimenter.fill_table_from_config()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await results.process_results({"text": str(keys["number"]) * 6_000_000})

    assert (await experimenter.execute(run, n_jobs=3)).done == 3
    table = await experimenter.get_table()
    assert [text == str(number) * 6_000_000 for number, text in enumerate(table["text"])] == [True] * 3


# ------------------------------------------------------------------------------------------------ outages


def halting(ran: Seen, shared: Shared, count: int, *at: int) -> tuple[Function, list[tuple[Gate, Gate]]]:
    """A function whose calls wait from each of these numbers on, before they report.

    For each of them the gate that is opened when the first has come so far, and the one that they wait for.
    """
    halts = [(shared.gate(), shared.gate()) for _ in at]
    holds = {number: halts[sum(first <= number for first in at) - 1] for number in range(at[0], count)}
    return steps(ran, before_results=holds), halts


@servers_only
async def test_a_tunnel_cut_in_the_middle_of_a_run(
    through: Through, target: Target, ssh: SshServer, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter, ran = through(keyfields=numbers(90)), shared.seen()
    await experimenter.fill_table_from_config()
    function, halts = halting(ran, shared, 90, 20, 50)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=6))
    for reached, go_on in halts:
        await reached.passed()
        ssh.cut()
        go_on.open()
    assert (await call).done == 90
    assert said(caplog, f"The SSH tunnel through {HOST} broke")()
    await everything_ran_once(target, ran, 90)


@servers_only
async def test_an_sshd_that_is_away_in_the_middle_of_a_run(
    through: Through, target: Target, ssh: SshServer, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter, ran = through(keyfields=numbers(40), execution=QUICK), shared.seen()
    await experimenter.fill_table_from_config()
    function, [(reached, go_on)] = halting(ran, shared, 40, 10)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=4))
    await reached.passed()
    ssh.kill()
    try:
        go_on.open()
        await eventually(said(caplog, "The database is away"))
        await eventually(said(caplog, "The SSH tunnel cannot be built anew yet"))
        assert not call.done()
    finally:
        ssh.start()
    assert (await call).done == 40
    assert said(caplog, "The database is back")()
    await everything_ran_once(target, ran, 40)


@one_server
async def test_a_host_key_that_changes_in_the_middle_of_a_run_is_an_outage_until_somebody_has_looked(
    through: Through, target: Target, ssh: SshServer, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter, ran = through(keyfields=numbers(40), execution=QUICK), shared.seen()
    await experimenter.fill_table_from_config()
    function, [(reached, go_on)] = halting(ran, shared, 40, 10)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=4))
    await reached.passed()
    ssh.new_host_key()
    ssh.restart()
    go_on.open()
    await eventually(said(caplog, "host key has CHANGED"))
    assert not call.done()
    ssh.connection()  # writes the file of known hosts anew
    assert (await call).done == 40
    await everything_ran_once(target, ran, 40)


@one_server
async def test_a_network_that_swallows_everything_is_noticed(
    target: Target,
    tmp_path: Path,
    mode: Mode,
    ssh: SshServer,
    shared: Shared,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncexp.tunnel.opening.KEEPALIVE_SECONDS", 0.2)
    ran, proxy = shared.seen(), Proxy(Target("postgresql", "", HOST, ssh.port))
    async with proxy:
        way = ssh.connection(port=proxy.target.port)
        study: dict[str, Any] = {"keyfields": numbers(40), "execution": QUICK}
        async with new_experimenter(tmp_path, target, CLASSES[mode], ssh=way, **study) as experimenter:
            await experimenter.fill_table_from_config()
            function, [(reached, go_on)] = halting(ran, shared, 40, 10)
            call = asyncio.create_task(experimenter.execute(function, n_jobs=4))
            await reached.passed()
            proxy.stall()
            try:
                go_on.open()
                await eventually(said(caplog, "not responding to keepalive"))
                await eventually(said(caplog, "The database is away"))
                assert not call.done()
            finally:
                proxy.resume()
            assert (await call).done == 40
    await everything_ran_once(target, ran, 40)


@servers_only
async def test_a_tunnel_that_is_closed_in_the_middle_of_a_run_is_opened_again(
    through: Through, target: Target, shared: Shared
) -> None:
    experimenter, ran = through(keyfields=numbers(40), execution=QUICK), shared.seen()
    await experimenter.fill_table_from_config()
    function, [(reached, go_on)] = halting(ran, shared, 40, 10)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=4))
    await reached.passed()
    await experimenter.close_ssh_tunnel()
    go_on.open()
    assert (await call).done == 40
    await everything_ran_once(target, ran, 40)


@one_server
@pytest.mark.in_process_only("it blocks the event loop of its worker")
async def test_signs_of_life_pass_while_the_event_loop_is_blocked(
    through: Through, target: Target, shared: Shared
) -> None:
    execution = {"heartbeat_interval": 0.1, "lease": 60}
    experimenter, go_on = through(keyfields=numbers(1), execution=execution), shared.gate()
    await experimenter.fill_table_from_config()

    async def blocks(_: Keys, __: ResultProcessor, ___: Keys) -> None:
        watcher = threading.Thread(target=lambda: asyncio.run(watch()))
        watcher.start()
        go_on.wait()  # and so does the loop
        watcher.join()

    async def watch() -> None:
        seen: set[Any] = set()

        async def beats() -> bool:
            seen.update(await sql(target, 'SELECT "heartbeat" FROM "experiments_workers"'))
            return len(seen) > 3

        try:
            await eventually(beats)
        finally:
            go_on.open()

    assert (await experimenter.execute(blocks)).done == 1


async def test_a_server_that_says_nothing_is_given_up(
    ssh: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncexp.tunnel.opening.OPEN_SECONDS", 0.5)
    async with Proxy(Target("postgresql", "", HOST, ssh.port)) as proxy:
        proxy.stall()
        message = await refused(tmp_path, ssh.connection(port=proxy.target.port))
    assert re.search(rf"SSH server .*@{HOST}:\d+ does not answer within 0\.5 s", message)


@servers_only
async def test_execute_waits_for_the_ssh_server_at_its_start_and_then_says_that_it_is_away(
    through: Through, target: Target, ssh: SshServer, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, ran = through(keyfields=numbers(3)), through(keyfields=numbers(3)), shared.seen()
    await through(keyfields=numbers(3)).fill_table_from_config()
    ssh.kill()
    try:
        with pytest.raises(SshTunnelError, match=rf"SSH server .*@{HOST}:{ssh.port} does not answer.*is it running"):
            await first.execute(never, database_wait=0.3)
        caplog.clear()
        call = asyncio.create_task(second.execute(steps(ran), database_wait=60))
        await eventually(said(caplog, "to reach the database"))
    finally:
        ssh.start()
    assert (await call).done == 3
    await everything_ran_once(target, ran, 3)


@servers_only
@pytest.mark.executes_nothing
async def test_a_database_that_is_down_behind_the_tunnel(
    through: Through, server: Server, target: Target, ssh: SshServer
) -> None:
    experimenter = through()
    await experimenter.create_table()
    server.stop()
    try:
        words = rf"{HOST}:{target.port}, as SSH server {HOST} sees it, does not answer.*`remote_port`"
        with pytest.raises(SshTunnelError, match=words):
            await experimenter.counts()
    finally:
        server.start()
    assert (await experimenter.counts())["created"] == 0


@one_server
async def test_without_a_tunnel_asyncssh_is_not_imported(target: Target, tmp_path: Path) -> None:
    study, credentials = write_configuration(tmp_path, target), write_credentials(tmp_path, target)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom asyncexp.sync import PyExperimenter\n"
        "PyExperimenter(sys.argv[1], sys.argv[2], log_file=None).fill_table_from_config()\n"
        "assert 'asyncpg' in sys.modules\nassert 'asyncssh' not in sys.modules\n"
    )
    await in_shell(f"PYTHONPATH={PROJECT} {sys.executable} {script} {study} {credentials}")


# ------------------------------------------------------------------------------------------------ other processes


@servers_only
async def test_a_worker_in_another_process_attaches_through_a_tunnel_of_its_own_on_a_free_port(
    through: Through, target: Target, tmp_path: Path, ssh: SshServer, shared: Shared
) -> None:
    way = ssh.connection(local_port=free_port())
    experimenter, mine = through(way, keyfields=numbers(1)), shared.seen()
    await experimenter.fill_table_from_config()
    joined, go_on = shared.gate(), shared.gate()

    async def run(_: Keys, results: ResultProcessor, __: Keys) -> None:
        mine.append(pickle.dumps(results.experiment_id).hex())
        joined.open()
        await go_on.passed()

    call = asyncio.create_task(experimenter.execute(run))
    await joined.passed()
    note = ("async", "from elsewhere")
    async with child("attach", tmp_path, target, mine.values()[0], *note, ssh=way, keyfields=numbers(1)) as worker:
        told = await worker.told()
        assert await worker.ended() == 0
    go_on.open()
    assert (await call).done == 1
    assert told[:2] == [1, 1]
    lines = await sql(target, 'SELECT "step", "note" FROM "experiments__steps" ORDER BY "ID"')
    assert lines == [(step, "from elsewhere") for step in range(3)]


@one_server
async def test_a_killed_worker_leaves_no_session_and_its_rows_are_taken_over(
    target: Target, tmp_path: Path, ssh: SshServer, shared: Shared
) -> None:
    way, ran, go_on = ssh.connection(), shared.seen(), shared.gate()
    study: dict[str, Any] = {"keyfields": numbers(4), "execution": QUICK, "ssh": way}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
        mine = len(ssh.sessions())
        role = f'{{"function": "task", "ran": "{ran.path}", "go_on": "{go_on.path}", "keywords": {{"n_jobs": 2}}}}'
        async with child("fault", tmp_path, target, role, **study) as worker:
            await eventually(lambda: len(ran) == 2)
            assert len(ssh.sessions()) > mine
            worker.process.kill()
            await eventually(lambda: len(ssh.sessions()) == mine)
        assert (await experimenter.execute(done, pool="task", until="finished")).done == 4
    assert await audit(target) == {"done": 4}


# ------------------------------------------------------------------------------------------------ who is let in


@one_server
async def test_an_unknown_host_key_is_refused_and_the_command_told_mends_it(
    ssh: SshServer, target: Target, tmp_path: Path, home: Path
) -> None:
    way = ssh.connection(known_hosts=None)
    (home / ".ssh").rmdir()
    scan = f"ssh-keyscan -p {ssh.port} {HOST} >> ~/.ssh/known_hosts"
    assert (await refused(tmp_path, way, target)).endswith(f"run: mkdir -p -m 700 ~/.ssh && {scan}")
    (home / ".ssh").mkdir(mode=0o700)
    message = await refused(tmp_path, way, target)
    fingerprint = (await in_shell(f"ssh-keygen -lf {ssh.folder / 'host_key.pub'}")).split()[1]
    assert f"its host key (ssh-ed25519 {fingerprint}) is unknown" in message
    command = message.partition("run: ")[2]
    assert command == scan
    await in_shell(command)
    await passes(tmp_path, way, target)
    await in_shell("ssh-keygen -H -f ~/.ssh/known_hosts")  # as HashKnownHosts has it
    assert HOST not in (home / ".ssh/known_hosts").read_text()
    await passes(tmp_path, way, target)


@one_server
async def test_a_changed_host_key_is_refused_and_the_commands_told_mend_it(
    ssh: SshServer, target: Target, tmp_path: Path
) -> None:
    known = tmp_path / "known hosts"
    known.write_text(ssh.known_hosts())
    way = ssh.connection(known_hosts=str(known))
    ssh.new_host_key()
    ssh.restart()
    message = await refused(tmp_path, way, target)
    assert "host key has CHANGED" in message
    command = message.partition("run: ")[2]
    assert command.startswith("ssh-keygen -R ")
    assert command.endswith(f"ssh-keyscan -p {ssh.port} {HOST} >> '{known}'")
    await in_shell(command)
    await passes(tmp_path, way, target)


async def test_no_key_is_taken_for_known_where_nothing_is_known(ssh: SshServer, tmp_path: Path, home: Path) -> None:
    """Neither an empty file nor "none" means "whoever it is", or another file."""
    (home / ".ssh/known_hosts").write_text(ssh.known_hosts())
    empty = tmp_path / "empty"
    empty.touch()
    for file in (empty, tmp_path / "not there"):
        assert "is unknown. Compare it" in await refused(tmp_path, ssh.connection(known_hosts=str(file)))
    (home / ".ssh/known_hosts").unlink()
    for line in ("UserKnownHostsFile none", "UserKnownHostsFile /dev/null", "StrictHostKeyChecking no"):
        (home / ".ssh/config").write_text(f"Host *\n  {line}\n")
        assert "is unknown" in await refused(tmp_path, ssh.connection(known_hosts=None))


async def test_a_revoked_host_key_is_refused(ssh: SshServer, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"{ssh.known_hosts()}@revoked * {(ssh.folder / 'host_key.pub').read_text()}")
    assert "its host key is refused" in await refused(tmp_path, ssh.connection(known_hosts=str(known)))


async def test_a_wrong_key_and_a_wrong_user_are_not_let_in(ssh: SshServer, tmp_path: Path) -> None:
    key = make_key(tmp_path / "other_key")
    message = await refused(tmp_path, ssh.connection(key_file=str(key)))
    assert re.search(rf"SSH server .*@{HOST}:{ssh.port}: not let in with key_file {key}; check `user`", message)
    assert "nosuchuser@" in await refused(tmp_path, ssh.connection(user="nosuchuser"))
    assert "the agent's keys" in await refused(tmp_path, ssh.connection(key_file=None))


@one_server
async def test_an_encrypted_key_needs_its_passphrase(ssh: SshServer, target: Target, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked_key", PASSPHRASE)
    ssh.allow(key.with_suffix(".pub"))
    way = ssh.connection(key_file=str(key))
    missing = await refused(tmp_path, way)
    assert missing.startswith(f"key_file {key}: it is encrypted, and there is no passphrase: write `passphrase`")
    wrong = await refused(tmp_path, way | {"passphrase": f"not {PASSPHRASE[2:]}"})
    assert wrong == f"key_file {key}: the passphrase does not open the key; check `passphrase`"
    await passes(tmp_path, way | {"passphrase": PASSPHRASE}, target)
    await passes(tmp_path, way | {"ssh_private_key_password": PASSPHRASE}, target)


@one_server
async def test_the_passphrase_is_in_no_pickle_and_no_repr(ssh: SshServer, target: Target, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked_key", PASSPHRASE)
    ssh.allow(key.with_suffix(".pub"))
    way = ssh.connection(key_file=str(key), passphrase=PASSPHRASE)
    async with new_experimenter(tmp_path, target, ssh=way) as experimenter:
        await experimenter.create_table()
        [tunnel] = experimenter._tunnels.values()
        shown = [repr(experimenter), repr(tunnel), str(tunnel), repr(vars(tunnel)), repr(tunnel._ssh)]
        assert tunnel._works is not None
        shown += [repr(vars(tunnel._works)), repr(vars(experimenter))]
        assert not [text for text in shown if PASSPHRASE in text]
        assert PASSPHRASE.encode() not in pickle.dumps(experimenter)


@pytest.mark.parametrize(
    ("content", "bits", "words"),
    [
        (None, 0, r"the private key cannot be read \(No such file or directory\); check `key_file`"),
        ("no key at all", 0o600, r"this is no private key that can be read here; check `key_file`"),
        ("no key at all", 0o640, r"others can read this private key \(-rw-r-----\); run: chmod 600 /\S+/odd_key$"),
    ],
    ids=["missing", "not-a-key", "open-to-others"],
)
async def test_a_key_file_that_cannot_be_used(
    ssh: SshServer, tmp_path: Path, content: str | None, bits: int, words: str
) -> None:
    key = tmp_path / "odd_key"
    if content is not None:
        key.write_text(content)
        key.chmod(bits)
    assert re.search(f"^key_file {key}: {words}", await refused(tmp_path, ssh.connection(key_file=str(key))))


async def test_a_server_that_passes_on_nothing(tmp_path: Path) -> None:
    with ssh_server(forwarding="no") as ssh:
        message = await refused(tmp_path, ssh.connection(remote_address="db.lab", remote_port=5433))
    assert re.search(r"does not pass on connections to db\.lab:5433 \(.*; ask .* for AllowTcpForwarding", message)


async def test_an_address_that_does_not_exist(ssh: SshServer, tmp_path: Path) -> None:
    message = await refused(tmp_path, ssh.connection(address="no-such-host.invalid"))
    assert re.search(r"no-such-host\.invalid:\d+: no such host .*check `address`", message)


async def test_an_end_here_that_cannot_be_listened_on(ssh: SshServer, tmp_path: Path) -> None:
    message = await refused(tmp_path, ssh.connection(local_address="192.0.2.1"))
    assert re.search(r"192\.0\.2\.1.*cannot be listened on .*check `local_address`", message)


# ------------------------------------------------------------------------------------------------ as ssh does it


@one_server
async def test_keys_of_the_agent(
    ssh: SshServer, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them without `key_file`; with one that is encrypted, the same key in the agent."""
    with ssh_agent(tmp_path) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent.socket))
        way = ssh.connection(key_file=None)
        assert "not let in" in await refused(tmp_path, way)
        agent.add(ssh.key)
        await passes(tmp_path, way, target)
        locked = tmp_path / "locked_key"
        locked.write_bytes(ssh.key.read_bytes())
        locked.chmod(0o600)
        await in_shell(f"ssh-keygen -q -p -a 4 -N {PASSPHRASE} -f {locked}")
        way = ssh.connection(key_file=str(locked))
        assert "there is no passphrase" in await refused(tmp_path, way)
        locked.with_suffix(".pub").write_bytes(ssh.key.with_suffix(".pub").read_bytes())
        await passes(tmp_path, way, target)


@one_server
@pytest.mark.parametrize("passphrase", ["", PASSPHRASE], ids=["open", "encrypted"])
async def test_a_key_at_its_usual_place(
    ssh: SshServer, target: Target, tmp_path: Path, home: Path, passphrase: str
) -> None:
    key = make_key(home / ".ssh/id_ed25519", passphrase)
    ssh.allow(key.with_suffix(".pub"))
    way = ssh.connection(key_file=None)
    if passphrase:
        assert f"{key} is encrypted and was left out: write `passphrase`" in await refused(tmp_path, way)
        way["passphrase"] = passphrase
    await passes(tmp_path, way, target)


def _configure(home: Path, *hosts: str) -> None:
    (home / ".ssh/config").write_text("\n".join(hosts))


def _host(alias: str, server: SshServer, *more: str) -> str:
    lines = [f"HostName {HOST}", f"Port {server.port}", f"User {server.user}", f"IdentityFile {server.key}", *more]
    return f"Host {alias}\n  " + "\n  ".join(lines) + "\n"


@one_server
async def test_what_ssh_is_told_of_a_host_counts_here_too(
    ssh: SshServer, target: Target, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "known").write_text(ssh.known_hosts())
    _configure(home, _host("lab", ssh, f"UserKnownHostsFile {tmp_path / 'known'}"))
    await passes(tmp_path, {"address": "lab"}, target)
    _configure(home, _host("lab", ssh, f"UserKnownHostsFile {tmp_path / 'known'}", "User nosuchuser", "Port 1"))
    await passes(tmp_path, {"address": "lab"}, target)  # the first that is said counts
    message = await refused(
        tmp_path, {"address": "lab", "user": "nosuchuser"}
    )  # and what the credentials say, before it
    assert f"SSH server nosuchuser@{HOST}:{ssh.port}" in message


@one_server
async def test_through_a_proxy_command(ssh: SshServer, target: Target, tmp_path: Path, home: Path) -> None:
    (home / ".ssh/known_hosts").write_text(ssh.known_hosts())
    with ssh_server() as front:
        (tmp_path / "known").write_text(front.known_hosts())
        options = f"-F none -i {front.key} -o UserKnownHostsFile={tmp_path / 'known'} -p {front.port}"
        command = f"ssh -q {options} {front.user}@{HOST} -W %h:%p"
        _configure(home, _host("inner", ssh, f"ProxyCommand {command}"))
        await passes(tmp_path, {"address": "inner"}, target)
        assert f"Accepted publickey for {front.user}" in front.log()


@one_server
async def test_pgpass_is_asked_for_the_server_by_its_own_name(
    ssh: SshServer, target: Target, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSFILE", raising=False)
    pgpass = home / ".pgpass"
    pgpass.touch(mode=0o600)
    pgpass.write_text(f"{HOST}:*:*:*:wrong\ndb.lab:{target.port}:{target.database}:{target.user}:{target.password}\n")
    await passes(tmp_path, ssh.connection(server="db.lab"), replace(target, password=None))


async def test_a_configuration_of_ssh_that_cannot_be_understood(ssh: SshServer, tmp_path: Path, home: Path) -> None:
    _configure(home, "Host *\n  Port many\n")
    message = await refused(tmp_path, ssh.connection(port=None))
    assert re.search(r"the configuration of ssh cannot be used \(.*config line 2: .*\); mend it", message)


@one_server
async def test_through_a_jump_host(
    ssh: SshServer, target: Target, tmp_path: Path, home: Path, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of the two is known by itself; when the one in front breaks, the whole way is built anew."""
    with ssh_server() as front:
        known = home / ".ssh/known_hosts"
        _configure(home, _host("front", front), _host("inner", ssh, "ProxyJump front"))
        way = {"address": "inner"}
        assert f"SSH server {front.user}@{HOST}:{front.port}: its host key" in await refused(tmp_path, way)
        known.write_text(front.known_hosts())
        message = await refused(tmp_path, way)
        assert f"@{HOST}:{ssh.port} by way of {HOST}:{front.port}: its host key" in message
        scan = f"ssh -p {front.port} {front.user}@{HOST} ssh-keyscan -p {ssh.port} {HOST} >> ~/.ssh/known_hosts"
        assert message.endswith(f"run: {scan}")
        with known.open("a") as file:
            file.write(ssh.known_hosts())
        ran = shared.seen()
        async with new_experimenter(tmp_path, target, ssh=way, keyfields=numbers(40)) as experimenter:
            await experimenter.fill_table_from_config()
            function, [(reached, go_on)] = halting(ran, shared, 40, 10)
            call = asyncio.create_task(experimenter.execute(function, n_jobs=4, pool="task"))
            await reached.passed()
            assert front.sessions()
            front.cut()
            go_on.open()
            assert (await call).done == 40
        assert said(caplog, "The SSH tunnel through inner broke")()
        await eventually(lambda: not front.sessions() and not ssh.sessions())
        await everything_ran_once(target, ran, 40)


async def test_jump_hosts_in_a_circle_are_told(ssh: SshServer, tmp_path: Path, home: Path) -> None:
    _configure(home, "Host *\n  ProxyJump front\n")
    message = await refused(tmp_path, ssh.connection())
    assert re.search(r"more than 8 hosts, or in a circle \(at front\); .* `ProxyJump none`", message)


async def test_a_server_that_speaks_in_riddles_is_quoted_in_one_line(ssh: SshServer, tmp_path: Path) -> None:
    """What it says before it hangs up ends in the log and on the terminal."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reason = b"\x1b[2J\n\n" + b"x" * 1000
        payload = b"\x01" + (2).to_bytes(4, "big") + len(reason).to_bytes(4, "big") + reason + bytes(4)
        padding = 16 - (len(payload) + 5) % 8
        packet = bytes([padding]) + payload + bytes(padding)
        writer.write(b"SSH-2.0-riddle\r\n" + len(packet).to_bytes(4, "big") + packet)
        writer.close()

    server = await asyncio.start_server(hang_up, HOST, 0)
    async with server:
        message = await refused(tmp_path, ssh.connection(port=server.sockets[0].getsockname()[1]))
    assert "\x1b" not in message
    assert "[2J" in message
    assert len(message) < 600


async def test_a_server_that_a_jump_host_cannot_reach(ssh: SshServer, tmp_path: Path, home: Path) -> None:
    (home / ".ssh/known_hosts").write_text(ssh.known_hosts())
    _configure(home, _host("front", ssh), "Host inner\n  HostName 127.0.0.1\n  Port 1\n  ProxyJump front\n")
    assert "cannot be reached from the jump host" in await refused(tmp_path, {"address": "inner"})
