"""Lists the commands, or runs one of them.

    mnist_cnn COMMAND [ARGUMENT ...]

is `python -m mnist_cnn.COMMAND [ARGUMENT ...]`. Exit status: that of the command; 2 bad usage.
"""

import os
import pathlib
import sys

COMMANDS = ("main", "evaluate", "predict", "report", "export", "demo", "join")


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        command = [sys.executable, "-m", f"mnist_cnn.{name}", *sys.argv[2:]]
        os.execv(sys.executable, command)
    if name not in ("--help", "-h", "help"):
        print(f"error: {name!r} is no command; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    print(
        "usage: python -m mnist_cnn.COMMAND [ARGUMENT ...], or mnist_cnn COMMAND [ARGUMENT ...]\n"
    )
    for name in COMMANDS:
        source = pathlib.Path(__file__).with_name(f"{name}.py").read_text()
        print(f"  {name:<9} {source.partition(chr(10))[0].strip(chr(34))}")
    print("\npython -m mnist_cnn.COMMAND --helpshort shows the flags of a command.")


if __name__ == "__main__":
    main()
