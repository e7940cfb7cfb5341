"""`python -m evoray`."""

from evoray.cli import main

main()
