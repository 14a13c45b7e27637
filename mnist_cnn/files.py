"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import pathlib


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Replaces `path`; a reader, and a crash, meet the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
