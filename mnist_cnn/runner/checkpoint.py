"""Saves and restores the state of a run. No other file knows Orbax.

A checkpoint is a tree of NumPy arrays and a small JSON object. The SHA-256 of both is stored with
them and compared after reading, so that a damaged checkpoint is detected and never used.
"""

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
    digest = hashlib.sha256()
    for _, array in sorted(_arrays(tree).items()):
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def has_checkpoint(directory: pathlib.Path) -> bool:
    """Whether there is a complete checkpoint; an unfinished one has a longer name.

    Raises CheckpointError if the directory cannot be read.
    """
    try:
        return any(name.isdigit() for name in os.listdir(directory))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot be read ({error.strerror}); fix this and run the same command "
            "again"
        ) from None


class Checkpoints:
    """The checkpoints of one run, written in the background; the newest `keep` are kept."""

    def __init__(self, directory: pathlib.Path, keep: int | None) -> None:
        """Opens an absolute path and creates it; `keep` None opens it for reading only."""
        self._directory = directory
        self._keep = keep
        if keep is not None:
            # Orbax would delete these in the background, which races with the first save.
            for unfinished in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            with self._write_errors():
                directory.mkdir(exist_ok=True)
        # The import is slow, and the first steps do not need it.
        threading.Thread(target=_orbax, daemon=True).start()

    @functools.cached_property
    def _manager(self) -> Any:
        ocp = _orbax()
        process = jax.process_index()  # only this one opens it: it must not wait for the others
        multiprocessing = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix="alone"
        )
        options = ocp.CheckpointManagerOptions(
            read_only=self._keep is None,
            max_to_keep=self._keep,
            create=False,
            lightweight_initialize=True,  # one damaged checkpoint must not block the others
            multiprocessing_options=multiprocessing,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, tree: Tree, extra: dict[str, Any]) -> None:
        """Starts to write a checkpoint, after the previous one is complete.

        `tree` and the JSON object `extra` must not change until `wait` or the next `save` returns.
        Raises CheckpointError if this checkpoint or the previous one cannot be written.
        """
        args, extra = _orbax().args, extra | {"sha256": _checksum(tree, extra)}
        with self._write_errors():
            items = args.Composite(tree=args.StandardSave(tree), extra=args.JsonSave(extra))
            if not self._manager.save(step, args=items):  # Orbax gives no reason
                raise CheckpointError(f"a checkpoint of step {step:,} or later exists")

    def wait(self) -> None:
        """Returns when everything is on disk; raises CheckpointError if it cannot be written."""
        with self._write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        if "_manager" in self.__dict__:  # Orbax has opened the directory
            self._manager.close()

    def restore(
        self, template: Tree | None, report: Callable[[str], None], only: int | None = None
    ) -> tuple[int, Tree, dict[str, Any]] | None:
        """The step, tree and JSON object of the newest undamaged checkpoint; None if there is none.

        With `only` it is that of this step; CheckpointError if it is not kept.

        Damaged ones are reported, and renamed to STEP.damaged after an older one has been read,
        unless the checkpoints are open for reading only. `template` has the expected names, shapes
        and dtypes; None accepts all. Raises CheckpointError if all are damaged, the newest
        undamaged one differs from it, or the system cannot read one, which is no damage.
        """
        if not has_checkpoint(self._directory):
            return None
        damaged: list[int] = []
        steps = sorted(self._manager.all_steps(), reverse=True)
        if only is not None and only not in steps:
            raise CheckpointError(
                f"{self._directory}: no checkpoint of step {only:,}; there are those of "
                f"{', '.join(f'{kept:,}' for kept in reversed(steps))}"
            )
        for step in steps if only is None else [only]:
            try:
                tree, extra = self._read(step)
            except Exception as error:  # Orbax, tensorstore and JSON each raise their own
                if _is_system_error(error):
                    raise CheckpointError(
                        f"{self._directory}: checkpoint {step} cannot be read ({_reason(error)}); "
                        "nothing was changed; fix this and run the same command again"
                    ) from error
                report(f"checkpoint {step} is damaged ({_reason(error)}); trying an older one")
                damaged.append(step)
                continue
            if template is not None:
                if specs(tree) != specs(template):
                    raise CheckpointError(
                        f"{self._directory}: checkpoint {step} is of another network or optimizer "
                        "than the experiment file now defines; restore that file, or give another "
                        "--workdir"
                    )
                # Use the structure of the template: the checksum does not cover empty dicts.
                tree = jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(tree))
            if damaged and self._keep is not None:
                with self._write_errors():
                    for bad in damaged:
                        _rename_damaged(self._directory / str(bad))
                self._manager.close()
                del self._manager  # a new one lists the directory again
            return step, tree, extra
        if damaged:
            raise CheckpointError(
                f"{self._directory}: every checkpoint is damaged ({sorted(damaged)}); nothing was "
                "deleted; to start over, give another --workdir or remove this one"
            )
        return None

    def _read(self, step: int) -> tuple[Tree, dict[str, Any]]:
        args = _orbax().args
        items = args.Composite(tree=args.StandardRestore(), extra=args.JsonRestore())
        saved = self._manager.restore(step, args=items)
        tree, extra = jax.tree.map(np.asarray, saved["tree"]), saved["extra"]
        if _checksum(tree, extra) != extra["sha256"]:
            raise CheckpointError("its contents are not those that were saved")
        return tree, extra

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turns any error of Orbax, tensorstore or the system into a CheckpointError."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"{self._directory}: cannot be written ({_reason(error)}); older checkpoints are "
                "kept; fix this and run the same command again"
            ) from error


def read_newest(
    directory: pathlib.Path,
    template: Tree | None,
    report: Callable[[str], None],
    step: int | None = None,
) -> tuple[int, Tree, dict[str, Any]]:
    """What `Checkpoints.restore` returns, without a change; CheckpointError if there is none."""
    with contextlib.closing(Checkpoints(directory, keep=None)) as checkpoints:
        restored = checkpoints.restore(template, report, step)
    if restored is None:
        raise CheckpointError(f"{directory}: no checkpoint yet; resume the run first")
    return restored


def _checksum(tree: Tree, extra: dict[str, Any]) -> str:
    """What a checkpoint stores as "sha256"."""
    text = json.dumps({key: extra[key] for key in sorted(extra) if key != "sha256"})
    return hashlib.sha256((sha256(tree) + text).encode()).hexdigest()


def _arrays(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def specs(tree: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each array of a tree, or of what has them, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in leaves}


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint


def _rename_damaged(path: pathlib.Path) -> None:
    """Orbax ignores a folder whose name is not a number."""
    new, number = path.with_name(f"{path.name}.damaged"), 1
    while new.exists():
        number += 1
        new = path.with_name(f"{path.name}.damaged-{number}")
    os.rename(path, new)


# Why a good file cannot be read now.
_UNREADABLE = (
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM),
    *(errno.ESTALE, errno.ETIMEDOUT),
)


def _is_system_error(error: BaseException | None) -> bool:
    """Whether a read failed for the system's reasons: the files may be good."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno in _UNREADABLE:
            return True
        text = str(error).lower()  # tensorstore raises a ValueError with the system's text
        if any(os.strerror(number).lower() in text for number in _UNREADABLE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: BaseException) -> str:
    """The cause in a few words: that of the operating system, if a library wraps it."""
    text = " ".join(str(error).split())
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, *_UNREADABLE):
        if os.strerror(number).lower() in text.lower():
            return os.strerror(number)
    return text[:160] or type(error).__name__
