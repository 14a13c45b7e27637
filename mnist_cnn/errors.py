"""The exceptions that users see: the commands print their text as one line and exit."""


class UserError(Exception):
    """An error that the user can fix; one line: what was given, what was expected, what to do."""


class ConfigError(UserError):
    """A field or a flag is unknown, of the wrong type, or out of range."""


class DataError(UserError):
    """Data files are missing, truncated, altered or inconsistent."""


class PictureError(UserError):
    """A file is not a readable picture, or shows no digit."""


class CheckpointError(UserError):
    """A run directory or a checkpoint cannot be used."""


def printable(text: str) -> str:
    """`text` with control characters escaped, such as \\x1b: file names can contain them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
