"""``python -m vtviz`` is ``vtviz``."""

from vtviz.cli import main

main()
