"""Log tables: what happens within an experiment, in two tables, from two processes."""

import random

from asyncexp.sync import PyExperimenter, ResultProcessor


def run_experiment(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    place = random.Random(keyfields["seed"]).uniform(2, 5)
    best = (0, place**2)
    for step in range(1, int(custom_fields["steps"]) + 1):
        place -= keyfields["rate"] * 2 * place
        loss = place**2
        lines = {"steps": {"step": step, "loss": loss}}
        if loss < best[1]:
            lines["improvements"] = {"loss": loss, "kind": "great" if loss < best[1] / 4 else "small"}
            best = (step, loss)
        result_processor.process_logs(lines)
    result_processor.process_results({"best_step": best[0], "best_loss": best[1]})


if __name__ == "__main__":
    experimenter = PyExperimenter(use_codecarbon=False, name="log_tables")
    experimenter.fill_table_from_config()
    experimenter.execute(run_experiment, max_experiments=-1)

    table = experimenter.get_table().set_index("ID")
    steps = experimenter.get_logtable("steps")
    improvements = experimenter.get_logtable("improvements")
    print(steps.join(table["rate"], on="experiment_id").groupby("rate")["loss"].agg(["count", "min"]).round(6))
    print(improvements.groupby("kind")["ID"].count().to_string())
