"""What notebooks show, in a real kernel: a bar that ends with the last state, and objects as small tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter, Summary
from asyncexp.db.base import Target
from tests.studies import experimenter

ROOT = Path(__file__).parents[2]
EXECUTE = """
import json, sys
import nbformat
from nbclient import NotebookClient

updates = []


class Client(NotebookClient):
    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] in ("display_data", "update_display_data"):
            updates.append([cell_index, msg["msg_type"], msg["content"]["data"].get("text/plain", "")])
        return super().process_message(msg, cell, cell_index)


cells = [nbformat.v4.new_code_cell(text) for text in json.loads(sys.argv[1])]
notebook = nbformat.v4.new_notebook(cells=cells)
Client(notebook, timeout=120, kernel_name="python3").execute()
outputs = [[dict(output) for output in cell.outputs] for cell in notebook.cells]
print(json.dumps({"outputs": outputs, "updates": updates}))
"""
BEGIN = """
import asyncio
from asyncexp import Experimenter

async def work(keys, results, custom):
    print("works on", keys["number"])
    await asyncio.sleep(0.5)
    if keys["number"] == 4:
        raise ValueError("<b>four</b>")

experimenter = Experimenter("configuration.yml", use_codecarbon=False, log_level="ERROR", log_file=None)
await experimenter.fill_table_from_config()
"""


@pytest.fixture
def folder(tmp_path: Path, sqlite_target: Target) -> Path:
    experimenter(tmp_path, sqlite_target, n_jobs=5)
    return tmp_path


def notebook(folder: Path, *cells: str) -> dict[str, Any]:
    """What its cells show, and every state on the way there."""
    own = {name: str(folder / name) for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, json.dumps(cells)],
        cwd=folder,
        env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_cell_shows_a_bar_and_the_summary(folder: Path) -> None:
    shown = notebook(folder, BEGIN, "await experimenter.execute(work)", "await experimenter.aclose(); experimenter")
    first, ran, last = shown["outputs"]
    bars = [each for each in ran if each["output_type"] == "display_data"]
    assert len(bars) == 1, "one bar, painted anew"
    assert bars[0]["data"]["text/plain"].startswith("8 done, 2 failed, 0 left, ")
    assert " in 0:0" in bars[0]["data"]["text/plain"]
    assert "width:100.0%" in bars[0]["data"]["text/html"]
    assert "".join(each["text"] for each in ran if each["output_type"] == "stream").count("works on") == 10
    [result] = [each for each in ran if each["output_type"] == "execute_result"]
    assert "&lt;b&gt;four&lt;/b&gt;" in result["data"]["text/html"]
    assert "8" in result["data"]["text/html"]
    assert not [each for each in first if each["output_type"] == "display_data"]
    assert "Experimenter of table experiments" in last[-1]["data"]["text/html"]
    states = [text for _, kind, text in shown["updates"] if kind == "update_display_data"]
    assert any("5 running" in text for text in states)
    assert len(states) < 20, "a few a second"


def test_a_bar_stays_in_its_own_cell_while_others_are_run(folder: Path) -> None:
    shown = notebook(
        folder,
        BEGIN,
        "task = asyncio.create_task(experimenter.execute(work))\n"
        "while not experimenter.snapshot().running:\n    await asyncio.sleep(0.01)",
        "summary = await task",
        "await experimenter.aclose()",
    )
    bars = [[each for each in cell if each["output_type"] == "display_data"] for cell in shown["outputs"]]
    assert [len(each) for each in bars] == [0, 1, 0, 0]
    assert bars[1][0]["data"]["text/plain"].startswith("8 done, 2 failed")


def test_the_blocking_class_shows_one_too_and_false_none(folder: Path) -> None:
    shown = notebook(
        folder,
        "from asyncexp.sync import PyExperimenter\n"
        "def work(keys, results, custom):\n    pass\n"
        "experimenter = PyExperimenter('configuration.yml', use_codecarbon=False, log_level='ERROR', log_file=None)\n"
        "experimenter.fill_table_from_config()",
        "experimenter.execute(work, max_experiments=3, progress=False)",
        "experimenter.execute(work, pool='task')",
        "experimenter.close(); experimenter",
    )
    bars = [[each for each in cell if each["output_type"] == "display_data"] for cell in shown["outputs"]]
    assert [len(each) for each in bars] == [0, 0, 1, 0]
    assert bars[2][0]["data"]["text/plain"].startswith("7 done, 0 failed, 0 left")
    assert "table experiments" in shown["outputs"][3][-1]["data"]["text/html"]


def test_what_users_wrote_is_no_markup(folder: Path) -> None:
    summary = Summary(error=1, seconds=1.0, errors=("ValueError: <script>alert(1)</script>",))
    assert "<script>" not in summary._repr_html_()
    assert "&lt;script&gt;" in summary._repr_html_()
    shown = Experimenter(folder / "configuration.yml", use_codecarbon=False, log_file=None, table_name="a<b")
    assert "a&lt;b" in shown._repr_html_()
