"""Makes `docs/screens/*.svg`, pictures of real screens of a real study: `python -m docs.cli_screens`, in a minute."""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

from tests.cli.shell import COMMAND, Shell, Terminal

FOLDER = Path(__file__).parent / "screens"
COLUMNS, ROWS = 100, 26
SETTLED_SECONDS = 0.5
"""A screen that is painted five times a second is looked at between two paintings."""
CONFIGURATION = """\
PY_EXPERIMENTER:
  n_jobs: 4
  Database:
    provider: sqlite
    database: study
    table:
      name: kernels
      keyfields:
        kernel: {type: VARCHAR(10), values: [linear, poly, rbf]}
        C: {type: DOUBLE, values: [0.1, 1, 10, 100]}
        seed: {type: INT, values: {start: 0, stop: 5}}
      resultfields:
        accuracy: DOUBLE
    logtables:
      epochs: {epoch: INT, loss: DOUBLE}
  Execution: {heartbeat_interval: 1, lease: 10}
"""
EXPERIMENT = """\
import random
import time


def train(keyfields, result_processor, custom_fields):
    draw = random.Random(str(keyfields))
    skill = {"linear": 0.82, "poly": 0.88, "rbf": 0.93}[keyfields["kernel"]]
    if keyfields["kernel"] == "poly" and keyfields["C"] == 100:
        raise ValueError(f"no convergence for C={keyfields['C']:g}")
    for epoch in range(10):
        time.sleep(draw.uniform(0.01, 0.12))
        result_processor.heartbeat(epoch / 10, f"epoch {epoch} of 10")
        loss = 1 / (1 + epoch) + draw.uniform(0, 0.05)
        result_processor.process_logs({"epochs": {"epoch": epoch, "loss": loss}})
    result_processor.process_results({"accuracy": skill + draw.gauss(0, 0.02)})
"""
AFTER = (
    ("workers", ("workers", "--all")),
    ("show", ("show", "7")),
    ("errors", ("errors",)),
    ("logs", ("logs", "epochs", "7")),
    ("check", ("check", "experiment.py:train")),
    ("plot", ("plot", "accuracy", "--by", "kernel")),
)
"""Pictures of what is there when all is done, and the commands that they show."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with _study() as shell:
        _picture("fill", shell, ("fill", "--dry-run"))
        shell.run("fill")
        running = shell.terminal("run", "experiment.py:train", columns=COLUMNS, rows=ROWS)
        running.wait_for("no convergence")
        running.wait_for("lease")  # the screen's last line
        time.sleep(SETTLED_SECONDS)
        _save("run", "asyncexp run experiment.py:train", running)
        _picture("status", shell, ("status",))
        running.end(code=1)
        for name, words in AFTER:
            _picture(name, shell, words)


@contextmanager
def _study() -> Iterator[Shell]:
    """In a folder whose name may be seen in the pictures."""
    folder = Path(tempfile.gettempdir()) / "kernels"
    shutil.rmtree(folder, ignore_errors=True)
    shell = Shell(folder)
    try:
        shell.write("config/experiment_configuration.yml", CONFIGURATION)
        shell.write("experiment.py", EXPERIMENT)
        yield shell
    finally:
        shell.close()
        shutil.rmtree(folder)


def _picture(name: str, shell: Shell, words: Sequence[str]) -> None:
    terminal = shell.terminal(*words, columns=COLUMNS, rows=60)
    terminal.end(code=None)
    _save(name, f"asyncexp {' '.join(words)}", terminal)


def _save(name: str, title: str, terminal: Terminal) -> None:
    lines = [_without_interpreter(line) for line in terminal.cells()]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(_text(line), soft_wrap=True)
    form = re.sub(r"@font-face\s*{{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # fonts from elsewhere
    (FOLDER / f"{name}.svg").write_text(console.export_svg(title=title, code_format=form, unique_id=name))


def _without_interpreter(cells: list[Any]) -> list[Any]:
    """How a command was started here is no one else's business: `asyncexp` it is for those who installed it."""
    started, shown = " ".join(COMMAND), COMMAND[-1]
    at = "".join(cell.data for cell in cells).find(started)
    return cells if at < 0 else cells[:at] + cells[at + len(started) - len(shown) :]


def _text(cells: Sequence[Any]) -> Text:
    text = Text()
    for style, alike in groupby(cells, _style):
        text.append("".join(cell.data for cell in alike), style)
    text.rstrip()
    return text


def _style(cell: Any) -> Style:
    return Style(color=_colour(cell.fg), bgcolor=_colour(cell.bg), bold=cell.bold, underline=cell.underscore)


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return {"brown": "yellow"}.get(name, name.replace("bright", "bright_"))


if __name__ == "__main__":
    main()
