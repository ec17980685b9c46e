"""Chaos: real workers on a real database, a seeded storm of faults, and an audit by SQL of what came of it.

python -m tests.chaos --seconds 600 --database postgresql --seed 7
"""
