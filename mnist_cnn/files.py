"""Local paths as users give them, and writing a file as a whole or not at all."""

import os
import pathlib
import re

from mnist_cnn.errors import ConfigError


def local_path(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """The path with `~` expanded; ConfigError, with `name` in it, if it is not a local path.

    Those are URLs such as gs://bucket/run, also after pathlib made gs:/bucket/run of it, and `~`
    without a home directory. Neither may become a folder of that name.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise ConfigError(f"{name}: got {text!r}, expected a local path, not a URL")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{name}: got {text!r}, but there is no such home directory; give the whole path"
        ) from None


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
