"""Run `python -m engine`, the same program as `layerscope`."""

import os
import signal
from types import FrameType


def main() -> None:
    """Import and run the command line; Ctrl+C during the imports prints no traceback."""
    catches = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # unless the caller ignores it
    if catches:
        signal.signal(signal.SIGINT, _leave)
    from engine.cli.main import main as run

    if catches:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End at once: an exception could be swallowed by the module that is being imported."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    main()
