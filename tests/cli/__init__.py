"""The command line, as a process: piped, and on a terminal of its own."""
