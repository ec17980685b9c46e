"""`asyncexp export`: what is in the files when they are read back, and what is said where one cannot be written."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from asyncexp import ResultProcessor
from tests.cli.conftest import MakeShell
from tests.cli.results import BIG, MOMENT, ODD_STUDY, TREE, WORDS, files_left, run
from tests.cli.shell import Shell

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])
executes_nothing = pytest.mark.executes_nothing


@pytest.fixture
async def odd(shell_in: MakeShell) -> Shell:
    """16 rows: 12 done (4 of them NULL in every result), 4 in error."""
    shell = shell_in(**ODD_STUDY)
    await run(shell)
    return shell


# --------------------------------------------------------------------------- what is in the files


async def test_a_parquet_file_read_back_is_the_table(odd: Shell) -> None:
    odd.run("export", "out.parquet")
    table = pd.read_parquet(odd.folder / "out.parquet")
    kinds = {name: str(dtype) for name, dtype in table.dtypes.items()}
    assert len(table) == 16
    assert table["ID"].is_monotonic_increasing
    assert {name: kinds[name] for name in ("ID", "large", "accuracy", "exact", "flag", "moment", "end_date")} == {
        "ID": "Int64",
        "large": "Int64",
        "accuracy": "float64",
        "exact": "float64",
        "flag": "boolean",
        "moment": "datetime64[us]",
        "end_date": "datetime64[us]",
    }
    assert not [name for name in table if str(name).startswith("_")]
    first = table[(table["seed"] == 0) & (table["kernel"] == "rbf")].iloc[0]
    assert (first["large"], first["moment"], first["words"]) == (BIG, pd.Timestamp(MOMENT), WORDS)
    assert json.loads(first["tree"]) == TREE
    nothing = table[table["seed"] == 2]
    assert nothing[["large", "accuracy", "exact", "flag", "moment", "words", "tree", "never"]].isna().all().all()
    assert table["never"].dtype == "float64"


async def test_a_csv_file_read_back_has_the_values(odd: Shell) -> None:
    done = odd.run("export", "out.csv", "--status", "done")
    assert done.stdout == "out.csv: 12 rows, 19 columns\n"
    table = pd.read_csv(odd.folder / "out.csv", parse_dates=["moment", "start_date"], dtype={"large": "Int64"})
    assert set(table["status"]) == {"done"}
    first = table[table["seed"] == 0].iloc[0]
    assert (first["large"], first["moment"], first["words"]) == (BIG, pd.Timestamp(MOMENT), WORDS)
    assert (first["accuracy"], first["exact"], first["flag"]) == (0.5, 1.25, False)
    assert json.loads(first["tree"]) == TREE
    assert table[table["seed"] == 2]["words"].isna().all()
    assert str(table["start_date"].dtype).startswith("datetime64")


async def test_an_excel_file_read_back_has_the_values_and_no_formula(odd: Shell) -> None:
    odd.run("export", "out.xlsx")
    table = pd.read_excel(odd.folder / "out.xlsx", dtype={"large": str, "flag": "boolean"})
    first = table[table["seed"] == 0].iloc[0]
    assert first["words"] == WORDS
    assert first["large"] == str(BIG), "a number of 16 digits would be rounded"
    assert abs(first["moment"] - pd.Timestamp(MOMENT)) < pd.Timedelta(milliseconds=1)
    assert first["accuracy"] == 0.5
    assert table["flag"].dropna().tolist() == [False, False, True, True] * 2
    assert json.loads(first["tree"]) == TREE
    assert table[table["seed"] == 2]["accuracy"].isna().all()


async def test_a_json_file_is_a_list_of_rows(odd: Shell) -> None:
    odd.run("export", "out.json", "--columns", "seed,tree,moment,large,flag,accuracy,words,error")
    rows: list[dict[str, Any]] = json.loads((odd.folder / "out.json").read_text())
    assert len(rows) == 16
    assert list(rows[0]) == ["seed", "tree", "moment", "large", "flag", "accuracy", "words", "error"]
    first, null, failed = (next(row for row in rows if row["seed"] == seed) for seed in (0, 2, 3))
    assert first == {
        "seed": 0,
        "tree": TREE,
        "moment": "2024-05-06T07:08:09.123456Z",
        "large": BIG,
        "flag": False,
        "accuracy": 0.5,
        "words": WORDS,
        "error": None,
    }
    assert null == dict.fromkeys(first) | {"seed": 2}
    assert failed["error"].endswith("ValueError: singular\n")


async def test_rows_are_chosen_by_keyfields_results_and_status(odd: Shell) -> None:
    """Also of a log table, by its own columns and by those of the experiments."""
    chosen = odd.json("export", "a.csv", "--where", "kernel=rbf", "--where", "seed=1", "--where", "seed=3")
    assert chosen == {"file": "a.csv", "rows": 4, "columns": 19}
    assert odd.json("export", "b.csv", "--status", "error,done")["rows"] == 16
    assert odd.json("export", "c.csv", "--where", "flag=true")["rows"] == 4
    assert odd.json("export", "d.csv", "--log", "steps")["rows"] == 48
    narrowed = ("--where", "kernel=rbf", "--where", "step=2", "--status", "done")
    assert odd.json("export", "e.csv", "--log", "steps", *narrowed)["rows"] == 6
    lines = pd.read_csv(odd.folder / "e.csv")
    assert list(lines) == ["ID", "experiment_id", "kernel", "seed", "c", "timestamp", "step", "loss", "seed_used"]
    assert set(lines["kernel"]) == {"rbf"}
    assert (lines["seed"] == lines["seed_used"]).all()


@sqlite_only
async def test_lines_of_many_experiments_are_sorted_out_as_those_of_few(
    odd: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncexp.cli import source
    from asyncexp.cli.place import Place

    place = Place(odd.folder / "config" / "experiment_configuration.yml")
    chosen = source.Source(place, "steps", where=("kernel=rbf", "step=2"), status=("done",))
    few = await chosen.read(["loss"])
    monkeypatch.setattr(source, "FEW", 0)
    assert (await chosen.read(["loss"])).equals(few)
    assert len(few) == 6


async def test_groups_have_the_means_of_what_is_there(odd: Shell) -> None:
    told = odd.run(
        *("export", "groups.parquet", "--group-by", "kernel,c", "--mean", "accuracy,flag", "--std", "accuracy"),
        *("--min", "moment", "--max", "large", "--sum", "exact", "--median", "duration", "--count"),
    )
    assert "accuracy: 8 rows without a value left out" in told.stderr
    table = pd.read_parquet(odd.folder / "groups.parquet")
    assert list(table) == [
        *("kernel", "c", "accuracy_mean", "accuracy_std", "flag_mean", "duration_median", "moment_min"),
        *("large_max", "exact_sum", "count"),
    ]
    assert table[["kernel", "c"]].values.tolist() == [
        *(["50% of x_1 & y", 0.01], ["50% of x_1 & y", 100]),
        *(["rbf", 0.01], ["rbf", 100]),
    ]
    row = table.iloc[0]
    assert row["accuracy_mean"] == pytest.approx(0.55)
    assert row["accuracy_std"] == pytest.approx(0.1 / math.sqrt(2))
    assert (row["flag_mean"], row["moment_min"], row["large_max"]) == (0.5, pd.Timestamp(MOMENT), BIG)
    assert (row["exact_sum"], row["count"]) == (2.5, 4)
    assert 0 <= row["duration_median"] < 60


# ------------------------------------------------------------------------------------- on paper


@sqlite_only
async def test_latex_is_escaped_and_has_mean_and_deviation_in_one_column(odd: Shell) -> None:
    odd.run("export", "t.tex", "--group-by", "kernel,c", "--mean", "accuracy,never", "--std", "accuracy", "--count")
    assert (odd.folder / "t.tex").read_text().splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"kernel & c & accuracy & never\_mean & count \\",
        r"\midrule",
        r"50\% of x\_1 \& y & 0.01 & 0.5500 $\pm$ 0.0707 & -- & 4 \\",
        r"50\% of x\_1 \& y & 100 & 0.5500 $\pm$ 0.0707 & -- & 4 \\",
        r"rbf & 0.01 & 0.5500 $\pm$ 0.0707 & -- & 4 \\",
        r"rbf & 100 & 0.5500 $\pm$ 0.0707 & -- & 4 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    odd.run("export", "t.md", "--group-by", "kernel", "--mean", "accuracy", "--std", "accuracy", "--decimals", "2")
    assert (odd.folder / "t.md").read_text().splitlines() == [
        "| kernel | accuracy |",
        "| --- | ---: |",
        "| 50% of x\\_1 & y | 0.55 ± 0.06 |",
        "| rbf | 0.55 ± 0.06 |",
    ]


@executes_nothing
def test_latex_takes_every_character_and_number(tmp_path: Path) -> None:
    from asyncexp.cli import formats

    rows = pd.DataFrame(
        {"a": ["[x]", '"q" ~^\\<>|{}#', None], "n": [-1.5e-7, 2e-5, None], "i": pd.array([-1, 2, None], "Int64")}
    )
    formats.write(formats.Content(rows, exact=frozenset("i")), str(tmp_path / "t.tex"))
    assert (tmp_path / "t.tex").read_text().splitlines()[5:8] == [
        r"{}[x] & $-1.500 \times 10^{-7}$ & $-1$ \\",
        r"\char34{}q\char34{} \textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\textgreater{}"
        r"\textbar{}\{\}\# & $2.000 \times 10^{-5}$ & 2 \\",
        r"-- & -- & -- \\",
    ]


# ---------------------------------------------------------------------------------- standard output


@sqlite_only
async def test_a_dash_writes_csv_and_nothing_else_to_standard_output(odd: Shell) -> None:
    told = odd.run("export", "-", "--columns", "seed,accuracy", "--where", "kernel=rbf", "--where", "c=100")
    assert told.stdout.splitlines() == ["seed,accuracy", "0,0.5", "1,0.6", "2,", "3,"]
    assert not told.stderr
    assert odd.json("export", "-", "--columns", "seed", "--where", "seed=0", "--where", "c=100") == [{"seed": 0}] * 2


@sqlite_only
async def test_bookkeeping_comes_when_it_is_asked_for(odd: Shell) -> None:
    odd.run("export", "out.csv", "--bookkeeping")
    assert {"_attempt", "_worker"} <= set(pd.read_csv(odd.folder / "out.csv"))


@executes_nothing
def test_a_table_without_rows_is_a_file_with_columns(tmp_path: Path) -> None:
    from asyncexp.cli import formats
    from asyncexp.cli.groups import Wanted, summarised

    none = pd.DataFrame({"c": pd.array([], "Int64"), "seed": pd.array([], "float64"), "tree": pd.array([], "object")})
    groups = summarised(none, Wanted(("c",), {"seed": ["mean"]}, count=True))
    for ending in formats.WRITERS:
        formats.write(formats.Content(none, frozenset({"tree"})), str(tmp_path / f"rows{ending}"))
        formats.write(formats.Content(groups), str(tmp_path / f"groups{ending}"))
    assert list(pd.read_parquet(tmp_path / "rows.parquet")) == ["c", "seed", "tree"]
    assert list(pd.read_csv(tmp_path / "groups.csv")) == ["c", "seed_mean", "count"]
    assert json.loads((tmp_path / "rows.json").read_text()) == []


@sqlite_only
async def test_a_column_of_ones_own_called_duration_is_that_column(shell_in: MakeShell) -> None:
    keyfields = {"duration": {"type": "INT", "values": [3, 4]}}
    shell = shell_in(keyfields=keyfields, resultfields={}, logtables={"steps": {"duration": "DOUBLE"}})

    async def log(_: dict[str, Any], result_processor: ResultProcessor, __: dict[str, Any]) -> None:
        await result_processor.process_logs({"steps": {"duration": 0.5}})

    await run(shell, log)
    assert shell.run("export", "-", "--columns", "duration").stdout.split() == ["duration", "3", "4"]
    assert shell.run("export", "-", "--mean", "duration").stdout.split() == ["duration_mean", "3.5"]
    assert shell.run("export", "-", "--log", "steps", "--mean", "duration").stdout.split() == ["duration_mean", "0.5"]


# ------------------------------------------------------------------------------- whole or not at all


@sqlite_only
async def test_a_file_is_replaced_whole_with_its_mode_and_through_a_link(odd: Shell) -> None:
    real = odd.write("real.csv", "old")
    real.chmod(0o640)
    (odd.folder / "out.csv").symlink_to("real.csv")
    before = files_left(odd.folder)
    odd.run("export", "out.csv", "--where", "seed=0")
    assert (odd.folder / "out.csv").is_symlink()
    assert len(pd.read_csv(real)) == 4
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert files_left(odd.folder) == before
    odd.run("export", "new.csv")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((odd.folder / "new.csv").stat().st_mode) == 0o666 & ~mask


@sqlite_only
async def test_what_fails_while_it_is_written_leaves_the_old_file(odd: Shell) -> None:
    kept = odd.write("out.xlsx", "old")
    broken = odd.write(
        "broken/openpyxl/__init__.py", "class Workbook:\n    def __init__(self, **_): raise OSError(28, 'full')"
    )
    odd.write("broken/openpyxl/cell/__init__.py", "WriteOnlyCell = None")
    odd.write("broken/openpyxl/styles.py", "Font = None")
    before = files_left(odd.folder)
    told = odd.run("export", "out.xlsx", code=1, PYTHONPATH=_first(broken.parents[1]))
    assert told.stderr == f"error: {kept} was not written: full\n"
    assert kept.read_text() == "old"
    assert files_left(odd.folder) == before


def _first(folder: Path) -> str:
    return os.pathsep.join([str(folder), str(Path(__file__).parents[2])])


# -------------------------------------------------------------------------------------- bad input


@sqlite_only
@executes_nothing
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("out.xsl",), 2, "out.xsl: the ending says the format, one of .csv, .parquet, .xlsx, .json, .tex, .md"),
        (("nowhere/out.csv",), 2, "nowhere/out.csv: there is no folder "),
        (("out.csv", "--columns", "ID,acuracy"), 2, "--columns: no column 'acuracy'; did you mean 'accuracy'?"),
        (("out.csv", "--columns", "loss"), 2, "no column 'loss'; log table 'steps' has it: add --log steps"),
        (("out.csv", "--columns", "emissions_kg"), 2, "it is one of the energy: add --energy"),
        (("out.csv", "--log", "step"), 2, "--log: no log table 'step'; did you mean 'steps'?"),
        (("out.csv", "--log", "steps", "--energy"), 2, "--log and --energy: one of them"),
        (("out.csv", "--status", "don"), 2, "--status: no status 'don'; did you mean 'done'?"),
        (("out.csv", "--where", "kernal=rbf"), 2, "--where: no column 'kernal'; did you mean 'kernel'?"),
        (("out.csv", "--group-by", "c", "--columns", "c"), 2, "--columns and --bookkeeping are for rows"),
    ],
)
async def test_a_wrong_word_is_a_sentence_before_anything_is_written(
    shell_in: MakeShell, words: tuple[str, ...], code: int, said: str
) -> None:
    shell = shell_in(**ODD_STUDY)
    before = files_left(shell.folder)
    told = shell.run("export", *words, code=code)
    assert told.stderr.startswith("error: ")
    assert said in told.stderr
    assert told.stderr.count("\n") == 1
    assert files_left(shell.folder) == before


@sqlite_only
async def test_a_mean_of_words_is_refused(odd: Shell) -> None:
    told = odd.run("export", "out.csv", "--mean", "words", code=2)
    assert told.stderr == "error: --mean words: it holds no numbers; --min, --max and --count take any column\n"
    told = odd.run("export", "out.csv", "--max", "tree", code=2)
    assert told.stderr == "error: --max tree: its values have no order\n"


@sqlite_only
@executes_nothing
async def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(shell: Shell) -> None:
    stub = shell.write("without/pyarrow.py", "raise ModuleNotFoundError(\"No module named 'pyarrow'\", name='pyarrow')")
    told = shell.run("export", "out.parquet", code=1, PYTHONPATH=_first(stub.parent))
    assert "pip install 'asyncexp[files]'" in told.stderr
    assert told.stderr.count("\n") == 1


@executes_nothing
def test_excel_has_a_limit_that_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from asyncexp.cli import formats
    from asyncexp.cli.codes import Refused

    monkeypatch.setattr(formats, "EXCEL_ROWS", 4)
    formats.write(formats.Content(pd.DataFrame({"a": range(3)})), str(tmp_path / "fits.xlsx"))
    with pytest.raises(Refused, match=r"4 rows: Excel takes 3 below the heading"):
        formats.write(formats.Content(pd.DataFrame({"a": range(4)})), str(tmp_path / "over.xlsx"))
    assert [path.name for path in tmp_path.iterdir()] == ["fits.xlsx"]


@executes_nothing
def test_excel_keeps_old_dates_and_cuts_long_texts(tmp_path: Path) -> None:
    from asyncexp.cli import formats

    frame = pd.DataFrame({"text": ["x" * 40_000, "a\x00\x0bb"], "when": pd.to_datetime(["1066-10-14", "2024-01-01"])})
    content = formats.Content(frame)
    formats.write(content, str(tmp_path / "odd.xlsx"))
    table = pd.read_excel(tmp_path / "odd.xlsx")
    assert table["text"].map(len).tolist() == [32_767, 4]
    assert table["when"].map(str).tolist() == ["1066-10-14 00:00:00", "2024-01-01 00:00:00"]
    assert content.remarks == ["1 text cut at 32,767 characters, which is Excel's limit"]
