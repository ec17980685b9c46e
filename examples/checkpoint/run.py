"""Long experiments that lose almost nothing when their job is preempted or killed: they go on where they were.

    python examples/checkpoint/run.py

Stop it (Ctrl-C, SIGTERM) or kill it (`kill -9`) at any moment, and start it again. On a cluster, `sbatch job.sh`
in this folder does both by itself, as often as it takes.

Each experiment looks for a short round trip through 200 cities, by simulated annealing, and saves its whole
state now and then, the random numbers' too: interrupted or not, it finds the same trip.
"""

import asyncio
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from asyncexp import Experimenter, ExperimentStatus

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE / "checkpoints"
COOLEST = 0.0001


def run_experiment(keyfields, result_processor, custom_fields):
    """One row of the table: from its checkpoint if an earlier attempt left one, else from the start."""
    sweeps, every = custom_fields["sweeps"], custom_fields["checkpoint_every"]
    cities, state = begin(keyfields["seed"], custom_fields["cities"])
    file = checkpoint(result_processor.experiment_id)
    # A first attempt looks for none: the file may be of another table, whose IDs began at 1 as well.
    if result_processor.attempt > 1 and file.exists():
        state = json.loads(file.read_text())

    while state["sweep"] < sweeps:
        cooled = keyfields["temperature"] * (COOLEST / keyfields["temperature"]) ** (state["sweep"] / sweeps)
        state = sweep(state, cities, cooled)
        told_to_stop = result_processor.should_stop
        if told_to_stop or state["sweep"] % every == 0:
            save(state, file)
            result_processor.heartbeat(progress=state["sweep"] / sweeps)
        if told_to_stop:
            return ExperimentStatus.CREATED

    length = sum(math.dist(cities[a], cities[b]) for a, b in around(state["tour"]))
    result_processor.process_results({"length": length, "attempts": result_processor.attempt})
    return ExperimentStatus.DONE


def checkpoint(experiment_id):
    return CHECKPOINTS / f"{experiment_id}.json"


def save(state, file):
    """Whole or not at all, whenever the process dies: the new file takes the place of the old in one step."""
    file.parent.mkdir(exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    with new.open("w") as stream:
        json.dump(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


def begin(seed, count):
    """The map, and a random tour on it."""
    numbers = np.random.default_rng(seed)
    cities = numbers.random((count, 2)).tolist()
    return cities, {"sweep": 0, "tour": numbers.permutation(count).tolist(), "random": numbers.bit_generator.state}


def sweep(state, cities, temperature):
    """The state after many tries to turn a part of the tour round."""
    numbers = np.random.default_rng()
    numbers.bit_generator.state = state["random"]
    tour, count = state["tour"][:], len(cities)
    ends = np.sort(numbers.integers(1, count, (10 * count, 2)), axis=1).tolist()
    allowed = (-temperature * np.log(1 - numbers.random(10 * count))).tolist()
    for (first, last), longer in zip(ends, allowed, strict=True):
        a, b, c, d = (cities[tour[place % count]] for place in (first - 1, first, last, last + 1))
        if math.dist(a, c) + math.dist(b, d) - math.dist(a, b) - math.dist(c, d) < longer:
            tour[first : last + 1] = tour[first : last + 1][::-1]
    return {"sweep": state["sweep"] + 1, "tour": tour, "random": numbers.bit_generator.state}


def around(tour):
    return zip(tour, tour[1:] + tour[:1], strict=True)


async def main():
    os.chdir(HERE)  # database, log, and a server's credentials are in this folder, wherever it was started
    async with Experimenter(log_file="checkpoint.log", use_codecarbon=False, log_level="WARNING") as experimenter:
        filled = await experimenter.fill_table_from_config()
        print(f"Experiments: {filled.added} added, {filled.existed} were there already.", flush=True)
        # "finished": waits for what other jobs run, too, and takes over what a killed job ran.
        summary = await experimenter.execute(run_experiment, until="finished", progress=True)
        done = await experimenter.get_table({"status": "done"})

    for experiment_id in done["ID"]:
        for file in CHECKPOINTS.glob(f"{experiment_id}.*"):
            file.unlink(missing_ok=True)  # another job may be tidying up, too
    if summary.stopped_by:
        print(f"Stopped by {summary.stopped_by}: {summary.left} left. Start it again to go on.", flush=True)
        sys.exit(os.EX_TEMPFAIL if summary.stopped_by == "SIGTERM" else 1)
    print(done.groupby("temperature")["length"].agg(["count", "mean", "min"]).round(2).to_string(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
