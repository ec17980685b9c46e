"""Energy: what the configuration may say of it, how it is shared, and that nothing leaves the machine for it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncexp import config, emissions
from asyncexp.emissions import Account, Clock, Columns, Reading, Settings, Tracker, Use, measuring, shared
from asyncexp.emissions.amounts import NOTHING, Spent
from asyncexp.errors import InvalidConfigError
from tests.unit.test_config_errors import BASE

LOGGER = logging.getLogger("asyncexp-tests")


def written(folder: Path, *lines: str) -> Path:
    """A configuration whose section CodeCarbon has these lines; the first of them is line 15."""
    file = folder / "g.yml"
    file.write_text(BASE + "  CodeCarbon:\n" + "".join(f"    {line}\n" for line in lines))
    return file


# ------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("lines", "place", "said"),
    [
        (["offline_mode: true"], "15:19", "offline_mode: true needs country_iso_code"),
        (["offline_mode: true", "country_iso_code: DEV"], "16:23", "no country 'DEV'; did you mean 'DEU' (Germany)?"),
        (["country_iso_code: deu"], "15:23", "no country 'deu'; did you mean 'DEU' (Germany)?"),
        (["country_iso_code: Germany"], "15:23", "did you mean 'DEU' (Germany)?"),
        (["country_iso_code: Frence"], "15:23", "did you mean 'FRA' (France)?"),
        (["country_iso_code: GER"], "15:23", "did you mean 'DEU' (Germany)?"),
        (["country_iso_code: FR"], "15:23", "did you mean 'FRA' (France)?"),
        (["country_iso_code: US"], "15:23", "did you mean 'USA' (United States)?"),
        (["country_iso_code: UK"], "15:23", "did you mean 'GBR' (United Kingdom)?"),
        (["country_iso_code: 49"], "15:23", "no country 49; it takes the three letters"),
        (["country_iso_code: [DEU]"], "15:5", "no country ['DEU']; did you mean 'DEU' (Germany)?"),
        (["offline_mode: maybe"], "15:19", "offline_mode must be true or false, not 'maybe'"),
        (["offline_mode: 'false'"], "15:19", "offline_mode must be true or false, not 'false'"),
    ],
)
def test_what_is_wrong_is_told_at_load_with_its_place(tmp_path: Path, lines: list[str], place: str, said: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        config.load(written(tmp_path, *lines), environment={})
    assert str(caught.value).startswith(f"{tmp_path}/g.yml:{place}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lines",
    [
        ["offline_mode: true", "country_iso_code: DEU"],
        ["offline_mode: true", "cloud_provider: gcp", "cloud_region: europe-west3"],
        ["offline_mode: true", "force_carbon_intensity_g_co2e_kwh: 100"],
        ["offline_mode: false"],
        ["country_iso_code: FRA"],
        ["anything: [else]", "AnyCase: 1"],
    ],
)
def test_what_is_right_or_unknown_is_taken(tmp_path: Path, lines: list[str]) -> None:
    assert len(config.load(written(tmp_path, *lines), environment={}).codecarbon) == len(lines)


@pytest.mark.parametrize(
    ("given", "offline"),
    [({}, True), ({"offline_mode": True}, True), ({"offline_mode": None}, True), ({"offline_mode": False}, False)],
)
def test_only_false_written_out_allows_calls_to_the_outside(given: dict[str, Any], offline: bool) -> None:
    assert Settings(given).offline is offline


def test_the_countries_are_read_without_importing_codecarbon() -> None:
    code = (
        "import sys; from asyncexp import emissions; print(emissions.countries()['DEU'], 'codecarbon' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "Germany False\n"


# --------------------------------------------------------------------------------------- how it is shared


@pytest.fixture
def account() -> Account:
    return Account(Settings({}), LOGGER, lambda rows, facts: None, lambda why: None)


def use(account: Account, began: float, over: float | None = None, **known: Any) -> Use:
    made = Use(emissions.meter(), account, (1, 1))
    made.began, made.over = began, over
    for name, value in known.items():
        setattr(made, name, value)
    return made


def reading(at: float, busy: float, own: float, trees: dict[int, float] | None = None) -> Reading:
    return Reading(at, busy, own, trees or {})


def test_tasks_share_by_the_time_that_they_were_alive(account: Account) -> None:
    uses = [use(account, 0.0), use(account, 10.5), use(account, 2.0, 10.25), use(account, 1.0, 5.0)]
    shares, each, part = shared(reading(10.0, 100.0, 5.0), reading(11.0, 102.0, 6.0), uses, others_alive=0.25)
    assert shares == pytest.approx([0.5, 0.25, 0.125, 0.0])
    assert sum(shares) + each * 0.25 == pytest.approx(1.0)
    assert part == pytest.approx(1 / 2.01)


def test_what_used_cpu_time_itself_gets_that_and_the_rest_is_shared_by_time(account: Account) -> None:
    computes, waits = use(account, 0.0, 11.0, cpu=3.0, counted=2.2), use(account, 0.0)
    shares, _, part = shared(reading(10.0, 0.0, 0.0), reading(11.0, 0.99, 1.0), [computes, waits])
    assert shares == pytest.approx([0.9, 0.1])
    assert part == 1.0
    assert computes.counted == 3.0


def test_the_cpu_time_of_a_child_goes_to_those_that_ended_in_it_as_told_and_the_rest_to_the_one_that_runs(
    account: Account,
) -> None:
    ended = [use(account, 10.0, 10.2, pid=7, cpu=0.2), use(account, 10.2, 10.5, pid=7, cpu=0.1)]
    runs, elsewhere = use(account, 10.5, pid=7), use(account, 3.0, pid=8)
    before, now = reading(10.0, 0.0, 0.0, {7: 5.0, 8: 1.0}), reading(11.0, 2.0, 1.6, {7: 5.8, 8: 1.8})
    shares, _, part = shared(before, now, [runs, *ended, elsewhere])
    assert shares == pytest.approx([0.5 / 1.6, 0.2 / 1.6, 0.1 / 1.6, 0.8 / 1.6])
    assert part == pytest.approx(1.6 / 2.01)


def test_two_workers_of_one_machine_never_get_more_than_all_of_it(account: Account) -> None:
    busy = reading(0.0, 0.0, 0.0), 1.9
    parts = [shared(busy[0], reading(1.0, busy[1], own), [use(account, 0.0)])[2] for own in (0.9, 1.0)]
    assert sum(parts) <= 1.0
    # The clock of the machine is coarse: one that is alone gets no more than all, either.
    assert shared(busy[0], reading(1.0, 0.0, 0.7), [use(account, 0.0)])[2] == 1.0


def test_nothing_used_is_nothing_shared(account: Account) -> None:
    assert shared(reading(0, 0, 0), reading(1, 1, 0), [use(account, 0.0)]) == ([0.0], 0.0, 0.0)
    assert shared(reading(0, 0, 0), reading(1, 1, 1), [])[0] == []


def test_emissions_follow_energy_where_the_cpus_is_shared_otherwise_than_the_rest() -> None:
    part = NOTHING.plus(Spent(cpu=3.0, ram=1.0, kilograms=8.0), share=0.25, of_cpu=0.5)
    assert part == Spent(cpu=1.5, ram=0.25, kilograms=3.5)
    assert NOTHING.plus(Spent(kilograms=8.0), share=0.25, of_cpu=0.5) == Spent(kilograms=2.0)


BURNS = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"


def test_cpu_times_are_those_of_a_process_and_of_all_below_it_living_and_dead() -> None:
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURNS!r}]); sys.stdin.read()"
    clock = Clock()
    before = clock.read()
    process = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    now = clock.read()
    [grandchild] = psutil.Process(process.pid).children()
    assert now.trees[process.pid] >= now.trees[grandchild.pid] >= 0.28
    assert now.own - before.own >= 0.28
    assert now.busy - before.busy >= 0.28
    grandchild.kill()
    process.communicate()
    after = clock.read()
    assert process.pid not in after.trees
    assert after.own >= now.own


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_what_an_orphan_had_used_does_not_hide_what_is_used_after_it_has_gone() -> None:
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURNS!r}])"
    clock = Clock()
    process = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    with_it = clock.read()
    process.kill()
    process.wait()
    without = [clock.read(), clock.read()]
    burn(0.1)
    after = clock.read()
    process.communicate()
    assert with_it.own <= without[0].own <= without[1].own
    assert 0.09 <= after.own - without[1].own < 0.28


def test_the_cpu_time_of_a_thread_is_told_while_it_runs_and_when_it_has_ended(account: Account) -> None:
    made, computed, go_on = use(account, 0.0), threading.Event(), threading.Event()

    def work() -> None:
        with made.in_this_thread():
            until = time.thread_time() + 0.1
            while time.thread_time() < until:
                pass
            computed.set()
            go_on.wait()

    thread = threading.Thread(target=work)
    thread.start()
    computed.wait()
    before = made.counted
    shared(reading(0, 0, 0), reading(1, 1, 1), [made])
    assert made.counted - before >= 0.1
    go_on.set()
    thread.join()
    assert made.cpu is not None
    assert made.cpu >= made.counted
    assert made.clock is None


# ------------------------------------------------------------------------------------------- the tracker


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def open_tracker(folder: Path) -> Iterator[Any]:
    made: list[Tracker] = []

    def opened(**given: Any) -> Tracker:
        made.append(Tracker(Settings(given), LOGGER))
        made[-1].open()
        return made[-1]

    yield opened
    for tracker in made:
        tracker.close()


def test_a_tracker_is_quiet_has_no_thread_and_leaves_no_file(
    open_tracker: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = open_tracker(country_iso_code="DEU")
    assert [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)] == []
    spent = tracker.measure()
    assert (spent.cpu + spent.ram, spent.gpu) > (0.0, 0.0)
    assert spent.kilograms > 0
    tracker.close()
    assert list(folder.iterdir()) == []
    assert not Path("/tmp/.codecarbon.lock").exists()  # noqa: S108  (where codecarbon would put it)
    assert capfd.readouterr() == ("", "")
    assert tracker.facts["country_name"] == "Germany"
    assert tracker.facts["offline_mode"] is True


def test_without_a_country_energy_is_told_and_emissions_are_not(
    open_tracker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tracker = open_tracker()
    assert not tracker.knows_emissions
    assert tracker.measure().ram > 0
    assert tracker.facts["country_iso_code"] is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "country_iso_code is not given" in caplog.text


def test_settings_are_the_trackers_and_unknown_ones_are_passed_over_with_a_word(
    open_tracker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain, doubled = open_tracker(force_ram_power=10), open_tracker(force_ram_power=10, pue=2.0, Pue=3, measure_pwr=1)
    assert doubled.facts["power_usage_efficiency"] == 2.0
    assert "no setting 'Pue': it is passed over; did you mean 'pue'?" in caplog.text
    assert "no setting 'measure_pwr': it is passed over" in caplog.text
    assert plain.facts["power_usage_efficiency"] == 1.0
    assert open_tracker(project_name="mine", country_iso_code="FRA").facts["project_name"] == "mine"


def test_rows_go_into_codecarbons_own_file_if_that_is_wanted(open_tracker: Any, folder: Path) -> None:
    import pandas as pd

    tracker = open_tracker(country_iso_code="DEU", save_to_file=True, output_dir="out/carbon", output_file="e.csv")
    for count in (3, 1):
        tracker.save([list(range(1, count + 1)), 1, 2.0, 0.5, 0.0, 0.25, 0.125])
    tracker.save([[9], 1, 2.0, None, None, None, None])
    table = pd.read_csv(folder / "out/carbon/e.csv")
    assert list(table["energy_consumed"]) == [1.5] * 4
    assert set(table["emissions"]) == {0.25}
    assert set(table["duration"]) == {2.0}
    assert set(table["country_iso_code"]) == {"DEU"}
    assert [file.name for file in folder.rglob("*")].count("e.csv") == 1


def test_a_tracker_that_does_not_start_says_why(open_tracker: Any, folder: Path) -> None:
    (folder / ".codecarbon.config").write_text("[codecarbon]\noutput_dir=nowhere\n")
    with pytest.raises(RuntimeError, match="nowhere"):
        open_tracker()


# ------------------------------------------------------------------------------------ the measuring thread


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def join(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes workers' accounts for which the thread measures."""
    monkeypatch.setattr(measuring, "WARM_UP_AFTER_SECONDS", 0.0)
    joined: list[Account] = []

    def made(deliver: Callable[[Columns, Any], None], **given: Any) -> Account:
        account = Account(Settings(given), LOGGER, deliver, lambda why: None)
        joined.append(account)
        account.join()
        wait_for(lambda: account.ready or account.off)
        assert account.ready
        return account

    wait_for(lambda: emissions.meter()._thread is None)
    yield made
    for account in joined:
        account.leave()
    wait_for(lambda: emissions.meter()._thread is None)


