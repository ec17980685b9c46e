"""Everything that can be wrong in a configuration, each with file, line, column and a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncexp import config
from asyncexp.config.names import FIXED_COLUMNS, MAX_BYTES
from asyncexp.errors import (
    ConfigError,
    InvalidColumnError,
    InvalidConfigError,
    InvalidLogtableError,
    InvalidValuesInConfiguration,
)

BASE = """\
PY_EXPERIMENTER:
  n_jobs: 4
  Database:
    provider: sqlite
    database: study
    table:
      name: runs
      keyfields:
        seed: {type: int, values: [1, 2]}
      resultfields:
        acc: double
    logtables:
      epochs: {loss: DOUBLE}
"""


def fail(folder: Path, content: str | bytes) -> ConfigError:
    file = folder / "g.yml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        config.load(file, environment={})
    return caught.value


def check(folder: Path, content: str | bytes, kind: type[ConfigError], place: str, said: str) -> None:
    error = fail(folder, content)
    assert type(error) is kind
    assert str(error).startswith(f"{folder}/g.yml:{place}: ")
    assert said in str(error)
    assert str(error).count("\n") == 0


INT = "type: int, values: [1, 2]"
CUT = 'within { } YAML cuts this at the comma; put it in quotes: "NUMERIC(6,2)"'
C, V, N, L = InvalidConfigError, InvalidValuesInConfiguration, InvalidColumnError, InvalidLogtableError


@pytest.mark.parametrize(
    ("old", "new", "kind", "place", "said"),
    [
        # unknown and missing keys
        ("PY_EXPERIMENTER", "PY_EXPERIMENT", C, "1:1", "did you mean 'PY_EXPERIMENTER'?"),
        ("  Database:", "  Databse:", C, "3:3", "unknown key 'Databse' in PY_EXPERIMENTER; did you mean 'Database'?"),
        ("n_jobs", "njobs", C, "2:3", "did you mean 'n_jobs'?"),
        ("n_jobs", "zzzzzz", C, "2:3", "known are n_jobs, Database, Execution, Custom, CodeCarbon"),
        ("provider:", "provdier:", C, "4:5", "did you mean 'provider'?"),
        ("    provider: sqlite\n", "", C, "3:3", "'provider' is missing in Database"),
        ("type: int", "tpye: int", C, "9:16", "unknown key 'tpye' in seed; did you mean 'type'?"),
        ("type: int, values", "values", N, "9:9", "'type' is missing in seed"),
        ("n_jobs: 4", "Execution: {retires: 3}", C, "2:15", "did you mean 'retries'?"),
        ("provider: sqlite", "password: x\n    provider: sqlite", C, "4:5", "belong in the credentials file"),
        # values of the wrong kind
        ("sqlite", "mariadb", C, "4:15", "did you mean 'mysql'?"),
        ("sqlite", "postgres", C, "4:15", "did you mean 'postgresql'?"),
        ("database: study", "database: 007", C, "5:15", "must be text; write it in quotes"),
        ("database: study", "database: ':memory:'", C, "5:15", "a table must outlive the process"),
        ("database: study", "database: study\n    tls: off", C, "6:10", "did you mean 'disable'?"),
        ("database: study", "database: study\n    tls_key: x", C, "6:14", "without tls_cert"),
        ("database: study", "database: study\n    port: 70000", C, "6:11", "must be at most 65535, not 70000"),
        ("database: study", "database: s\n    use_ssh: 1\n    use_ssh_tunnel: 0", C, "6:14", "different things"),
        ("n_jobs: 4", "n_jobs: four", C, "2:11", "must be a whole number, not 'four'"),
        ("n_jobs: 4", "n_jobs: 0", C, "2:11", "or -1 for all usable cores"),
        ("n_jobs: 4", "n_jobs: 2.5", C, "2:11", "must be a whole number, not 2.5"),
        ("n_jobs: 4", "n_jobs: true", C, "2:11", "not true or false"),
        ("n_jobs: 4", "n_jobs:", C, "2:10", "not left blank"),
        ("n_jobs: 4", "Execution: {pool: thread}", C, "2:21", "did you mean 'task'?"),
        ("n_jobs: 4", "Execution: {timeout: 0}", C, "2:24", "must be greater than 0, not 0"),
        ("n_jobs: 4", "Execution: {lease: .inf}", C, "2:22", "must be a finite number"),
        ("n_jobs: 4", "Execution: {lease: 30}", C, "2:22", "write lease: 60"),
        ("n_jobs: 4", "Execution: {max_errors: 0}", C, "2:27", "-1 for no limit"),
        ("n_jobs: 4", "Execution: {retry_on: [3]}", C, "2:26", "not 3"),
        ("n_jobs: 4", "Execution: {worker_env: {A: yes}}", C, "2:15", "'A' must be text (in quotes)"),
        ("n_jobs: 4", "Custom: [1]", C, "2:3", "must be a mapping"),
        ("acc: double", "acc: [1]", N, "11:9", "must be a column type"),
        ("acc: double", "acc: flaot", N, "11:14", "did you mean FLOAT?"),
        ("type: int", "type: itn", N, "9:22", "did you mean INT?"),
        ("type: int", "index: maybe, type: int", C, "9:23", "index must be true or false, not 'maybe'"),
        ("seed: {type: int, values: [1, 2]}", "seed: [1, 2]", N, "9:9", "must be a section"),
        ("{loss: DOUBLE}", "DOUBLE", L, "13:15", "must be a mapping"),
        ("{loss: DOUBLE}", "{}", L, "13:7", "at least one entry"),
        ("{loss: DOUBLE}", "{loss: DUOBLE}", N, "13:22", "did you mean DOUBLE?"),
        # values of keyfields
        ("[1, 2]", "[1, x]", V, "9:39", "'x' (str) does not fit INT"),
        ("[1, 2]", "[1, 2.5]", V, "9:39", "2.5 (float) does not fit INT"),
        ("[1, 2]", "[99999999999]", V, "9:36", "does not fit INT"),
        ("type: int, values: [1, 2]", "type: double, values: [.nan]", V, "9:39", "a keyfield cannot be nan"),
        ("type: int, values: [1, 2]", "type: double, values: [-.inf]", V, "9:39", "a keyfield cannot be -inf"),
        ("type: int, values: [1, 2]", "type: datetime, values: [2024-02-30]", V, "9:41", "does not fit DATETIME"),
        ("[1, 2]", "3", V, "9:35", "wanted is a list, [3]"),
        ("[1, 2]", "[]", V, "9:27", "leave it out"),
        ("[1, 2]", "", V, "9:35", "leave it out"),
        ("[1, 2]", "{start: 1}", V, "9:27", "lacks 'stop'"),
        ("[1, 2]", "{start: 1, stop: 4, stepsize: 2}", V, "9:27", "does not know 'stepsize'"),
        ("[1, 2]", "{start: 5, stop: 1}", V, "9:27", "the range is empty"),
        ("[1, 2]", "{start: 0, stop: 1, step: 0}", V, "9:27", "must not be 0"),
        ("[1, 2]", "{start: 0, stop: 1.0e12}", V, "9:27", "over 10,000,000 values"),
        ("[1, 2]", "{start: 0.5, stop: 3}", V, "9:27", "0.5 (float) does not fit INT"),
        ("values: [1, 2]", "default: x", C, "9:36", "'x' (str) does not fit INT"),
        # what YAML makes of plain words and numbers
        (INT, "type: TEXT, values: [a, yes]", V, "9:40", "write it in quotes: 'yes'"),
        (INT, "type: VARCHAR(9), values: [No]", V, "9:43", "YAML reads No as False; write it in quotes: 'No'"),
        (INT, "type: LONGTEXT, values: [on]", V, "9:41", "'on'"),
        (INT, "type: TEXT, values: [012]", V, "9:37", "YAML reads 012 as 10; write it in quotes: '012'"),
        (INT, "type: TEXT, values: [0x1F]", V, "9:37", "YAML reads 0x1F as 31"),
        (INT, "type: TEXT, values: [1:30]", V, "9:37", "YAML reads 1:30 as 90; write it in quotes: '1:30'"),
        (INT, "type: TEXT, values: [1:30.5]", V, "9:37", "YAML reads 1:30.5 as 90.5"),
        (INT, "type: TEXT, values: [1_000]", V, "9:37", "YAML reads 1_000 as 1000"),
        (INT, "type: TEXT, values: [1.1, 1.10]", V, "9:42", "YAML reads 1.10 as 1.1; write it in quotes: '1.10'"),
        (INT, "type: TEXT, values: [+5]", V, "9:37", "'+5'"),
        (INT, "type: TEXT, values: [.inf]", V, "9:37", "YAML reads .inf as inf"),
        (INT, "type: TEXT, default: off", C, "9:37", "YAML reads off as False; write it in quotes: 'off'"),
        (INT, "type: TEXT, values: [=]", C, "9:37", "write it in quotes: '='"),
        (INT, "type: TEXT, values: [<<]", C, "9:37", "write it in quotes: '<<'"),
        (INT, "type: TEXT, values: yes", V, "9:36", "the values are yes; wanted is a list, [yes], or a range"),
        ("[1, 2]", "1:10", V, "9:35", "the values are 1:10; did you mean {start: 1, stop: 10} (`stop` is excluded)?"),
        ("[1, 2]", "1:99", V, "9:35", "did you mean {start: 1, stop: 99} (`stop` is excluded)?"),
        ("[1, 2]", "0:10:2", V, "9:35", "the values are 0:10:2; did you mean {start: 0, stop: 10, step: 2}"),
        ("[1, 2]", "range(10)", V, "9:35", "did you mean {start: 0, stop: 10}"),
        ("[1, 2]", "'range(2, 8)'", V, "9:35", "did you mean {start: 2, stop: 8}"),
        ("[1, 2]", "[1:10]", V, "9:36", "YAML reads 1:10 as 70; did you mean values: {start: 1, stop: 10}"),
        ("type: int, values: [1, 2]", "type: double, values: [1:30]", V, "9:39", "YAML reads 1:30 as 90"),
        # types with a comma
        (INT, "type: NUMERIC(6,2)", C, "9:22", CUT),
        (INT, "type: NUMERIC(6, 2), values: [1]", C, "9:22", CUT),
        ("{type: int, values: [1, 2]}\n", "INT\n        b: {type: decimal( 6,2 )}\n", C, "10:19", '"decimal(6,2)"'),
        ("{loss: DOUBLE}", "{loss: NUMERIC(6,2), x: INT}", C, "13:22", CUT),
        ("{loss: DOUBLE}", "{loss: NUMERIC(6,2), x: NUMERIC(8,2)}", C, "13:22", CUT),
        # names
        ("seed:", "status:", N, "9:9", "'status_2' would do"),
        ("seed:", "Status:", N, "9:9", "it would be equal to the column 'status' of every table"),
        ("seed:", "_seed:", N, "9:9", "'seed' would do"),
        ("seed:", "ACC:", N, "11:9", "it would be equal to 'ACC', and case does not count; 'acc_2' would do"),
        ("seed:", "7:", N, "9:9", "write it in quotes"),
        ("seed:", "on:", N, "9:9", "write it in quotes"),
        ("seed:", "'':", N, "9:9", "the name is empty"),
        ("seed:", "'seed ':", N, "9:9", "'seed' would do"),
        ("seed:", "s" * 64 + ":", N, "9:9", f"the name is over 63 bytes long; '{'s' * 63}' would do"),
        ("seed:", "ü" * 32 + ":", N, "9:9", f"'{'ü' * 31}' would do"),
        ("seed:", "s😀:", N, "9:9", "'s' would do"),
        ("acc: double", "error: text", N, "11:9", "'error_2' would do"),
        ("loss:", "experiment_id:", N, "13:16", "'experiment_id_2' would do"),
        ("loss:", "Timestamp:", N, "13:16", "every log table"),
        ("loss:", "_attempt:", N, "13:16", "'attempt' would do"),
        ("loss: DOUBLE", "a: INT, A: INT", N, "13:24", "it would be equal to 'a'"),
        ("epochs: {", "Epochs: {a: INT}\n      epochs: {", L, "14:7", "'epochs_2' would do"),
        ("epochs:", "e" * 58 + ":", L, "13:7", f"'{'e' * 57}' would do"),
        ("epochs:", "'':", L, "13:7", "is empty"),
        ("name: runs", "name: ''", C, "7:13", "must not be empty"),
        ("name: runs", "name: ' runs'", C, "7:13", "'runs' would do"),
        ("name: runs", "name: sqlite_runs", C, "7:13", "'runs' would do"),
        ("name: runs", "name: " + "r" * 53, C, "7:13", f"'{'r' * 52}' would do"),
        # interpolation
        ("name: runs", "name: ${nope}", C, "7:13", "cannot be resolved"),
        ("name: runs", "name: ${", C, "7:13", "cannot be resolved"),
        ("name: runs", "name: ${oc.env:ASYNC_NOPE}", C, "7:13", "ASYNC_NOPE is not set"),
        ("name: runs", "name: ???", C, "7:13", "still to be filled in"),
        ("name: runs", "name: ${PY_EXPERIMENTER.Database.table.name}", C, "7:13", "cannot be resolved"),
    ],
)
def test_one_thing_wrong(tmp_path: Path, old: str, new: str, kind: type[ConfigError], place: str, said: str) -> None:
    assert old in BASE
    check(tmp_path, BASE.replace(old, new, 1), kind, place, said)


@pytest.mark.parametrize(
    ("content", "place", "said"),
    [
        ("", "1:1", "the file is empty; it must begin with PY_EXPERIMENTER:"),
        ("# only a comment\n", "1:1", "the file is empty"),
        ("- 1\n", "1:1", "has no sections"),
        ("hello", "1:1", "has no sections"),
        (BASE.replace("  Database", "\tDatabase"), "3:1", "a tab stands where YAML wants spaces"),
        (BASE + "  Custom: [\n", "15:1", "is not valid YAML"),
        (BASE + "  Custom: 'x\n", "15:1", "is not valid YAML"),
        (BASE + "  Custom: *nope\n", "14:11", "undefined alias"),
        (BASE + "  Custom: &a {b: *a}\n", "14:11", "an alias"),
        (BASE + "  Custom: {b: !!python/name:os.system x}\n", "14:15", "could not determine a constructor"),
        (BASE + "  Custom: {b: !!set {x}}\n", "14:15", "not supported"),
        (BASE + "  Custom: {b: !!int x}\n", "14:15", "is not a valid int"),
        (BASE + "  Custom: {? [a] : b}\n", "14:14", "a key must be a single word"),
        (BASE + "---\na: 1\n", "14:1", "expected a single document"),
        (BASE.encode() + b"  Custom: \xff\n", "14:11", "is not UTF-8 text"),
        (BASE.encode("utf-16"), "1:1", "is not UTF-8 text"),
        (BASE + "  Custom: \x07\n", "14:11", "control character"),
    ],
)
def test_what_is_no_yaml(tmp_path: Path, content: str | bytes, place: str, said: str) -> None:
    file = tmp_path / "g.yml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InvalidConfigError) as caught:
        config.load(file, environment={})
    assert str(caught.value).startswith(f"{file}:{place}: ")
    assert said in str(caught.value)


def test_a_key_twice_is_told_with_both_places(tmp_path: Path) -> None:
    file = tmp_path / "g.yml"
    check(tmp_path, BASE + "  n_jobs: 5\n", C, "14:3", f"'n_jobs' stands here a second time; first at {file}:2:3")
    check(tmp_path, BASE + "  N_JOBS: 5\n", C, "14:3", "did you mean 'n_jobs'?")
    check(tmp_path, BASE + "  database: {}\n", C, "14:3", "a second time (case does not count)")


def test_a_timestamp_column_in_the_way(tmp_path: Path) -> None:
    text = BASE.replace("resultfields:", "result_timestamps: true\n      resultfields:\n        acc_Timestamp: int")
    check(tmp_path, text, N, "13:9", "rename 'acc'")


def test_every_problem_is_told(tmp_path: Path) -> None:
    text = BASE.replace("n_jobs: 4", "n_jobs: x").replace("sqlite", "oracle").replace("double", "doubel")
    error = fail(tmp_path, text)
    assert [line.split(": ")[0] for line in str(error).splitlines()] == [
        f"{tmp_path}/g.yml:{place}" for place in ("2:11", "4:15", "11:14")
    ]
    many = BASE.replace("[1, 2]", "[a, b, c, d, e, f, g, h, i, j, k, l]")
    assert str(fail(tmp_path, many)).endswith("\n... and 2 more")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path, environment={})
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        config.load("/proc/self/mem", environment={})
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        config.load(tmp_path / ("x" * 300), environment={})


names = st.text(min_size=1, max_size=70) | st.sampled_from(
    [*FIXED_COLUMNS, "Robert'); DROP TABLE runs;--", "%s", "select"]
)


@given(st.lists(names, min_size=1, max_size=4, unique=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@example(["a", "A"])
@example(["\ud800"])
@example(['"', "%s", ";", "`"])
def test_any_name_is_taken_or_refused_with_its_place(tmp_path: Path, fields: list[str]) -> None:
    """What is taken is fit for every database: unlike each other, short, printable, not reserved."""
    file = tmp_path / "g.yml"
    columns = ", ".join(f"{json.dumps(name)}: INT" for name in fields)
    file.write_text(BASE.replace("acc: double", columns).replace("        " + columns, f"        {{{columns}}}"))
    refusal = None
    try:
        table = config.load(file, environment={}).database.table
    except ConfigError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith(f"{file}:")
        return
    taken = [field.name for field in table.resultfields]
    assert taken == fields
    folded = [name.casefold() for name in [*taken, "seed", *FIXED_COLUMNS]]
    assert len(set(folded)) == len(folded)
    assert all(len(name.encode()) <= MAX_BYTES and name.isprintable() and name[0] != "_" for name in taken)


def test_plain_values_of_text_keyfields_that_keep_their_spelling(tmp_path: Path) -> None:
    """Also ordinary numbers, and true and false, whose text is what it always was."""
    values = (
        "[1, -1.5, 1e-3, 2.5E+3, 0, 0.5, true, False, null, 0o12, y, 2024-01-01, 08, 'yes', \"012\", [yes], !!str on]"
    )
    (tmp_path / "g.yml").write_text(BASE.replace("type: int, values: [1, 2]", f"type: TEXT, values: {values}"))
    [keyfield] = config.load(tmp_path / "g.yml", environment={}).database.table.keyfields
    assert keyfield.values is not None
    assert [*keyfield.values] == [
        *("1", "-1.5", "0.001", "2500.0", "0", "0.5", "True", "False", None),
        *("0o12", "y", "2024-01-01", "08", "yes", "012", "[true]", "on"),
    ]


def test_what_an_alias_names_is_as_written_there(tmp_path: Path) -> None:
    text = BASE.replace("type: int, values: [1, 2]", "type: BOOLEAN, values: &words [true, yes]")
    text = text.replace("      resultfields:", "        more: {type: TEXT, values: *words}\n      resultfields:")
    check(tmp_path, text, V, "9:53", "write it in quotes: 'yes'")


def test_words_that_are_no_text_are_read_as_yaml_does(tmp_path: Path) -> None:
    text = BASE.replace("type: int, values: [1, 2]", "type: BOOLEAN, values: [yes, off]")
    text = text.replace("acc: double", "acc: 'NUMERIC(6,2)'")
    (tmp_path / "g.yml").write_text(text)
    table = config.load(tmp_path / "g.yml", environment={}).database.table
    assert table.keyfields[0].values == (True, False)
    assert str(table.resultfields[0].type) == "NUMERIC(6,2)"
