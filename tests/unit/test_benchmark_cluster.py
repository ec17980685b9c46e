"""The benchmark of a cluster in a tiny form: what it says it counted is what three workers did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cluster

WORKERS = 3
INTERVAL_SECONDS = 0.5
SECONDS = 1.5


@pytest.mark.parametrize("provider", ["postgresql", "mysql"])
def test_what_three_workers_do_to_a_server(provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "cluster.json"
    [figures] = cluster.run(provider, [WORKERS], SECONDS, path, interval_seconds=INTERVAL_SECONDS)
    told = json.loads(path.read_text())
    assert told["sizes"] == [figures]
    assert told["machine"]["usable_cores"] >= 1
    screen = capsys.readouterr().out
    assert all(label in screen for _, label in cluster.SHOWN_FIGURES)

    sent = figures["beat_statements"]
    assert figures["beat_seconds"] >= SECONDS
    beats = WORKERS * figures["beat_seconds"] / INTERVAL_SECONDS
    assert beats - WORKERS <= sent["UPDATE"] <= beats + WORKERS
    assert abs(sent["COMMIT"] - sent["UPDATE"]) <= WORKERS, "one transaction a beat"
    assert figures["beats_in_one_second"] in range(1, WORKERS + 1)
    assert figures["statements_a_second"] == pytest.approx(sum(sent.values()) / figures["beat_seconds"])
    assert sent.keys() <= {"BEGIN", "SET", "COMMIT", "SELECT", "UPDATE"}, (
        "nothing but beats and looks, and none of our own"
    )

    assert figures["connections"] == 2 * WORKERS
    assert figures["connections"] <= figures["most_connections"] <= cluster.PER_WORKER * WORKERS
    assert figures["server_mb_a_connection"] > 0
    assert figures["threads_each"] >= 1
    assert figures["start_statements_each"] > 5
    assert figures["waiting_statements_a_second"] > figures["statements_a_second"]
    assert figures["claims_a_second"] == pytest.approx(WORKERS / figures["start_seconds"])
    assert figures["stop_seconds"] > 0
    assert figures["log"] == []
    for name in ("connections_left", "threads_left", "files_left", "taken_for_dead", "attempts_lost"):
        assert figures[name] == 0, name


@pytest.mark.parametrize("name", ["taken_for_dead", "attempts_lost", "workers_stopped", "worker_rows"])
def test_a_loss_makes_the_figures_worthless(name: str) -> None:
    whole = {"workers": 3, "worker_rows": 3, "workers_stopped": 3, "taken_for_dead": 0, "attempts_lost": 0}
    cluster.prove_whole(whole)
    with pytest.raises(AssertionError, match=name):
        cluster.prove_whole(whole | {name: 1})
