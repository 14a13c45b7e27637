"""Saving and restoring a run's state: the only file that knows Orbax.

A checkpoint is a tree of NumPy arrays and a small JSON object.  The SHA-256 of the tree is kept
beside it and checked when it is read, so that a damaged checkpoint is found, never used.
"""

from __future__ import annotations

import hashlib
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mnist_cnn.errors import CheckpointError

Tree = dict[str, Any]  # nested dicts with NumPy arrays as leaves


def sha256(tree: Any) -> str:
    """SHA-256 over the bytes of a tree's arrays (little-endian), in the order of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    digest = hashlib.sha256()
    for _, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        array = np.asarray(leaf)
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one run; written in the background, the last `keep` kept."""

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        """`directory` must be absolute; it is made if it is not there."""
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._directory = directory
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(directory, options=options)

    def save(self, step: int, tree: Tree, extra: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns as soon as the previous one is written.

        The arrays must not change until then: give copies.
        """
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                tree=args.StandardSave(tree),
                extra=args.JsonSave({"sha256": sha256(tree), **extra}),
            ),
        )

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def restore(
        self, template: Tree, report: Callable[[str], None]
    ) -> tuple[int, Tree, dict[str, Any]] | None:
        """The newest good checkpoint: its step, tree and JSON object; None if there is none at all.

        A damaged one is reported, and removed once an older good one has been read.

        Raises:
          CheckpointError: there are checkpoints, and all are damaged.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                tree, extra = self._read(step, template)
            except Exception as error:  # Orbax, tensorstore and JSON each raise their own
                reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
                report(f"checkpoint {step} is damaged ({reason}); trying the one before")
                damaged.append(step)
                continue
            for bad in damaged:
                shutil.rmtree(self._directory / str(bad), ignore_errors=True)
            if damaged:
                self._manager.reload()
            return step, tree, extra
        if damaged:
            raise CheckpointError(
                f"{self._directory}: every checkpoint is damaged ({sorted(damaged)}), nothing was "
                "deleted; to start over, give another --workdir or remove this one"
            )
        return None

    def _read(self, step: int, template: Tree) -> tuple[Tree, dict[str, Any]]:
        args = self._ocp.args
        restored = self._manager.restore(
            step,
            args=args.Composite(tree=args.StandardRestore(template), extra=args.JsonRestore()),
        )
        tree, extra = restored["tree"], restored["extra"]
        tree = jax.tree_util.tree_map(np.asarray, tree)
        if sha256(tree) != extra["sha256"]:
            raise CheckpointError("its contents are not the ones that were saved")
        return tree, extra
