"""The command line: ``pursuitify COMMAND``."""

import sys


def main() -> None:
    """Run the command line; without typer, say what to install."""
    try:
        from pursuitify.cli.app import main as run
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("error: the command line needs typer, which is not installed: pip install typer")
    run()


__all__ = ["main"]