def settle(account: Account) -> None:
    done = threading.Event()
    assert account.settle(done.set)
    assert done.wait(30.0)


def begun(account: Account, attempt: int = 1) -> Use:
    use = account.use((1, attempt))
    assert use is not None
    use.begin()
    return use


def test_what_was_spent_before_the_first_reading_is_in_no_row(join: Any) -> None:
    tables: list[Columns] = []
    account = join(lambda rows, facts: tables.append(rows), measure_power_secs=600)
    settle(account)
    use = begun(account)
    time.sleep(0.3)  # it lives, and nobody measures
    account.active = 1
    settle(account)
    before = account.tracker._before
    use.end(kept=True)
    settle(account)
    spent = account.tracker._before.since(before)
    [[_, _, [seconds], *rates, _]] = tables
    cpu, gpu, ram = (rate[0] if isinstance(rate, list) else rate for rate in rates)
    assert seconds >= 0.3
    assert 0.0 <= (cpu + gpu + ram) * seconds <= (spent.cpu + spent.gpu + spent.ram) * 1.000_001


def test_a_file_that_cannot_be_written_costs_no_row(join: Any, folder: Path) -> None:
    (folder / "taken").write_text("")
    tables: list[Columns] = []
    account = join(lambda rows, facts: tables.append(rows), save_to_file=True, output_dir=str(folder / "taken"))
    account.begin()
    settle(account)
    in_a_task, in_a_thread = begun(account, 1), begun(account, 2)
    with in_a_thread.in_this_thread():
        burn(0.01)
    for use in (in_a_task, in_a_thread):
        use.end(kept=True)
    settle(account)
    attempts = [rows[1] for rows in tables]
    assert sorted(each for some in attempts for each in (some if isinstance(some, list) else [some])) == [1, 2]
    assert isinstance(account.failure, FileExistsError | NotADirectoryError)


