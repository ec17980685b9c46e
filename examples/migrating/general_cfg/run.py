"""General usage with a configuration of the older kind, `.cfg`, in which custom fields are text."""

import numpy as np

from asyncexp.sync import PyExperimenter, ResultProcessor

CURVES = {"sine": np.sin, "step": np.sign}


def run_experiment(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    random = np.random.default_rng(keyfields["seed"])
    x = random.uniform(-3, 3, size=int(custom_fields["points"]))
    y = CURVES[keyfields["curve"]](x) + random.normal(0, 0.1, size=len(x))
    train, test = slice(0, None, 2), slice(1, None, 2)

    polynomial = np.polynomial.Polynomial.fit(x[train], y[train], keyfields["degree"])
    result_processor.process_results({"polynomial": f"degree {polynomial.degree()}"})
    if keyfields["curve"] == "step" and keyfields["degree"] == 1:
        raise ValueError("a straight line is no step")

    errors = (polynomial(x) - y) ** 2
    result_processor.process_results({"train_error": errors[train].mean(), "test_error": errors[test].mean()})


if __name__ == "__main__":
    experimenter = PyExperimenter(
        experiment_configuration_file_path="config/experiment_configuration.cfg",
        name="general_usage",
        use_codecarbon=False,
    )
    experimenter.fill_table_from_config()
    experimenter.execute(run_experiment, max_experiments=-1)
    table = experimenter.get_table()
    print(table.groupby(["curve", "degree"])[["train_error", "test_error"]].mean().round(3).to_string())
