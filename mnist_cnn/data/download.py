"""The datasets that tfds knows: addresses and SHA-256 of their files, and their download."""

import contextlib
import errno
import functools
import logging
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from mnist_cnn import config as config_lib
from mnist_cnn.data.idx_folder import FILES
from mnist_cnn.errors import DataError

DATASETS = config_lib.FIELDS["dataset"].choices  # of tfds, all in the files of MNIST's form
SILENCE_SECONDS = 4.0  # a server that sends nothing for longer is given up
_DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK_ERRORS |= {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}


def registered(name: str) -> dict[str, Any]:
    """The files' addresses, in the order of `FILES` -> their size and checksum as tfds has them."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_cls(name)
    return {url: builder.url_infos[url] for url in (f"{builder.URL}{file}.gz" for file in FILES)}


def fetch(name: str, cache: Path) -> list[Path]:
    """The files, in the order of `FILES`, from tfds' download cache or else from the network.

    Raises a `DataError` if neither has a file; within two seconds if there is no network. Raises an
    OSError if `cache` cannot be written.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    tfds.disable_progress_bar()
    downloader.MAX_RETRIES = 1  # tfds' ten take 205 s
    # By default requests waits for ever. The function takes the arguments of `requests.get`.
    downloader._open_url = functools.partial(downloader._open_url, timeout=SILENCE_SECONDS)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a warning per retry
    url_infos = registered(name)
    advice = f"put {'.gz, '.join(FILES)}.gz into a folder and name it as manual_dir"

    class DownloadManager(tfds.download.DownloadManager):
        def _download(self, resource: Any) -> Any:  # called for files that are not cached
            if not _reachable(urllib.parse.urlsplit(resource.url)):
                url = urllib.parse.urljoin(resource.url, ".")
                raise DataError(f"{name} is not here, and {url} cannot be reached: {advice}")
            return super()._download(resource)

    try:
        manager = DownloadManager(download_dir=cache, url_infos=url_infos, dataset_name=name)
        return [Path(path) for path in manager.download(list(url_infos))]
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        # tfds, requests and urllib3 share no base class.
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name} was not downloaded ({reason}): try again, or {advice}") from error


def _reachable(host: urllib.parse.SplitResult, seconds: float = 1.2) -> bool:
    """Whether `host`, or the proxy for it, accepts a connection within this number of seconds."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(host.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host.netloc):
        host = urllib.parse.urlsplit(proxy if "://" in proxy else f"//{proxy}")
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError, ValueError, OverflowError):
            port = host.port or (443 if host.scheme == "https" else 80)
            socket.create_connection((host.hostname, port), timeout=seconds).close()
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # a DNS resolver may hang for longer
    thread.start()
    thread.join(seconds)
    return connected.is_set()
