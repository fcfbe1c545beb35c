"""Log lines as JSON, for whoever gathers them. No text of a request, and no token, is in them."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from scpo_ray.settings.shown import plain


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, and what `extra={"fields": ...}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": plain(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None and record.exc_info[0] is not None:
            line["traceback"] = plain("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json() -> None:
    """All that this process logs goes to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("scpo_ray").setLevel(logging.INFO)
