"""Keeps compiled programs between runs: JAX's persistent cache, made safe against kills.

JAX writes cache entries in place, never replaces one and does not verify what it reads, so a kill
during a write would leave a bad entry forever. Here every process gives JAX a work folder, filled
with the entries whose SHA-256 is the one in their name, and then publishes new ones by renaming.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from mnist_cnn.errors import ConfigError
from mnist_cnn.files import local_path, write_atomically

_MAX_ENTRIES = 64  # of 0.1 to 1 MB; the least recently used are deleted
_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)
_STALE_SECONDS = 3600.0  # a killed process left a work folder of this age


@contextlib.contextmanager
def compile_cache() -> Iterator[None]:
    """Within it, programs are read from the user's cache folder, or compiled and stored there.

    The folder is `$XDG_CACHE_HOME/mnist_cnn` or `~/.cache/mnist_cnn`; without a home directory one
    in the temporary folder, that belongs to the user alone. If the user has set JAX's
    own cache (`JAX_COMPILATION_CACHE_DIR`), that one is used instead.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        yield
        return
    try:
        home = _cache_home()
        store = home / "mnist_cnn" / "compiled" / _processor_digest()
        store.mkdir(parents=True, exist_ok=True)
        work = pathlib.Path(tempfile.mkdtemp(prefix="work-", dir=store))
    except (OSError, ConfigError):  # a run works without a cache
        yield
        return
    with contextlib.suppress(OSError):
        _copy_entries(store, work)
    copied = {path.name for path in work.iterdir()}
    before = {name: jax.config.values[name] for name in _SETTINGS}
    # XLA's own caches would make the folder's path a part of every key.
    _configure(dict(zip(_SETTINGS, (str(work), 0.0, None), strict=True)))
    try:
        yield
    finally:
        _configure(before)
        with contextlib.suppress(OSError):
            for path in work.iterdir():
                if path.name not in copied:
                    content = path.read_bytes()
                    write_atomically(store / f"{path.name}.{_digest(content)}", content)
            entries = [path for path in store.iterdir() if path.is_file()]
            for path in sorted(entries, key=lambda path: path.stat().st_mtime)[:-_MAX_ENTRIES]:
                path.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)


def _cache_home() -> pathlib.Path:
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return local_path(chosen, "XDG_CACHE_HOME")
    with contextlib.suppress(ConfigError):
        return local_path("~/.cache", "XDG_CACHE_HOME")
    folder = pathlib.Path(tempfile.gettempdir(), f"mnist_cnn-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's own")  # others could put programs there
    return folder


def _configure(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX reads its settings only once


def _copy_entries(store: pathlib.Path, work: pathlib.Path) -> None:
    """Copies the valid entries to `work`, and deletes bad ones and stale work folders."""
    for path in sorted(store.iterdir()):
        if path.is_dir():
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
            continue
        name, _, digest = path.name.rpartition(".")
        with contextlib.suppress(FileNotFoundError):  # another process may delete it
            content = path.read_bytes()
            if name and _digest(content) == digest:
                (work / name).write_bytes(content)
                os.utime(path)
            elif not path.name.startswith("."):  # a process is writing those
                path.unlink()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _processor_digest() -> str:
    """Identifies the kind of processor: compiled code must not move to another one."""
    lines = {platform.machine(), platform.processor()}
    with contextlib.suppress(OSError):
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
        lines |= {x for x in cpuinfo.splitlines() if x.startswith(("model name", "flags"))}
    return _digest("\n".join(sorted(lines)).encode())[:16]
