"""When each token was used last: a file beside that of the tokens, best effort, for `token list`."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_LOGGER: Final = logging.getLogger(__name__)


def path_beside(tokens: Path) -> Path:
    """Return where the times are kept of the tokens in a file."""
    tokens = tokens.resolve()
    return tokens.with_name(f"{tokens.name}.used.json")


def read(path: Path) -> Mapping[str, datetime]:
    """Return the times by the tokens' digests; none where the file is not there or not readable."""
    try:
        times = json.loads(path.read_bytes())
        return {digest: datetime.fromtimestamp(time_s, UTC) for digest, time_s in times.items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError):
        return {}


def merge(path: Path, used_s: Mapping[str, float]) -> None:
    """Write later times, in seconds since the epoch, over those in the file; a failure is only logged."""
    try:
        times = {digest: time.timestamp() for digest, time in read(path).items()}
        for digest, time_s in used_s.items():
            times[digest] = max(time_s, times.get(digest, 0.0))
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w") as file:
            json.dump(times, file)
        Path(name).replace(path)
    except OSError as error:
        _LOGGER.info("when tokens were used is not recorded: %s: %s", path, error.strerror)
