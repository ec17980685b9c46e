"""How well support vector machines tell the classes of three data sets apart, by kernel and penalty."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from asyncexp import SyncResultProcessor

DATASETS = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer}


def run_experiment(keyfields: dict[str, Any], results: SyncResultProcessor, custom: dict[str, Any]) -> None:
    """Cross-validates one combination of data set, kernel and C.

    Args:
        keyfields: the row's parameters, as the configuration names them.
        results: takes results and log lines.
        custom: the configuration's section `Custom`, the same for all rows.
    """
    features, classes = DATASETS[keyfields["dataset"]](return_X_y=True)
    model = make_pipeline(StandardScaler(), SVC(kernel=keyfields["kernel"], C=keyfields["C"]))
    folds = StratifiedKFold(custom["folds"], shuffle=True, random_state=keyfields["seed"])
    began = perf_counter()
    scores = [float(score) for score in cross_val_score(model, features, classes, cv=folds)]
    results.process_logs({"folds": [{"fold": fold, "accuracy": score} for fold, score in enumerate(scores)]})
    results.process_results({"accuracy": sum(scores) / len(scores), "seconds": perf_counter() - began})
