"""How fast asyncexp is, against what a bare driver can do in the same run.

    python -m benchmarks --quick        # under a minute
    python -m benchmarks                # minutes
    python -m benchmarks.profile sqlite 200

    python -m benchmarks --only S7,S10 --databases postgresql

Every figure is a pair, taken in turns: a limit (the database's own driver, used by hand, on the same
table; a smaller table; one worker alone; or a peer) and asyncexp through its public API. Absolute figures
drift between machines and between days; compare ratios.

| module | what it holds |
|---|---|
| `rounds` | pairs taken in turns, their medians and spreads |
| `places` | databases to measure on, one of its own for each figure |
| `study` | the study that is measured, and the proof that all of it was done |
| `bare` | the limits: loops and bulk inserts by hand |
| `throughput`, `children`, `filling`, `logs`, `reading`, `startup` | S1 and S3, S4, S5 and S6, S8, S13, S11 |
| `growth`, `asleep`, `crew`, `waking` | S7, S9, S10, S12: large tables, many tasks, several workers, waiting ones |
| `energy` | S14: CodeCarbon on against off |
| `peers` | S2; its other sides are `legacy`, `peer_pgqueuer` and `peer_procrastinate` |
| `processes` | what runs in a process of its own, and how it is spoken with |
| `report`, `plot`, `machine` | what comes out |
| `profile` | where the time goes |
"""
