"""The benchmarks run in a tiny form and say what they measured; how fast that was is no test's business."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from asyncexp.db.base import Target
from benchmarks import __main__ as command
from benchmarks import crew, overview, peers, profile, study, throughput, waking
from benchmarks.places import Place
from benchmarks.rounds import Judged, Line, in_turns
from benchmarks.throughput import Size
from tests.servers import PostgresServer

ROWS = 50
TINY = command.Plan(
    names=frozenset({"S1", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S12", "S13", "S14"}),
    size=Size(rounds=2, factor=1, rows=ROWS),
    fill=ROWS,
    fill_on=("sqlite",),
    log_lines=ROWS,
    child_rows=ROWS,
    cold_rounds=1,
    table=ROWS,
    peer_rows=0,
    queues=peers.Size(1, 0, {}),
    few_rounds=1,
    sizes=(6_000,),
    sizes_on=("sqlite",),
    asleep=100,
    asleep_on=("sqlite",),
    beats=2,
    crews=(1, 2),
    crew_on=("sqlite",),
    crew_rows=500,
    waking=waking.Size(2, 1, poll_seconds=0.05),
    waking_on=("sqlite",),
    energy=ROWS,
    energy_on=("sqlite",),
)
ROUNDS = {**dict.fromkeys(("S5", "S6"), command.FILL_ROUNDS), **dict.fromkeys(("S7", "S9", "S10", "S14"), 1)}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Line], Path]:
    """All lines that need SQLite alone, and where their figures are."""
    path = tmp_path_factory.mktemp("benchmarks") / "figures" / "tiny.json"
    return command.run(TINY, ["sqlite"], path), path


def test_every_line_asked_for_has_its_figures(lines: tuple[list[Line], Path]) -> None:
    told = json.loads(lines[1].read_text())
    found = [(line["name"], line["at_once"]) for line in told["lines"]]
    throughput = [("S3", 1), ("S1", 10), ("S1", 50), ("S1", 200), ("S4", 2)]
    claims = [("S7", count) for count in (1, 50, 1, 1, 50)] * 2
    assert found == [
        *throughput,
        ("S5", None),
        ("S6", None),
        *claims,
        *[("S8", 10)] * 2,
        *[("S9", 100)] * 3,
        ("S10", 100),
        ("S12", 1),
        *[("S14", count) for count in (1, 200, 1)],
        ("S13", None),
    ]
    for line in told["lines"]:
        for side in (line["limit"], line["ours"]):
            assert len(side["rounds"]) == ROUNDS.get(line["name"], 2)
            assert line["name"] == "S9" or side["min"] > 0  # a hundred that sleep may fit in memory that is there
            assert side["min"] <= side["median"] <= side["max"]
        if line["name"] in ("S5", "S6"):
            assert len(line["memory_mb"]["rounds"]) == command.FILL_ROUNDS
            assert line["memory_mb"]["min"] >= 0
        if line["name"] == "S14":
            assert line["excess"]["of_medians"] == line["ours"]["median"] - line["limit"]["median"]
        elif line["name"] in ("S9", "S12"):
            assert line["figure"]["of_medians"] == line["ours"]["median"]
            assert line["ours"]["median"] > 0 or line["unit"] == "kB each"
        else:
            assert line["ratio"]["of_medians"] == line["ours"]["median"] / line["limit"]["median"] > 0
            assert 0 < line["ratio"]["min"] <= line["ratio"]["max"]


def test_the_figures_say_where_they_were_taken(lines: tuple[list[Line], Path]) -> None:
    told = json.loads(lines[1].read_text())
    assert told["machine"]["usable_cores"] >= 1
    assert told["versions"]["SQLite"] == sqlite3.sqlite_version
    assert {"python", "asyncexp", "aiosqlite", "commit"} <= told["versions"].keys()


def test_throughput_and_claims_are_drawn(lines: tuple[list[Line], Path]) -> None:
    for name in ("tiny.png", "tiny-growth.png"):
        assert lines[1].with_name(name).read_bytes().startswith(b"\x89PNG")


def test_a_row_that_was_not_run_makes_the_figure_worthless(tmp_path: Path) -> None:
    target = Target("sqlite", str(tmp_path / "experiments.db"))
    study.prepared(tmp_path, target, ROWS)
    with pytest.raises(AssertionError, match=f"only 0 of {ROWS} rows"):
        study.run(study.prove(target, ROWS))


def test_queues_that_are_installed_are_measured_beside_ours(postgres_server: PostgresServer) -> None:
    pytest.importorskip("pgqueuer")
    pytest.importorskip("procrastinate")
    size = peers.Size(1, 100, {"pgqueuer": (10, 50), "procrastinate": (5,), "one_that_is_not_there": (1,)})
    place = Place("postgresql", postgres_server)
    lines = list(peers.of_postgres(place, Size(rounds=1, factor=1, rows=ROWS), size))
    assert [(line.peer.split()[0], line.facts["peer_at_once"]) for line in lines] == [
        ("pgqueuer", 10),
        ("pgqueuer", 50),
        ("procrastinate", 5),
    ]
    best = max(lines[:2], key=lambda line: line.limit[0])
    assert [line for line in lines if line.reach] == [best]


def test_a_row_that_two_workers_ran_makes_the_figure_worthless() -> None:
    crew.prove_once([[1, 2], [3]], 3)
    with pytest.raises(AssertionError, match=r"more than once: \[2\]"):
        crew.prove_once([[1, 2], [2, 3]], 3)


def test_both_sides_leave_the_same_rows(tmp_path: Path) -> None:
    columns = "ID, number, kind, status, result, _attempt, machine"
    left = []
    for name, side in (("limit", throughput.bare_loop), ("ours", throughput.execution)):
        folder = tmp_path / name
        folder.mkdir()
        target = Target("sqlite", str(folder / "experiments.db"))
        study.prepared(folder, target, ROWS + 10)
        study.run(side(folder, target, 10, ROWS))
        with closing(sqlite3.connect(target.database)) as connection:
            left.append(connection.execute(f"SELECT {columns} FROM experiments ORDER BY ID").fetchall())
    assert left[0] == left[1]
    assert len(left[0]) == ROWS + 10


def test_sides_take_turns_at_going_first() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return 1.0

    in_turns(3, lambda: side("limit"), lambda: side("ours"))
    assert order == ["limit", "ours", "ours", "limit", "limit", "ours"]


@pytest.mark.parametrize(
    ("judged", "ours", "reach", "beyond", "verdict"),
    [
        ("rate", 80.0, 0.6, 0.8, "beyond"),
        ("rate", 60.0, 0.6, 0.8, "reached"),
        ("rate", 59.0, 0.6, 0.8, "below"),
        ("time", 110.0, 1.5, 1.1, "beyond"),
        ("time", 150.0, 1.5, 1.1, "reached"),
        ("time", 151.0, 1.5, 1.1, "below"),
        ("excess", 100.5, 0.6, 0.5, "beyond"),
        ("excess", 101.0, 0.6, 0.5, "below"),
        ("figure", 10.0, 50.0, 10.0, "beyond"),
        ("figure", 51.0, 50.0, 10.0, "below"),
    ],
)
def test_a_verdict_compares_with_what_is_wanted(
    judged: Judged, ours: float, reach: float, beyond: float, verdict: str
) -> None:
    line = Line("S0", "", "", [100.0], [ours], reach=reach, beyond=beyond, judged=judged)
    assert line.verdict == verdict


def test_a_rate_bought_with_memory_is_below() -> None:
    line = Line("S0", "", "", [1.0], [1.0], reach=0.6, beyond=0.8, memory_mb=[10.0, 201.0], memory_most_mb=200.0)
    assert line.verdict == "below"


def test_an_unknown_line_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "S1,S99"])
    assert "'S99' is none of S1" in capsys.readouterr().err


def test_the_profile_counts_what_goes_to_the_database(capsys: pytest.CaptureFixture[str]) -> None:
    profile.show(Place("sqlite"), 10, ROWS, lines=10_000)
    told = capsys.readouterr().out
    assert f"SQLite, 10 at once: {ROWS} experiments" in told
    assert "  transactions\n" in told
    assert "asyncexp/worker.py:" in told.partition("thread MainThread")[2]


def test_a_look_at_a_large_table_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    overview.main(["--rows", "1000", "--databases", "sqlite"])
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(overview.shapes(1_000))
    assert all(line.startswith("SQLite") and "1,000 rows" in line for line in told)
