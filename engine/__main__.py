"""`python -m engine` is the same program as `layerscope`."""

from engine.cli.main import main

main()
