"""The command line: each command parses, calls a stage and prints what came of it."""
