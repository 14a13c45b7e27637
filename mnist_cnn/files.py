"""Writing a file as a whole or not at all."""

import os
import pathlib


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Replaces `path`: readers, also after a crash, see the old content or the new, never a mix."""
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
