"""The network that comes with the package, which needs no run and no network connection."""

import pathlib

PACKAGED = "digits"  # its name for `load`, and for --workdir
FILE = pathlib.Path(__file__).parents[1] / "digits" / "digits.safetensors"
