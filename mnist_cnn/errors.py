"""The one kind of exception that a user of the commands sees.

Every module may raise it; only the commands (`main` and its like) catch it, print its text as
one line (`printable`) and choose the exit status.  It must not know the rest of the package.
"""


class UserError(Exception):
    """Something that the user can mend.

    The text is one line that says what was given, what was expected and what to do.
    """


class ConfigError(UserError):
    """A field of the configuration is unknown, of the wrong type, or out of range."""


class DataError(UserError):
    """Data files are missing, truncated, altered or contradict one another."""


class PictureError(UserError):
    """A file is no picture that can be read, or shows no digit."""


class CheckpointError(UserError):
    """A run directory or checkpoint cannot be used."""


def printable(text: str) -> str:
    """`text` with control characters (of a file's name, say) as \\x1b and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
