"""Every example runs as a user would run it, twice, in a copy of its folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

from tests.servers import Server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MADE = shutil.ignore_patterns("*.db*", "*.log", "*.csv", "*.png", "__pycache__")


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one example, as it is in the repository."""
    return Path(shutil.copytree(EXAMPLES / request.param, tmp_path / request.param, ignore=MADE))


def start(
    folder: Path, cwd: Path | None = None, script: str = "run.py", stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Starts a script, by default from elsewhere, without a screen."""
    hidden = ("DISPLAY", "MPLBACKEND", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        [sys.executable, "-W", "default::ResourceWarning", folder / script],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=cwd or folder.parent,
        env={**kept, "PYTHONPATH": str(ROOT)},
    )


def run(folder: Path, cwd: Path | None = None, script: str = "run.py") -> tuple[str, str]:
    """What a script wrote to stdout and stderr; it must end well."""
    with start(folder, cwd, script) as child:
        try:
            out, err = child.communicate(timeout=350)
        finally:
            child.kill()
    assert child.returncode == 0, out + err
    assert "Traceback" not in err
    assert "Warning" not in err
    return out, err


def statuses(database: Path, table: str) -> dict[str, int]:
    with sqlite3.connect(database) as connection:
        found = connection.execute(f'SELECT status, COUNT(*) FROM "{table}" GROUP BY status').fetchall()
    connection.close()
    return dict(found)


def check_ignored(folder: Path) -> None:
    """What a run leaves behind is ignored by git: a checkout stays clean."""
    made = {path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file()}
    tracked = subprocess.run(["git", "ls-files", "."], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    new = [str(path) for path in made if str(path) not in tracked.stdout.split("\n")]
    ignored = subprocess.run(["git", "check-ignore", *new], cwd=EXAMPLES, capture_output=True, text=True)
    assert sorted(ignored.stdout.split()) == sorted(new)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("folder", ["svm"], indirect=True)
def test_svm(folder: Path) -> None:
    out, err = run(folder)
    assert "Experiments: 240 added, 0 were there already." in out
    assert "Ran: 240 done, 0 failed" in out
    assert "240 experiments, 1200 folds in the log table." in out
    for dataset in ("breast_cancer", "digits", "iris", "wine"):
        assert re.search(rf"{dataset} +│( +0\.\d\d\d ± 0\.\d\d\d │){{3}}", out)
    assert re.search(r"^progress: \d+ done, 0 failed, .*\d+ left, .*/(s|min), ETA \d", err, re.MULTILINE)
    assert "progress: 240 done, 0 failed, 0 left" in err

    table = pd.read_csv(folder / "results.csv")
    check_results(table)
    check_picture(folder / "accuracy.png")
    check_ignored(folder)

    again, err = run(folder)
    assert "Experiments: 0 added, 240 were there already." in again
    assert "Nothing to do: every experiment has been run." in again
    assert again[again.index("┏") :] == out[out.index("┏") :]
    assert err == ""
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), table)


def check_results(table: pd.DataFrame) -> None:
    assert len(table) == 240
    assert (table["status"] == "done").all()
    assert not table.duplicated(["dataset", "kernel", "C", "seed"]).any()
    assert table["test_accuracy"].between(0.05, 1.0).all()
    assert table.groupby("dataset")["test_accuracy"].max().min() > 0.95
    assert table["end_date"].notna().all()


def check_picture(path: Path) -> None:
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (1200, 1600)
    assert 0.02 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.5  # neither blank nor black


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("folder", ["async_calls"], indirect=True)
def test_async_calls(folder: Path) -> None:
    out, _ = run(folder)
    assert "Experiments: 3000 added, 0 were there already." in out
    assert re.search(r"^Ran: (2999|3000) done, [01] failed, \d+ tried again\.$", out, re.MULTILINE)
    took = re.search(r"^Took (\S+) s; one after another it would have been (\d+) s\.$", out, re.MULTILINE)
    assert took
    assert float(took[1]) * 20 < float(took[2])
    check_ignored(folder)

    again, err = run(folder)
    assert "Experiments: 0 added, 3000 were there already." in again
    assert "Nothing to do: every experiment has been run." in again
    assert err == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("folder", ["async_calls"], indirect=True)
def test_a_stopped_example_goes_on_where_it_was(folder: Path) -> None:
    with start(folder, stderr=subprocess.STDOUT) as child:  # one pipe: what it prints must come in order
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "Experiments: 3000 added, 0 were there already.\n"
            assert child.stdout.readline().startswith("progress: ")
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=120)
        finally:
            child.kill()
    assert child.returncode == 1
    assert out.splitlines()[-1] == "Stopped by SIGINT. Start it again to go on."
    before = statuses(folder / "async_calls.db", "calls")
    assert before["created"] > 0
    assert before["done"] > 0
    assert "running" not in before

    out, _ = run(folder)
    after = statuses(folder / "async_calls.db", "calls")
    assert f"Ran: {after['done'] - before['done']} done" in out
    assert after["done"] + after.get("error", 0) == 3000


def code(document: Path, language: str) -> list[str]:
    """The blocks of code of a page."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


README = ROOT / "README.md"
FIXED = ["creation_date", "status", "start_date", "name", "machine", "end_date", "error"]


def block(word: str) -> str:
    """The README's one block of Python with that word."""
    [found] = [text for text in code(README, "python") if word in text]
    return found


def as_the_readme_says(folder: Path) -> Path:
    """A study of the README's ten lines; where its credentials go."""
    (folder / "config").mkdir()
    (folder / "config" / "experiment_configuration.yml").write_text(code(README, "yaml")[0])
    (folder / "run.py").write_text(code(README, "python")[0])
    return folder / "config" / "database_credentials.yml"


def test_the_ten_lines_of_the_readme(tmp_path: Path) -> None:
    as_the_readme_says(tmp_path)
    out, err = run(tmp_path, tmp_path)
    assert "done=60, error=0" in out
    means = dict(re.findall(r"^(\d+) +20 +(3\.\d+)", out, re.MULTILINE))
    assert means.keys() == {"1000", "10000", "100000"}
    assert float(means["100000"]) == pytest.approx(3.1416, abs=0.01)
    assert "60 rows successfully added" in err
    assert "60 rows successfully added" in (tmp_path / "py-experimenter.log").read_text()
    assert statuses(tmp_path / "study.db", "pi") == {"done": 60}
    again, _ = run(tmp_path, tmp_path)
    assert "done=0, error=0" in again
    assert again.splitlines()[-4:] == out.splitlines()[-4:]
    (tmp_path / "afterwards.py").write_text(outside_of_a_notebook(block("to_csv")))
    run(tmp_path, tmp_path, "afterwards.py")
    table = pd.read_csv(tmp_path / "pi.csv")
    assert len(table) == 60
    assert [*table.columns] == ["ID", "samples", "seed", *FIXED[:5], "estimate", *FIXED[5:]]


def outside_of_a_notebook(cell: str) -> str:
    """The same as a script, without what needs a further package."""
    lines = [line for line in cell.splitlines() if "jinja2" not in line]
    head = ["import asyncio", "from asyncexp import Experimenter", "async def main():"]
    return "\n".join([*head, *(f"    {line}" for line in lines), "asyncio.run(main())", ""])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with nobody and nothing of the README's on it, before and after."""
    found: Server = request.getfixturevalue(request.param)
    yield found
    found.drop("study")
    found.sql("DROP USER ada")


@pytest.mark.parametrize("server", ["postgres_server", "mariadb_server"], indirect=True)
def test_the_readme_on_a_server(tmp_path: Path, server: Server) -> None:
    credentials = as_the_readme_says(tmp_path)
    replace(tmp_path / "config" / "experiment_configuration.yml", "provider: sqlite", f"provider: {server.provider}")
    credentials.write_text(code(README, "yaml")[2])
    replace(credentials, "db.example.org", "127.0.0.1")
    replace(credentials, "port: 5432", f"port: {server.port}")
    for statement in statements(server):
        server.sql(statement)
    (tmp_path / "make.py").write_text(block("create_database=True"))

    credentials.chmod(0o644)
    with start(tmp_path, tmp_path) as child:
        _, err = child.communicate(timeout=120)
    assert child.returncode == 1
    assert "chmod 600" in err.splitlines()[-1]

    credentials.chmod(0o600)
    if server.provider == "mysql":  # the README's grant there, its role on PostgreSQL not
        run(tmp_path, tmp_path, "make.py")
    out, _ = run(tmp_path, tmp_path)
    assert "done=60, error=0" in out
    assert "done=0, error=0" in run(tmp_path, tmp_path)[0]


def statements(server: Server) -> list[str]:
    """What the README's administrator says, to PostgreSQL first, then to MySQL."""
    page = code(README, "sql")[0 if server.provider == "postgresql" else 1]
    return [line for line in page.split("\n") if line]


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "docs/index.md",
        "docs/configuration.md",
        "docs/guarantees.md",
        "docs/migrating.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_the_index_links_every_page_and_example() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    examples = {f"../examples/{run.parent.name}/run.py" for run in EXAMPLES.glob("*/run.py")}
    assert [link for link in sorted(pages | examples) if f"]({link})" not in index] == []
