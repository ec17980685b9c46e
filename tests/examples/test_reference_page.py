"""PyExperimenter's page on execution, from top to bottom, typed into one script without a main guard."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from asyncexp.db.base import Target
from tests.contract import sql
from tests.examples.test_examples import ROOT
from tests.studies import write_configuration, write_credentials

KEYFIELDS = {
    "dataset": {"type": "VARCHAR(255)", "values": ["iris", "wine"]},
    "cross_validation_splits": {"type": "INT", "values": [5]},
    "seed": {"type": "INT", "values": {"start": 1, "stop": 4}},
    "kernel": {"type": "VARCHAR(255)", "values": ["linear", "rbf"]},
}

SCRIPT = """
import logging
from multiprocessing import Process, Queue
from typing import Dict

from asyncexp.sync import ExperimentStatus, PyExperimenter, ResultProcessor


def run_experiment(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    if keyfields["dataset"] == "wine" and keyfields["seed"] == 3:
        raise ValueError("corked")
    result_processor.process_results({"accuracy": 1 / keyfields["seed"]})


def show(what):
    print(what, dict(sorted(experimenter.counts().items())))


# The actual execution
experimenter = PyExperimenter()
experimenter.fill_table_from_config()
experimenter.execute(run_experiment, max_experiments=-1)
show("executed")

# Creating a PyExperimenter
experimenter = PyExperimenter(
    experiment_configuration_file_path="config/experiment_configuration.yml",
    database_credential_file_path="config/database_credentials.yml",
    use_ssh_tunnel=False,
    database_name=None,
    table_name=None,
    use_codecarbon=True,
    name="job 7",
    logger_name="another-logger",
    log_level=logging.INFO,
    log_file="logs/another.log",
)

# Fill table, from the configuration and with specific rows
experimenter.fill_table_from_config()
experimenter.fill_table_with_rows(rows=[
    {
        'dataset': 'new_data',
        'cross_validation_splits': 4,
        'seed': 42,
        'kernel': 'poly'
    },
    {
        'dataset': 'new_data_2',
        'cross_validation_splits': 4,
        'seed': 24,
        'kernel': 'poly'
    },
])
show("filled")

# Execute experiments
experimenter.execute(
    experiment_function = run_experiment,
    max_experiments = -1,
    random_order = False
)
show("executed again")

# Add experiment and execute
experimenter.add_experiment_and_execute(
    keyfields = {'dataset': 'new_data', 'cross_validation_splits': 4, 'seed': 43, 'kernel': 'poly'},
    experiment_function = run_experiment
)
experimenter.add_experiment_and_execute(
    keyfield_values = {'dataset': 'new_data', 'cross_validation_splits': 4, 'seed': 44, 'kernel': 'poly'},
    experiment_function = run_experiment
)
show("added")


# Attach to a running experiment
def worker_experiment_function_wrapper(experiment_id: int, **kwargs):

    def worker_experiment_function(result_processor: ResultProcessor):
        # Worker Experiment Execution
        result = kwargs["number"] ** 2

        # Some Logs
        result_processor.process_logs({"steps": {"step": kwargs["number"], "note": "worker"}})
        return result

    return experimenter.attach(worker_experiment_function, experiment_id)


def in_a_process(queue, experiment_id, number):
    queue.put(worker_experiment_function_wrapper(experiment_id, number=number))


def main_experiment_function(keyfields: dict, result_processor: ResultProcessor, custom_fields: Dict):
    # Start workers in different processes, and provide them with the experiment_id
    queue = Queue()
    workers = [Process(target=in_a_process, args=(queue, result_processor.experiment_id, n)) for n in range(1, 4)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    result_processor.process_results({"accuracy": sum(results)})


experimenter.fill_table_with_rows([
    {'dataset': 'attached', 'cross_validation_splits': 4, 'seed': seed, 'kernel': 'poly'} for seed in (1, 2)
])
experimenter.execute(main_experiment_function, max_experiments=-1)
show("attached")
lines = experimenter.get_logtable("steps")
print("lines", lines.groupby("experiment_id")["step"].sum().tolist())
attached = experimenter.get_table({"dataset": "attached"})
print("sums", attached["accuracy"].tolist())

# Reset experiments
experimenter.reset_experiments("error", "paused")
show("reset")
experimenter.reset_experiments(ExperimentStatus.CREATED)

# Obtain results
result_table = experimenter.get_table()
result_table = result_table.groupby(['dataset'])[['seed']].mean()
LATEX
print(result_table.to_string())
print("emissions", len(experimenter.get_codecarbon_table()))


# Pausing and unpausing experiments
def run_experiment_until_pause(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    result_processor.process_logs({"steps": {"step": 1, "note": "before"}})
    some_reason_to_pause = keyfields["kernel"] == "linear"
    if some_reason_to_pause:
        return ExperimentStatus.PAUSED

    # do further things
    return ExperimentStatus.DONE


experimenter = PyExperimenter()
experimenter.execute(run_experiment_until_pause, max_experiments=-1)
show("paused")


def run_experiment_after_pause(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    result_processor.process_logs({"steps": {"step": 2, "note": "after"}})
    return ExperimentStatus.DONE


experimenter = PyExperimenter()
paused = experimenter.get_table({"status": "paused"})
experiment_id = int(paused["ID"].iloc[0])
experimenter.unpause_experiment(experiment_id, run_experiment_after_pause)
show("unpaused")
print("notes", experimenter.get_logtable("steps", {"experiment_id": experiment_id})["note"].tolist())

# Close SSH tunnel
experimenter.close_ssh_tunnel()
experimenter.close_ssh()
"""
LATEX = "print(result_table.to_latex(columns=['seed'], index_names=['dataset']))"

SAID = """\
executed {'created': 0, 'done': 10, 'error': 2, 'paused': 0, 'running': 0}
filled {'created': 2, 'done': 10, 'error': 2, 'paused': 0, 'running': 0}
executed again {'created': 0, 'done': 12, 'error': 2, 'paused': 0, 'running': 0}
added {'created': 0, 'done': 14, 'error': 2, 'paused': 0, 'running': 0}
attached {'created': 0, 'done': 16, 'error': 2, 'paused': 0, 'running': 0}
lines [6, 6]
sums [14.0, 14.0]
reset {'created': 2, 'done': 16, 'error': 0, 'paused': 0, 'running': 0}
attached 1.5
iris 2.0
new_data 43.0
new_data_2 24.0
wine 2.0
emissions 16
paused {'created': 0, 'done': 17, 'error': 0, 'paused': 1, 'running': 0}
unpaused {'created': 0, 'done': 18, 'error': 0, 'paused': 0, 'running': 0}
notes ['before', 'after']
"""


def study(folder: Path, target: Target, n_jobs: int) -> None:
    """The script, with its files where they are looked for."""
    config = folder / "config"
    config.mkdir()
    write_configuration(
        config,
        target,
        keyfields=KEYFIELDS,
        resultfields={"accuracy": "DOUBLE"},
        n_jobs=n_jobs,
        name="experiment_configuration.yml",
    )
    credentials = write_credentials(config, target)
    if credentials is not None:
        credentials.rename(config / "database_credentials.yml")
    else:
        (config / "database_credentials.yml").write_text(yaml.safe_dump({"CREDENTIALS": {}}))
    # pandas needs jinja2 for LaTeX, and does not bring it
    (folder / "page.py").write_text(SCRIPT.replace("LATEX", LATEX if find_spec("jinja2") else ""))


def run(folder: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "default", "page.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
async def test_the_page_from_top_to_bottom(target: Target, tmp_path: Path, n_jobs: int) -> None:
    """With `n_jobs: 1` in the script's own thread, with 2 in child processes."""
    study(tmp_path, target, n_jobs)
    printed, err = run(tmp_path)
    shown = [re.sub(r" +", " ", line) for line in printed.splitlines() if not line.startswith("\\")]
    wanted = SAID.splitlines()
    assert [line for line in shown if line in wanted] == wanted, printed
    assert "warning" not in err.lower()
    assert "corked" in (tmp_path / "py-experimenter.log").read_text() + (tmp_path / "logs" / "another.log").read_text()

    found = await sql.fetch(target, 'SELECT DISTINCT "status" FROM experiments')
    assert [tuple(row) for row in found] == [("done",)]
    names = await sql.fetch(target, 'SELECT DISTINCT "name" FROM experiments ORDER BY "name"')
    assert [tuple(row) for row in names] == [("PyExperimenter",), ("job 7",)]
