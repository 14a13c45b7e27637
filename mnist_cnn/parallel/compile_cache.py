"""Compiled programs kept between runs: JAX's persistent cache, made safe to share.

JAX writes cache entries in place, never overwrites one and reads them unchecked, so a kill in the
middle would leave a bad entry for ever.  Here every process gives JAX a folder of its own, filled
with entries whose SHA-256 (part of their name) is right, and publishes what is new by renaming.
A bad entry is removed; without a cache, or with a useless one, the program is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from mnist_cnn.files import write_atomically

_KEPT = 64  # entries a folder, 0.1 to 1 MB each; the longest unused go first
_STALE_SECONDS = 3600.0  # a work folder of that age was left by a process that was killed


@contextlib.contextmanager
def compile_cache() -> Iterator[None]:
    """Within it, programs are taken from the user's cache folder, or compiled and kept there.

    The folder is `$XDG_CACHE_HOME/mnist_cnn` or `~/.cache/mnist_cnn`.  A cache that the user gave
    JAX himself (`JAX_COMPILATION_CACHE_DIR`) is left to JAX.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        yield
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    store = pathlib.Path(home, "mnist_cnn", "compiled", _machine())
    try:
        store.mkdir(parents=True, exist_ok=True)
        work = pathlib.Path(tempfile.mkdtemp(prefix="work-", dir=store))
    except OSError:  # a cache is a convenience: nothing fails for the lack of one
        yield
        return
    taken: set[str] = set()
    with contextlib.suppress(OSError):
        _take(store, work, taken)
    _use(str(work))
    try:
        yield
    finally:
        _use(None)
        with contextlib.suppress(OSError):
            _publish(store, work, taken)
        shutil.rmtree(work, ignore_errors=True)


def _use(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if folder else 1.0)
    # Those of XLA's own would put the folder's name into the key of every entry.
    jax.config.update("jax_persistent_cache_enable_xla_caches", None)
    compilation_cache.reset_cache()  # JAX looks at its settings once


def _take(store: pathlib.Path, work: pathlib.Path, taken: set[str]) -> None:
    """Fills `work` with the good entries, named in `taken` then, and removes the bad ones."""
    for path in sorted(store.iterdir()):
        if path.is_dir():
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
            continue
        name, _, digest = path.name.rpartition(".")
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # another process removed it
            continue
        if name and hashlib.sha256(content).hexdigest() == digest:
            (work / name).write_bytes(content)
            taken.add(name)
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
        elif not path.name.startswith("."):  # those are being written by somebody
            path.unlink(missing_ok=True)


def _machine() -> str:
    """A name for this kind of processor: a home folder may be shared, compiled code may not."""
    lines = {platform.machine(), platform.processor()}
    with contextlib.suppress(OSError):
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
        lines |= {x for x in cpuinfo.splitlines() if x.startswith(("model name", "flags"))}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _publish(store: pathlib.Path, work: pathlib.Path, taken: set[str]) -> None:
    """Keeps what was compiled, whole or not at all, and drops what was unused for longest."""
    for path in work.iterdir():
        if path.name not in taken:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            write_atomically(store / f"{path.name}.{digest}", content)
    entries = sorted(
        (path for path in store.iterdir() if path.is_file()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in entries[_KEPT:]:
        path.unlink(missing_ok=True)
