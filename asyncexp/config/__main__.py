"""Writes the JSON schema: `python -m asyncexp.config > config/experiment_configuration.schema.json`."""

import sys

from asyncexp.config.editors import text

sys.stdout.write(text())
