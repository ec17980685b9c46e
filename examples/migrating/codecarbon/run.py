"""A configuration with settings for CodeCarbon, and tracking switched off in the script."""

from asyncexp.sync import PyExperimenter, ResultProcessor


def count_primes(keyfields: dict, result_processor: ResultProcessor, custom_fields: dict):
    upper = keyfields["upper"]
    prime = [False, False] + [True] * (upper - 2)
    for number in range(2, int(upper**0.5) + 1):
        if prime[number]:
            prime[number * number :: number] = [False] * len(prime[number * number :: number])
    result_processor.process_results({"primes": sum(prime)})


if __name__ == "__main__":
    experimenter = PyExperimenter(use_codecarbon=False, name="no_tracking")
    experimenter.fill_table_from_config()
    experimenter.execute(count_primes, max_experiments=-1)
    print(experimenter.get_table()[["upper", "primes"]].to_string(index=False))
