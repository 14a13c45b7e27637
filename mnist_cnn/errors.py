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


def import_problem(error: ImportError, remedy: str) -> str:
    """Why an import failed: a package is missing, with the remedy, or cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"needs the package {error.name}: {remedy}"
    return f"a package cannot be imported ({error})"


def printable(text: str) -> str:
    """`text` with control characters escaped, such as \\x1b: file names can contain them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
