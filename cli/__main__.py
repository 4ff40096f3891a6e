"""`python -m cli`: the `kaiten` command, where its script is not installed."""

from cli import main

main()
