"""The command line in a process of its own, without the seconds that importing torch takes."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

from pursuitify.cli.app import main


def _child(arguments: list[str], folder: Path) -> None:
    """Run ``pursuitify ARGUMENTS`` with its output going to files in a folder."""
    sys.argv = ["pursuitify", *arguments]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        sys.stdout, sys.stderr = out, err
        try:
            main()
        except Exception:
            sys.excepthook(*sys.exc_info())
            sys.exit(1)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Return how ``pursuitify ARGUMENTS`` ends in a fork of this process.

    Its exit code, output and modules are those of a process of its own: an exception that nothing
    caught is exit code 1 and a traceback. What it imports or changes stays in it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = multiprocessing.get_context("fork").Process(
            target=_child, args=(list(arguments), folder)
        )
        process.start()
        process.join(300)
        assert process.exitcode is not None
        texts = [(folder / part).read_text() for part in ("out", "err")]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)
