"""`python -m crossmost` is the `crossmost` command."""

from crossmost.cli import main

main()