def test_after_a_fault_in_the_thread_the_next_worker_is_measured(join: Any) -> None:
    def fails(rows: Columns, facts: Any) -> None:
        raise RuntimeError("cannot be taken")

    account = join(fails)
    account.begin()
    begun(account).end(kept=True)
    account.settle(lambda: None)
    wait_for(lambda: account.off and account.is_over)
    assert str(account.failure) == "cannot be taken"
    settle(join(lambda rows, facts: None))


def test_where_no_thread_can_be_started_energy_is_given_up_and_the_next_worker_tries_again(join: Any) -> None:
    why: list[BaseException] = []
    account = Account(Settings({}), LOGGER, lambda rows, facts: None, why.append)
    size = threading.stack_size(1 << 47)  # more than there is
    try:
        account.join()
    finally:
        threading.stack_size(size)
    assert account.off
    assert ["thread" in str(each) for each in why] == [True]
    settle(join(lambda rows, facts: None))


REENTERED = """
    import logging, sys, threading, time
    from asyncexp.emissions import Account, Settings, measuring
    measuring.WARM_UP_AFTER_SECONDS = 0.0
    def made():
        return Account(Settings({}), logging.getLogger("quiet"), lambda rows, facts: None, lambda why: print(repr(why)))
    gone, account = made(), made()
    def trace(frame, event, _):
        if frame.f_code.co_filename in (measuring.__file__, threading.__file__):
            gone.forget()
            return trace
    threading.settrace(trace)
    account.join()
    threading.settrace(None)
    while not account.ready:
        time.sleep(0.01)
    for _ in range(3):
        done = threading.Event()
        account.settle(done.set)
        done.wait()
    print("settled")
"""


