"""``python -m pursuitify.cli``."""

from pursuitify.cli import main

main()
