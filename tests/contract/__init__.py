"""What asyncexp promises, as one suite that every database runs whole.

It goes through the public names, plus SQL for the audits, and asks nothing about which database it is: each test
takes `make`, which makes experimenters on an empty database, or `target`, which says where that is.

To add a database: a backend in `asyncexp/db/` (`Database` and a `Dialect` of facts, see `asyncexp/db/base.py`), a
server in `tests/servers.py` if it needs one, its name in `PROVIDERS` and a fixture that gives an empty database in
`tests/conftest.py`. Then `pytest tests/contract` runs the suite on it, and each test that fails names a promise.
"""
