"""How fast asyncexp is, against what a bare driver can do in the same run.

    python -m benchmarks --quick        # under a minute
    python -m benchmarks                # minutes
    python -m benchmarks.profile sqlite 200

Every figure is a pair, taken in turns: a limit (the database's own driver, used by hand, on the same
table) and asyncexp through its public API. Absolute figures drift between machines and between days;
compare ratios.

| module | what it holds |
|---|---|
| `rounds` | pairs taken in turns, their medians and spreads |
| `places` | databases to measure on, one of its own for each figure |
| `study` | the study that is measured, and the proof that all of it was done |
| `bare` | the limits: loops and bulk inserts by hand |
| `throughput`, `filling`, `logs`, `reading`, `startup`, `peers` | the lines of the table |
| `report`, `plot`, `machine` | what comes out |
| `profile` | where the time goes |
"""
