"""`python -m kaiten.cli`: the `kaiten` command, where its script is not installed."""

from kaiten.cli import main

main()
