from __future__ import annotations

from typing import Any

from asyncexp import ResultProcessor
from tests.contract.conftest import Make


async def test_every_row_runs_once_with_its_result(make: Make) -> None:
    experimenter = make()
    filled = await experimenter.fill_table_from_config()
    assert (filled.added, filled.existed) == (10, 0)

    async def run(keyfields: dict[str, Any], results: ResultProcessor, custom: dict[str, Any]) -> None:
        await results.process_logs({"steps": [{"step": 1, "note": "x"}, {"step": 2}]})
        await results.process_results({"result": keyfields["number"] * 2, "text": keyfields["kind"]})

    summary = await experimenter.execute(run)
    assert summary.done == 10
    table = await experimenter.get_table()
    assert list(table["result"]) == [2.0 * n for n in table["number"]]
    assert list(table["text"]) == list(table["kind"])
    logs = await experimenter.get_logtable("steps")
    assert len(logs) == 20
    again = await experimenter.fill_table_from_config()
    assert (again.added, again.existed) == (0, 10)