def test_a_worker_may_be_collected_as_garbage_at_any_line_of_the_thread(folder: Path) -> None:
    """Its finaliser runs in whatever thread, and inside of whatever lock, that collects it."""
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REENTERED)], capture_output=True, text=True, timeout=50, cwd=folder
    )
    assert (told.stdout, told.returncode) == ("settled\n", 0), told.stderr


FORKED = """
    import logging, os, sys, threading, time
    from asyncexp.emissions import Account, Settings
    account = Account(Settings({}), logging.getLogger("quiet"), lambda rows, facts: None, lambda why: None)
    held = threading.Event()
    def holds():
        with account._meter._lock:
            held.set()
            threading.Event().wait()
    threading.Thread(target=holds, daemon=True).start()
    held.wait()
    pid = os.fork()
    if not pid:
        account.leave()
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_child_forgets_its_parents_worker_whatever_the_thread_was_at(folder: Path) -> None:
    # In a group of its own: a child that hangs is to be ended with its parent.
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKED)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
    )
    try:
        assert process.communicate(timeout=20)[0] == "7\n"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


# ------------------------------------------------------------------------------------ nothing goes outside

LISTENING = """
    import asyncio, json, os, socket, sys
    asked = []
    def hear(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            if event != "socket.connect" or arguments[0].family != socket.AF_UNIX:
                asked.append(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}")
    sys.addaudithook(hear)
    from asyncexp import Experimenter
    async def experiment(keys, results, custom):
        await asyncio.sleep(0.2)
    async def main():
        async with Experimenter("g.yml", log_file=None, log_level="WARNING") as experimenter:
            await experimenter.fill_table_from_config()
            await experimenter.execute(experiment, n_jobs=1, max_experiments=1)
            [session] = experimenter._sessions.values()
            while not session.energy._account.ready and not session.energy._account.off:
                await asyncio.sleep(0.01)
            await experimenter.execute(experiment, n_jobs=1)
            table = await experimenter.get_codecarbon_table()
            print(json.dumps([asked, int(table["energy_consumed_kw"].notna().sum()), table["offline_mode"].tolist()]))
    asyncio.run(main())
"""


def listened(folder: Path, *lines: str, **environment: str) -> tuple[list[str], int, list[bool], str]:
    """What a run asked of the network; how many rows have energy; their `offline_mode`; its stderr."""
    import json

    written(folder, *lines)
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(LISTENING)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HOME": str(folder), **environment},
        timeout=50,
    )
    assert told.returncode == 0, told.stderr
    asked, count, offline = json.loads(told.stdout)
    return asked, count, offline, told.stderr


def test_nothing_leaves_the_machine_whatever_else_the_settings_and_codecarbons_own_files_say(tmp_path: Path) -> None:
    there = "http://127.0.0.1:9/"
    (tmp_path / ".codecarbon.config").write_text(
        f"[codecarbon]\nemissions_endpoint={there}\nsave_to_api=true\nelectricitymaps_api_token=x\nsave_to_file=true\n"
    )
    asked, count, offline, stderr = listened(
        tmp_path,
        "country_iso_code: FRA",
        "save_to_api: true",
        f"emissions_endpoint: {there}",
        "electricitymaps_api_token: secret-token",
        f"api_endpoint: {there}",
        CODECARBON_SAVE_TO_PROMETHEUS="true",
        CODECARBON_CO2_SIGNAL_API_TOKEN="y",
    )
    assert asked == []
    assert (count, offline) == (1, [True, True])
    assert stderr.count("\n") == 1, stderr  # one line says what was passed over
    assert "passed over, for nothing outside is asked unless offline_mode: false" in stderr
    assert "secret-token" not in stderr
    assert not list(tmp_path.glob("*.csv"))


def test_offline_mode_false_written_out_lets_codecarbon_ask(tmp_path: Path) -> None:
    dead = "http://127.0.0.1:9"
    asked, _, offline, _ = listened(
        tmp_path, "offline_mode: false", https_proxy=dead, http_proxy=dead, HTTPS_PROXY=dead
    )
    assert asked
    assert all("127.0.0.1" in each or "169.254" in each or "metadata" in each for each in asked), asked
    assert set(offline) == {False}
