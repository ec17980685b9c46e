"""`python -m asyncexp` is `asyncexp`."""

from asyncexp.cli import main

if __name__ == "__main__":
    main()
