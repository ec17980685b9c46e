"""The pages, and what writes those that can be written: `make docs`."""
