"""Fetches the published NIGHTS chunks: resumes, checks sizes and checksums, unpacks.

200 zips (ref and distort, 000 to 099) and data.csv, which is read out of nights.zip without fetching its
58 GB.  The same command goes on where it stopped.  Source of the addresses: github.com/ssundaram21/dreamsim,
dataset/download_chunked_dataset.sh.

HTTP is fsspec's (`pip install 'fsspec[http]'`); our own are resuming and trying again.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from pipeline.base import files
from pipeline.base.console import Progress

if TYPE_CHECKING:
    from fsspec.implementations.http import HTTPFileSystem

URL = "https://data.csail.mit.edu/nights"
CHUNKS = range(100)
BLOCK = 64 << 20  # bytes of one request
_TRIES, _TIMEOUT = 5, 60
_PAUSE = 1.0  # seconds before the second try

Result = TypeVar("Result")


def fetch_nights(folder: Path, url: str = URL) -> None:
    """Complete `folder` so that it holds data.csv, ref/ and distort/.

    Raises ValueError when the server does not deliver, OSError for a full disk.
    """
    web = _web()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data.csv").is_file():
        archive = f"{url}/nights.zip"
        files.write(folder / "data.csv", _again(archive, lambda: _read_table(web, archive)))
    marks = folder / ".fetched"  # an empty file for each finished chunk
    marks.mkdir(exist_ok=True)
    wanted = [(kind, number) for number in CHUNKS for kind in ("ref", "distort")]
    progress = Progress("nights", len(wanted), len(list(marks.iterdir())))
    for kind, number in wanted:
        mark = marks / f"{kind}-{number:03d}"
        if not mark.exists():
            zipped = folder / f".{kind}-{number:03d}.zip"
            _fetch(web, f"{url}/nights_chunked/{kind}/{number:03d}.zip", zipped)
            _unpack(zipped, folder / kind / f"{number:03d}")
            zipped.unlink()
            mark.touch()
            progress.finished(1)
            progress.show(progress.done)
    progress.end()


def _web() -> HTTPFileSystem:
    try:
        import aiohttp
        from fsspec.implementations.http import HTTPFileSystem
    except ImportError as error:
        raise ValueError(f"--download needs {error.name}: pip install 'fsspec[http]'") from None
    timeout = aiohttp.ClientTimeout(sock_connect=_TIMEOUT, sock_read=_TIMEOUT)
    # Proxies as the environment has them; no cached instance, whose settings might be another's.
    return HTTPFileSystem(client_kwargs={"timeout": timeout, "trust_env": True}, skip_instance_cache=True)


def _again(url: str, request: Callable[[], Result]) -> Result:
    """Call `request`; after a fault of the network or the server try again, waiting longer each time."""
    import aiohttp

    for attempt in range(_TRIES):
        try:
            return request()
        except (aiohttp.ClientError, FileNotFoundError, ConnectionError, TimeoutError) as error:
            fault = error.__cause__ or error  # fsspec raises FileNotFoundError from what it met
        if isinstance(fault, FileNotFoundError):
            raise ValueError(f"{url}: the server answers 404 Not Found")
        if isinstance(fault, aiohttp.ClientResponseError) and fault.status < 500:
            raise ValueError(f"{url}: the server answers {fault.status} {fault.message}")
        if attempt + 1 < _TRIES:
            time.sleep(2.0**attempt * _PAUSE)
    raise ValueError(f"{url}: {fault}, {_TRIES} times; the same command goes on later")


def _fetch(web: HTTPFileSystem, url: str, path: Path) -> None:
    """Download `url` to `path` block by block, continuing what an earlier try left in PATH.part."""
    size = _again(url, lambda: web.info(url))["size"]
    if size is None:
        raise ValueError(f"{url}: the server does not tell the size")
    part = path.with_name(path.name + ".part")
    with open(part, "ab") as file:
        have = file.tell()
        if have > size:  # of another file
            have = file.truncate(0)
        while have < size:
            stop = min(have + BLOCK, size)
            block = _again(url, partial(web.cat_file, url, start=have, end=stop))
            if len(block) == size > stop - have:  # no ranges here: the whole file came
                have = file.truncate(0)
            elif not 0 < len(block) <= stop - have:
                raise ValueError(f"{url}: {len(block)} bytes came where {stop - have} were asked for")
            file.write(block)
            have += len(block)
    part.rename(path)


def _unpack(archive: Path, folder: Path) -> None:
    """Put the images of a zip into `folder`; zipfile checks their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member in zipped.infolist():
                name = PurePosixPath(member.filename).name  # never a path of the archive's choosing
                if name.endswith(".png"):
                    (folder / name).write_bytes(zipped.read(member))
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise ValueError(f"{archive.name}: {error}; the same command fetches it again") from None


def _read_table(web: HTTPFileSystem, url: str) -> bytes:
    """data.csv, from the middle of the large archive."""
    try:
        with web.open(url) as remote, zipfile.ZipFile(remote) as archive:
            for name in archive.namelist():
                if PurePosixPath(name).name == "data.csv":
                    return archive.read(name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{url}: {error}") from None
    except ValueError as error:  # fsspec cannot seek
        raise ValueError(f"{url}: the server does not deliver ranges ({error}); fetch it by hand") from None
    raise ValueError(f"{url}: no data.csv in it")
