"""Saving and restoring a run's state: the only file that knows Orbax.

A checkpoint is a tree of NumPy arrays and a small JSON object.  The SHA-256 of both is kept beside
them and checked when they are read, so that a damaged checkpoint is found, never used.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
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
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def _seal(tree: Tree, extra: dict[str, Any]) -> str:
    """What is stored as a checkpoint's "sha256"."""
    text = json.dumps({key: extra[key] for key in sorted(extra) if key != "sha256"})
    return hashlib.sha256((sha256(tree) + text).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run; written in the background, the last `keep` kept."""

    def __init__(self, directory: pathlib.Path, keep: int | None) -> None:
        """Opens `directory` (absolute), made if it is not there; `keep` None only to read it."""
        self._directory = directory
        self._keep = keep
        if keep is not None:
            # Not left to Orbax, whose cleaning in the background races with the first save.
            for begun in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(begun, ignore_errors=True)
            with self._writing():
                directory.mkdir(exist_ok=True)
        # Imported while the first steps are computed, which need no Python.
        threading.Thread(target=_orbax, daemon=True).start()

    @functools.cached_property
    def _manager(self) -> Any:
        ocp = _orbax()
        alone: Any = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:  # whoever opens it works alone: no barrier with the others
            process = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix="alone"
            )
        options = ocp.CheckpointManagerOptions(
            read_only=self._keep is None,
            max_to_keep=self._keep,
            create=False,
            lightweight_initialize=True,  # or one damaged checkpoint bars the way to all others
            multiprocessing_options=alone,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, tree: Tree, extra: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns as soon as the previous one is written.

        The arrays must not change until then: give copies.
        """
        args = _orbax().args
        extra = json.loads(json.dumps(extra))  # of its own, like the arrays
        with self._writing():
            begun = self._manager.save(
                step,
                args=args.Composite(
                    tree=args.StandardSave(tree),
                    extra=args.JsonSave({**extra, "sha256": _seal(tree, extra)}),
                ),
            )
            if not begun:  # Orbax says no more about it
                raise CheckpointError(f"there is one of step {step:,} or later")

    def wait(self) -> None:
        """Returns when everything is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says in one line what Orbax, tensorstore and the system say of a failed write."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"{self._directory}: cannot be written ({_reason(error)}); the checkpoints before "
                "are kept: mend that, and give the same command again"
            ) from error

    def restore(
        self, template: Tree | None, report: Callable[[str], None]
    ) -> tuple[int, Tree, dict[str, Any]] | None:
        """The newest good checkpoint: its step, tree and JSON object; None if there is none at all.

        A damaged one is reported, and (unless `keep` is None) removed once an older good one has
        been read.  `template` has the tree's names, shapes and dtypes; None takes them from the
        checkpoint.

        Raises:
          CheckpointError: there are checkpoints, and all are damaged; or a good one has other
            names, shapes or dtypes than `template`.
        """
        if not any(self._directory.glob("[0-9]*")):
            return None
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                tree, extra = self._read(step, template)
            except Exception as error:  # Orbax, tensorstore and JSON each raise their own
                if template is not None and self._is_good(step):
                    raise CheckpointError(
                        f"{self._directory}: checkpoint {step} is of another network or optimiser "
                        "than the experiment file now makes; give that file as it was, or another "
                        "--workdir"
                    ) from error
                report(f"checkpoint {step} is damaged ({_reason(error)}); trying the one before")
                damaged.append(step)
                continue
            if damaged and self._keep is not None:
                for bad in damaged:
                    shutil.rmtree(self._directory / str(bad), ignore_errors=True)
                self._manager.close()
                del self._manager  # the next one counts them anew
            return step, tree, extra
        if damaged:
            raise CheckpointError(
                f"{self._directory}: every checkpoint is damaged ({sorted(damaged)}), nothing was "
                "deleted; to start over, give another --workdir or remove this one"
            )
        return None

    def _is_good(self, step: int) -> bool:
        """Whether it can be read, whatever it holds."""
        try:
            self._read(step, None)
        except Exception:
            return False
        return True

    def _read(self, step: int, template: Tree | None) -> tuple[Tree, dict[str, Any]]:
        args = _orbax().args
        restored = self._manager.restore(
            step,
            args=args.Composite(tree=args.StandardRestore(template), extra=args.JsonRestore()),
        )
        tree, extra = restored["tree"], restored["extra"]
        tree = jax.tree_util.tree_map(np.asarray, tree)
        if _seal(tree, extra) != extra["sha256"]:
            raise CheckpointError("its contents are not the ones that were saved")
        if template is not None and _forms(tree) != _forms(template):
            raise CheckpointError("its shapes or dtypes are others")  # Orbax does not look
        return tree, extra


def _forms(tree: Tree) -> list[tuple[tuple[int, ...], Any]]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree_util.tree_leaves(tree)]


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint


def _reason(error: BaseException) -> str:
    """The cause in a few words: the system's, where it is behind the libraries' own."""
    text = " ".join(str(error).split())
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
        if os.strerror(number).lower() in text.lower():
            return os.strerror(number)
    return text[:160] or type(error).__name__
