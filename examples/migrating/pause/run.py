"""Pause and unpause: an experiment stops half-way; another function takes it to its end."""

import random

from asyncexp.sync import ExperimentStatus, PyExperimenter, ResultProcessor


def train(seed: int, epochs: range, result_processor: ResultProcessor):
    for epoch in epochs:
        loss = random.Random(seed * 100 + epoch).random() / (1 + epoch)
        result_processor.process_logs({"epochs": {"epoch": epoch, "loss": loss}})
    return loss


def run_until_pause(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    loss = train(keyfields["seed"], range(3), result_processor)
    result_processor.process_results({"loss_half_way": loss})
    if keyfields["seed"] == 3:
        result_processor.process_results({"loss": loss})
        return ExperimentStatus.DONE
    return ExperimentStatus.PAUSED


def run_after_pause(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    loss = train(keyfields["seed"], range(3, 5), result_processor)
    result_processor.process_results({"loss": loss})
    return ExperimentStatus.DONE


if __name__ == "__main__":
    experimenter = PyExperimenter(use_codecarbon=False, name="first_part")
    experimenter.fill_table_from_config()
    experimenter.execute(run_until_pause, max_experiments=-1)
    print(experimenter.get_table()[["ID", "status", "name"]].to_string(index=False))

    experimenter = PyExperimenter(use_codecarbon=False, name="second_part")
    experimenter.unpause_experiment(1, run_after_pause)
    print(experimenter.get_table()[["ID", "status"]].to_string(index=False))
    print(experimenter.get_logtable("epochs").groupby("experiment_id")["epoch"].count().to_string())
