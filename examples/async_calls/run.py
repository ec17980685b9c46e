"""3,000 experiments that mostly wait, 1,000 at once in one process and one thread.

    python examples/async_calls/run.py

So it is when the work is done elsewhere: calls to a model behind an API, to a simulator, to a lab
instrument. Here a function stands in for the service; it takes a second, and now and then it refuses.
"""

import asyncio
import random
import time
from pathlib import Path

from asyncexp import Experimenter

HERE = Path(__file__).parent


async def ask_model(prompt, temperature):
    """The stand-in: put the call of your own client here."""
    seconds = random.uniform(0.5, 1.5)
    await asyncio.sleep(seconds)
    if random.random() < 0.02:
        raise ConnectionError("the service is overloaded")
    return " ".join(["word"] * (1 + prompt % 7) + ["perhaps"] * round(2 * temperature))


async def run_experiment(keyfields, result_processor, _custom_fields):
    """One row of the table: one call. If it raises, `retries: 3` tries again before the row ends as error."""
    started = time.perf_counter()
    answer = await ask_model(keyfields["prompt"], keyfields["temperature"])
    waited = time.perf_counter() - started
    results = {"answer": answer, "words": len(answer.split()), "waited_seconds": waited}
    await result_processor.process_results(results)


async def main():
    experimenter = Experimenter(
        HERE / "experiment_configuration.yml",
        database_name=str(HERE / "async_calls.db"),
        log_file=str(HERE / "async_calls.log"),
        use_codecarbon=False,
        log_level="WARNING",
    )
    async with experimenter:
        filled = await experimenter.fill_table_from_config()
        print(f"Experiments: {filled.added} added, {filled.existed} were there already.", flush=True)
        summary = await experimenter.execute(run_experiment, progress=True)
        table = await experimenter.get_table({"status": "done"})

    if summary.stopped_by:
        raise SystemExit(f"Stopped by {summary.stopped_by}. Start it again to go on.")
    if summary.done:
        print(f"Ran: {summary.done} done, {summary.error} failed, {summary.retried} tried again.", flush=True)
        in_a_row = table["waited_seconds"].sum()
        print(f"Took {summary.seconds:.1f} s; one after another it would have been {in_a_row:.0f} s.", flush=True)
    else:
        print("Nothing to do: every experiment has been run.", flush=True)
    print(table.groupby("temperature")["words"].agg(["count", "mean"]).round(2).to_string(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
