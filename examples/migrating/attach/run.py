"""Attach: an experiment's own worker processes write into its log table; their results come back to it."""

from multiprocessing import Pool, Process

from asyncexp.sync import PyExperimenter, ResultProcessor


def worker_wrapper(experiment_id: int, **kwargs):
    def sum_a_part(result_processor: ResultProcessor):
        subtotal = sum(range(kwargs["part"], kwargs["upper"], kwargs["parts"]))
        result_processor.process_logs({"parts": {"part": kwargs["part"], "subtotal": subtotal}})
        return subtotal

    return experimenter.attach(sum_a_part, experiment_id)


def watcher(experiment_id: int):
    def note_the_parts(result_processor: ResultProcessor):
        result_processor.process_results({"parts": 3})

    experimenter.attach(note_the_parts, experiment_id)


def call_wrapper(arguments: dict):
    return worker_wrapper(**arguments)


def main_function(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    process = Process(target=watcher, args=(result_processor.experiment_id,))
    process.start()
    arguments = [
        {"experiment_id": result_processor.experiment_id, "part": part, "upper": keyfields["upper"], "parts": 3}
        for part in range(3)
    ]
    with Pool(custom_fields["workers"]) as pool:
        subtotals = pool.map(call_wrapper, arguments)
    process.join()
    result_processor.process_results({"total": sum(subtotals)})


experimenter = PyExperimenter(use_codecarbon=False, name="attach")

if __name__ == "__main__":
    experimenter.fill_table_from_config()
    experimenter.execute(main_function, max_experiments=-1)
    print(experimenter.get_table()[["upper", "status", "total", "parts"]].to_string(index=False))
    lines = experimenter.get_logtable("parts").sort_values(["experiment_id", "part"])
    print(lines[["experiment_id", "part", "subtotal"]].to_string(index=False))
