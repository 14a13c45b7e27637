"""The memory of this machine, and an estimate of what the networks of a run need of it."""

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from mnist_cnn import config as config_lib
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import UserError
from mnist_cnn.parallel.mesh import on_cpu
from mnist_cnn.training.batches import Split
from mnist_cnn.training.state import create_state

# A checkpoint holds the states again, for a moment, in the snapshot that is written, in the next
# one, in Orbax's own copy and in the files' buffers. The peak of the base experiment with 8 and 24
# seeds and a checkpoint every two steps was 4.3 and 4.7 states for each network, with its own.
_COPIES = 4.0


def check_data(num_examples: int, image_shape: Sequence[int], device: Any) -> None:
    """Raises UserError if the training images do not fit, before they are read.

    All of them lie in the memory of each device (of which `device` is one), and twice in this
    machine's while they are laid there.
    """
    data_bytes = num_examples * math.prod(image_shape)
    stats = device.memory_stats() or {}
    sizes = {"this machine has": (2 * data_bytes, available_memory())}
    sizes["each device has"] = data_bytes, float(stats.get("bytes_limit", math.inf))
    for owner, (need, available) in sizes.items():
        if need > available:
            fitting = int(num_examples * available / need)
            raise UserError(
                f"{num_examples:,} training images of {'x'.join(map(str, image_shape))} need "
                f"{need / 1e9:,.2f} GB of memory, but {owner} {available / 1e9:,.2f} GB, for "
                f"{fitting:,}; train on fewer: --config.train_split='train[:{fitting}]'"
            )


def check_memory(
    config: Mapping[str, Any], mesh: Mesh, data: Split, spec: DataSpec = MNIST
) -> None:
    """Raises UserError if this machine's memory is too small for the networks of a run.

    `data` is the training split, as NumPy arrays.
    """
    state = jax.eval_shape(lambda: create_state(config, len(data.labels), spec))
    check_sizes(
        len(config_lib.replicas(config)),
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        sum(array.nbytes for array in jax.tree.leaves(data)),
        states_on_host=on_cpu(mesh),
        processes=jax.process_count(),
    )


def check_sizes(
    replicas: int, state_bytes: int, data_bytes: int, *, states_on_host: bool, processes: int
) -> None:
    """Raises UserError if the networks of a run need more memory than this process can have.

    `state_bytes` are those of one network's parameters, statistics and optimizer state.
    """
    states = replicas * state_bytes
    need = states * (_COPIES + states_on_host / processes) + 2 * data_bytes
    available = available_memory()
    if need <= available:
        return
    fitting = max(0, int(replicas * (available - 2 * data_bytes) / (need - 2 * data_bytes)))
    raise UserError(
        f"{replicas:,} networks (num_seeds times the settings of the sweep) of "
        f"{state_bytes / 1e6:,.1f} MB each need about {need / 1e9:,.1f} GB of memory when a "
        f"checkpoint is written, but {available / 1e9:,.1f} GB are available, for about "
        f"{fitting:,}; train fewer (python -m mnist_cnn.join joins runs of different seeds)"
    )


def available_memory(root: pathlib.Path = pathlib.Path("/")) -> float:
    """The bytes that this process can still use: the machine's, or the limit of a cgroup."""
    limits = [math.inf]
    with contextlib.suppress(OSError):
        text = (root / "proc/meminfo").read_text()
        limits += [1024.0 * int(size) for size in re.findall(r"MemAvailable: +(\d+) kB", text)]
    if len(limits) == 1:  # not Linux
        with contextlib.suppress(OSError, ValueError):
            limits.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":  # version 2
                folder, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                folder, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            # A limit holds for the groups below. In a container, the path can be the host's.
            parts = pathlib.PurePosixPath(group).parts[1:]
            for count in range(len(parts) + 1):
                with contextlib.suppress(OSError, ValueError):  # "max": no limit
                    limits.append(float((folder.joinpath(*parts[:count]) / name).read_text()))
    return min(limits)
