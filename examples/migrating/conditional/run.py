"""A conditional grid: `width` and `exponent` only for the kernels that have them."""

import numpy as np

from asyncexp.sync import PyExperimenter, ResultProcessor

NOT_USED = -1


def weights(distances, kernel, width, exponent):
    if kernel == "mean":
        return np.ones_like(distances)
    if kernel == "gauss":
        return np.exp(-((distances / width) ** 2))
    return 1 / (1 + distances / width) ** exponent


def run_experiment(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    x = np.linspace(0, 6, 60)
    noisy = np.sin(x) + np.random.default_rng(keyfields["seed"]).normal(0, 0.2, size=60)
    distances = np.abs(x[:, None] - x)
    factors = weights(distances, keyfields["kernel"], keyfields["width"], keyfields["exponent"])
    smooth = factors @ noisy / factors.sum(axis=1)
    result_processor.process_results({"deviation": np.abs(smooth - np.sin(x)).mean()})


def combinations():
    yield {"kernel": "mean", "width": NOT_USED, "exponent": NOT_USED}
    for width in [0.1, 0.3]:
        yield {"kernel": "gauss", "width": width, "exponent": NOT_USED}
        for exponent in [2, 4]:
            yield {"kernel": "power", "width": width, "exponent": exponent}


if __name__ == "__main__":
    experimenter = PyExperimenter(use_codecarbon=False, name="conditional_grid")
    experimenter.fill_table_from_combination(
        parameters={"seed": [1, 2]}, fixed_parameter_combinations=list(combinations())
    )
    rows = [
        {"seed": 3, "kernel": "mean", "width": NOT_USED, "exponent": NOT_USED},
        {"seed": 3, "kernel": "power", "width": 0.1, "exponent": 6},
    ]
    experimenter.fill_table_with_rows(rows)
    experimenter.fill_table_with_rows(rows)  # they are there already: nothing is added
    experimenter.execute(run_experiment, max_experiments=-1)

    table = experimenter.get_table()
    print(table.groupby(["kernel", "width", "exponent"])["deviation"].agg(["count", "mean"]).round(3).to_string())
