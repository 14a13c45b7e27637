"""Writes a trained network to a file that can be used without this package.

    python -m mnist_cnn.export [--workdir DIR] --format FORMAT [--output FILE] [--seed SEED|all]

FORMAT is `stablehlo` (runs on CPU, GPU and TPU; needs JAX and flatbuffers only), `onnx` (for ONNX
runtimes), `safetensors` (the parameters by name) or `html` (a page that recognizes drawings and
photos, for any browser). --seed=all is the ensemble of all seeds, in one file. Without --workdir it
is the network that comes with the package; FILE is by default `network.FORMAT` in the current
directory.
Exit status: 0 done; 1 an error; 2 bad usage.
"""

import pathlib

from absl import flags

import mnist_cnn
from mnist_cnn import command_line
from mnist_cnn.analysis.export_formats import FORMATS
from mnist_cnn.analysis.packaged import PACKAGED
from mnist_cnn.errors import ConfigError, UserError, import_problem, printable
from mnist_cnn.files import write_atomically
from mnist_cnn.runner import results


def main(arguments: list[str]) -> int:
    args = flags.FLAGS
    if args.format is None or len(arguments) > 1:
        raise ConfigError(
            f"expected [--workdir DIR] --format {'|'.join(FORMATS)} [--output FILE]; "
            "see --helpshort"
        )
    command_line.silence_libraries()
    path = pathlib.Path(args.output or f"network.{args.format}")
    command_line.check_output(path)
    network = mnist_cnn.load(args.workdir or PACKAGED, args.config, args.seed)
    try:
        content = FORMATS[args.format](network)
    except ImportError as error:
        reason = import_problem(error, "pip install 'mnist_cnn[export]'")
        raise UserError(f"--format {args.format}: {reason}") from None
    write_atomically(path, content)
    label = results.network_label(network.seed, network.step)
    print(f"{printable(str(path))}: {args.format}, {len(content):,} bytes, {label}")
    return 0


if __name__ == "__main__":  # an import defines no flags
    command_line.define_network_flags(PACKAGED)
    flags.DEFINE_enum("format", None, list(FORMATS), "The format of the file.")
    command_line.define_path("output", "The file to write; by default network.FORMAT here.")
    command_line.run_command(main, command_line.parse_flags)
