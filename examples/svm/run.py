"""Support vector machines on four datasets: 240 experiments, from a grid to a table, a CSV file and a plot.

    python examples/svm/run.py

Stop it at any moment (Ctrl-C) and start it again: it goes on where it was. What is done is not run twice.
"""

import asyncio
from pathlib import Path

import numpy as np
from report import print_table, save_csv, save_plot
from sklearn import datasets
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from asyncexp import Experimenter

HERE = Path(__file__).parent
DATASETS = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast_cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}


def run_experiment(keyfields, result_processor, custom_fields):
    """One row of the table: cross-validates one machine on one dataset."""
    X, y = sample(keyfields["dataset"], keyfields["seed"], custom_fields["max_samples"])
    machine = make_pipeline(StandardScaler(), SVC(kernel=keyfields["kernel"], C=keyfields["C"]))
    folds = StratifiedKFold(custom_fields["splits"], shuffle=True, random_state=keyfields["seed"])
    scores = cross_validate(machine, X, y, cv=folds, return_train_score=True, return_estimator=True)

    pairs = zip(scores["train_score"], scores["test_score"], strict=True)
    lines = [{"fold": n, "train_accuracy": a, "test_accuracy": b} for n, (a, b) in enumerate(pairs, start=1)]
    result_processor.process_logs({"folds": lines})
    results = {
        "train_accuracy": scores["train_score"].mean(),
        "test_accuracy": scores["test_score"].mean(),
        "support_vectors": np.mean([fitted[-1].n_support_.sum() for fitted in scores["estimator"]]),
        "fit_seconds": scores["fit_time"].mean(),
    }
    result_processor.process_results(results)


def sample(dataset, seed, size):
    """At most `size` examples of a dataset, drawn anew for every seed."""
    X, y = DATASETS[dataset](return_X_y=True)
    chosen = np.random.default_rng(seed).permutation(len(y))[:size]
    return X[chosen], y[chosen]


async def main():
    experimenter = Experimenter(
        HERE / "config" / "experiment_configuration.yml",
        database_name=str(HERE / "svm.db"),
        log_file=str(HERE / "svm.log"),
        use_codecarbon=False,
        log_level="WARNING",
    )
    async with experimenter:
        filled = await experimenter.fill_table_from_config()
        print(f"Experiments: {filled.added} added, {filled.existed} were there already.", flush=True)

        if (await experimenter.counts())["created"]:
            summary = await experimenter.execute(run_experiment, progress=True)
            print(f"Ran: {summary.done} done, {summary.error} failed, in {summary.seconds:.1f} s.", flush=True)
            if summary.stopped_by:
                raise SystemExit(f"Stopped by {summary.stopped_by}. Start it again to go on.")
        else:
            print("Nothing to do: every experiment has been run.", flush=True)

        table = await experimenter.get_table()
        folds = await experimenter.get_logtable("folds")

    print_table(table, folds)
    save_csv(table, HERE / "results.csv")
    save_plot(table, HERE / "accuracy.png")


if __name__ == "__main__":
    asyncio.run(main())
