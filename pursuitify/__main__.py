"""``python -m pursuitify``: the command line."""

from pursuitify.cli import main

main()
