"""The command line: parsing, printing and exit codes; every command is one call below."""

from batchtrain.cli.app import main

__all__ = ["main"]
