"""Names: whatever is not refused at load works in every statement, on every database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from asyncexp import ExperimentStatus, ResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import ConfigError, InvalidColumnError
from tests.contract import sql
from tests.contract.conftest import Make
from tests.studies import experimenter

# Hypothesis takes the worker's own thread, which draws its pauses from `random`, for a strategy that does.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

PIECES = [*"aZ09_$#@!?*/\\|.,:;=<>()[]{}+-~^&'\"` éßЖ日", "%s", "%", "%(x)s", ":x", "$1", "''", '""', "--", "/*", "\\'"]
RESERVED = ["select", "ORDER", "table", "user", "group", "values", "key", "index", "check", "from", "where", "null"]
OURS = [
    *("picked", "picked_id", "new", "old", "v0", "v1", "experiment_id", "attempt", "worker", "outcome", "ended"),
    *("traceback", "timestamp", "heartbeat", "lease", "requests", "role", "started", "value", "key", "now"),
]
names = st.sampled_from(RESERVED + OURS) | st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)
NAMES = st.lists(names, min_size=5, max_size=5, unique_by=str.casefold)


async def _whole_run(made: Any, target: Target, table: str, keyfield: str, field: str, log: str, column: str) -> None:
    """Everything that a study goes through, once; every statement that there is meets the names."""
    filled = await made.fill_table_with_rows([{keyfield: number, "seed": 1} for number in range(4)])
    assert filled.added == 4

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> ExperimentStatus | None:
        number = keyfields[keyfield]
        await results.process_logs({log: [{column: number}, {column: 10}]})
        await results.process_results({field: f"text {number}"})
        if number == 0:
            raise ValueError("once more")
        return ExperimentStatus.PAUSED if number == 1 and results.attempt == 1 else None

    summary = await made.execute(run, retries=1, random_order=True, max_errors=-1)
    assert (summary.done, summary.paused, summary.error, summary.retried) == (2, 1, 1, 1)
    summary = await made.execute(run, from_status="paused", where={keyfield: [1, 2]})
    assert summary.done == 1
    found = await made.get_table({keyfield: [0, 3], field: ["text 0", "text 3"]})
    assert list(found[keyfield]) == [0, 3]
    assert list(found[field]) == ["text 0", "text 3"]
    assert sorted((await made.get_logtable(log, {column: [0, 1, 2, 3]}))[column]) == [0, 1, 1, 2, 3]
    assert await made.retry_errors(where={keyfield: 0}) == 1
    assert await made.reset_experiments("done", where={keyfield: 3}) == 1
    assert await made.delete_experiments(where={keyfield: 2}) == 1
    assert await made.counts() == {"created": 2, "running": 0, "done": 1, "error": 0, "paused": 0}
    assert (await made.fill_table_from_combination(parameters={keyfield: range(5), "seed": [1]})).added == 2
    await made.migrate()
    await made.delete_table()
    assert await sql.tables(target) == set()


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@example(drawn=["picked", "picked_id", "outcome", "new", "attempt"])
@example(drawn=["new", "attempt", "new", "old", "outcome"])
@example(drawn=["old", "experiment_id", "worker", "workers", "value"])
@example(drawn=["select", "%s", "a'b", ":x", 'a"b'])
@example(drawn=["a`b; DROP TABLE x", "order by", "?", "$1", "%(x)s"])
@example(drawn=["Experiments", "Größe", "日本", "é", "ΑΒΓ"])
@given(drawn=NAMES)
async def test_a_study_with_any_names_runs_as_any_other(tmp_path: Path, target: Target, drawn: list[str]) -> None:
    table, keyfield, field, log, column = drawn
    try:
        made = experimenter(
            tmp_path,
            target,
            table=table,
            keyfields={keyfield: {"type": "INT", "index": True}, "seed": {"type": "INT"}},
            resultfields={field: "VARCHAR(40)"},
            logtables={log: {column: "INT"}},
        )
    except ConfigError:
        assume(False)
        raise
    async with made:
        await _whole_run(made, target, table, keyfield, field, log, column)


async def test_names_of_63_bytes_are_kept_whole(make: Make, target: Target) -> None:
    key, field = "k" * 63, "ß" * 31 + "x"
    table = "t" * (63 - len("_codecarbon"))
    log, column = "l" * (63 - len(table) - 2), "c" * 62 + "%"
    made = make(
        table=table,
        keyfields={key: {"type": "INT", "index": True}, "seed": {"type": "INT"}},
        resultfields={field: "VARCHAR(40)", "x" * 62 + "1": "INT", "x" * 62 + "2": "INT"},
        logtables={log: {column: "INT"}},
    )
    await _whole_run(made, target, table, key, field, log, column)


@pytest.mark.executes_nothing
async def test_names_that_differ_keep_their_case(make: Make, target: Target) -> None:
    await make(table="MixedCase", keyfields={"LearningRate": {"type": "DOUBLE"}}).create_table()
    assert "MixedCase" in await sql.tables(target)
    assert "LearningRate" in (await sql.columns(target, "MixedCase") or [])


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"keyfields": {"status": {"type": "INT"}}}, "cannot be called 'status'.*'status_2' would do"),
        ({"keyfields": {"Status": {"type": "INT"}}}, "cannot be called 'Status'"),
        ({"keyfields": {"_key_hash": {"type": "INT"}}}, "leading underscore.*'key_hash' would do"),
        ({"keyfields": {"a": {"type": "INT"}, "A": {"type": "INT"}}}, "case does not count.*would do"),
        ({"resultfields": {"kind": "INT"}}, "cannot be called 'kind'.*would do"),
        ({"resultfields": {"x" * 64: "INT"}}, "over 63 bytes long.*would do"),
        ({"resultfields": {" x": "INT"}}, "blanks at its ends.*'x' would do"),
        ({"resultfields": {"😀": "INT"}}, r"beyond U\+FFFF.*would do"),
        ({"resultfields": {"a": "INT", "a_timestamp": "INT"}, "result_timestamps": True}, "rename 'a'|would do"),
        ({"logtables": {"steps": {"experiment_id": "INT"}}}, "cannot be called 'experiment_id'.*would do"),
        ({"logtables": {"s" * 60: {"step": "INT"}}}, "over 63 bytes.*would do"),
        ({"table": "t" * 60}, "too long.*would do"),
        ({"table": "sqlite_x"}, "'x' would do"),
    ],
)
@pytest.mark.parametrize("provider", ["sqlite"])  # they are refused at load: the database is never asked
def test_impossible_names_are_refused_at_load_with_their_place_and_another(
    tmp_path: Path, target: Target, study: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        experimenter(tmp_path, target, **study)
    assert f"{tmp_path}/configuration.yml:" in str(raised.value)
    assert isinstance(raised.value, InvalidColumnError) or "table" in str(raised.value)
