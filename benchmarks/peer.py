"""Runs a peer as a process in its own virtual environment."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import venv
from typing import Any

_ROOT = pathlib.Path(__file__).parents[1]
_ENVIRONMENTS = _ROOT / "benchmarks" / ".venvs"
_CONSTRAINTS = _ROOT / "constraints.txt"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A program of `benchmarks/peers`.

    Attributes:
      title: its name in tables and plots.
      program: the module and its arguments.
      environment: the name of its virtual environment; None is the current one.
      packages: the packages to install there. With JAX, constraints.txt pins their versions.
    """

    title: str
    program: tuple[str, ...]
    environment: str | None = None
    packages: tuple[str, ...] = ()


# glibc otherwise returns large blocks to the system at each free: half of PyTorch's speed on a CPU.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "10000000000"}
PRECISIONS = ("float32", "bfloat16")


def torch_peers(network: str = "tutorial") -> list[Peer]:
    """PyTorch in all its forms: two layouts, the faster one also compiled, and both precisions."""
    forms = ("contiguous", "channels_last", "channels_last compiled")
    return [
        Peer(
            f"PyTorch, {form}, {precision}", ("pytorch", network, *form.split(), precision),
            "pytorch", ("torch==2.13.0", "numpy"),
        )
        for precision in PRECISIONS
        for form in forms
    ]  # fmt: skip


PEERS = (
    *(Peer(f"mnist_cnn, {precision}", ("ours", precision)) for precision in PRECISIONS),
    *torch_peers(),
    Peer("Keras on TensorFlow", ("keras_fit", "tensorflow"), "keras-tensorflow",
         ("keras==3.15.0", "tensorflow-cpu==2.21.0")),
    Peer("Keras on JAX", ("keras_fit", "jax"), "keras-jax", ("keras", "jax")),
    Peer("plain Flax loop", ("flax_loop",), "flax", ("flax", "jax", "optax")),
)  # fmt: skip


class PeerProcess:
    """The process of a peer, which sleeps between requests."""

    def __init__(self, peer: Peer) -> None:
        """Starts the process, and first makes its environment if it does not exist.

        Raises:
          RuntimeError: the environment cannot be made, or the peer does not start.
        """
        self.peer = peer
        command = [python(peer), "-m", f"benchmarks.peers.{peer.program[0]}", *peer.program[1:]]
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, cwd=_ROOT, text=True, bufsize=1, env=os.environ | _KEEP_MEMORY,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
        )  # fmt: skip
        self.versions: dict[str, str] = self._answer()["versions"]

    def train(self, batch_size: int, steps: int) -> dict[str, float]:
        """Takes the next steps: {"seconds": wall time, "loss": mean training loss}."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"batch_size": batch_size, "steps": steps}) + "\n")
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            message = self._stderr.read().strip()[-500:]
            raise RuntimeError(f"{self.peer.title} ended unexpectedly: {message}")
        return json.loads(line)


def python(peer: Peer) -> str:
    """The interpreter of the peer's environment, which is made if it does not exist."""
    if peer.environment is None:
        return sys.executable
    folder = _ENVIRONMENTS / peer.environment
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"making an environment for {peer.title} ({', '.join(peer.packages)})", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "-q"]
        if "jax" in peer.packages:
            install += ["-c", _CONSTRAINTS]
        done = subprocess.run([*install, *peer.packages], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{peer.title} cannot be installed: {done.stderr.strip()[-500:]}")
        complete.touch()
    return str(python)
