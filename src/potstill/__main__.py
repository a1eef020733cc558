"""`python -m potstill` is the `potstill` command."""

from potstill.cli import main

main()
