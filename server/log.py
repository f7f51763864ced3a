"""Logs: one JSON object a line, to stderr. stdout belongs to the protocol."""

import json
import logging
import sys


class JsonLines(logging.Formatter):
    """A record as one line of JSON, with the fields it was given."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(level: str = "INFO") -> None:
    """Send all logging of the process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("server", "engine"):
        logging.getLogger(name).setLevel(level)
