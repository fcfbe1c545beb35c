"""The command line: parse, load the config, call one function, print where the result is.

May import all rooms above it, each when its command is called: `--help` answers at once.
"""
