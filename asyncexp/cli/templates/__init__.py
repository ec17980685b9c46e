"""The projects that `asyncexp init` makes, as real files."""
