"""Run `python -m engine`, the same program as `layerscope`."""

from engine.cli.main import main

main()
