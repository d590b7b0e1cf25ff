"""The command line: ``pursuitify COMMAND``."""

from pursuitify.cli.app import main

__all__ = ["main"]
