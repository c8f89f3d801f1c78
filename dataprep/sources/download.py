"""Fetches the published NIGHTS chunks: resumes, checks sizes and checksums, unpacks.

200 zips (ref and distort, 000 to 099) and data.csv, which is read out of nights.zip without fetching
the 58 GB of it.  The same command goes on where it stopped.  Source of the addresses:
github.com/ssundaram21/dreamsim, dataset/download_chunked_dataset.sh.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from pipeline.base.console import Progress
from pipeline.base.files import replacing

URL = "https://data.csail.mit.edu/nights"
CHUNKS = range(100)
_TRIES, _TIMEOUT, _BLOCK = 5, 60, 1 << 20
_PAUSE = 1.0  # seconds before the second try
_FAULTS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def fetch_nights(folder: Path, url: str = URL) -> None:
    """Complete `folder` so that it holds data.csv, ref/ and distort/.

    Raises ValueError when the server does not deliver, OSError for a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data.csv").is_file():
        _fetch_table(folder, f"{url}/nights.zip")
    done = folder / ".fetched"
    done.mkdir(exist_ok=True)
    wanted = [(kind, number) for number in CHUNKS for kind in ("ref", "distort")]
    progress = Progress("nights", len(wanted), len(list(done.iterdir())))
    for kind, number in wanted:
        mark = done / f"{kind}-{number:03d}"
        if not mark.exists():
            name = f"{number:03d}.zip"
            archive = folder / f".{kind}-{name}"
            _fetch(f"{url}/nights_chunked/{kind}/{name}", archive)
            _unpack(archive, folder / kind / f"{number:03d}")
            archive.unlink()
            mark.touch()
            progress.finished(1)
            progress.show(progress.done)
    progress.end()


def _open(url: str, start: int = 0, stop: int | None = None):
    """GET from byte `start` (to before `stop`); tries again, waiting longer each time."""
    request = urllib.request.Request(url)
    if start or stop is not None:
        request.add_header("Range", f"bytes={start}-{'' if stop is None else stop - 1}")
    for attempt in range(_TRIES):
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise ValueError(f"{url}: the server answers {error.code} {error.reason}") from None
            last = error
        except _FAULTS as error:
            last = error
        time.sleep(2.0**attempt * _PAUSE)
    raise ValueError(f"{url}: {last}, {_TRIES} times; the same command goes on later")


def _size(url: str) -> int:
    with _open(url) as answer:
        length = answer.headers.get("Content-Length")
    if length is None:
        raise ValueError(f"{url}: the server does not tell the size")
    return int(length)


def _fetch(url: str, path: Path) -> None:
    """Download `url` to `path`, continuing what an earlier try left in PATH.part."""
    part, size = path.with_name(path.name + ".part"), _size(url)
    for _ in range(_TRIES):
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            have = 0
        if have < size:
            with contextlib.suppress(*_FAULTS), _open(url, have) as answer:
                if have and answer.status != 206:  # no ranges here: from the start
                    part.unlink()
                with open(part, "ab") as file:
                    shutil.copyfileobj(answer, file, _BLOCK)
        if part.stat().st_size == size:
            part.rename(path)
            return
    raise ValueError(f"{url}: {part.stat().st_size} of {size} bytes came; the same command goes on later")


def _unpack(archive: Path, folder: Path) -> None:
    """Put the images of a zip into `folder`; their checksums are checked on the way."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member in zipped.infolist():
                name = PurePosixPath(member.filename).name  # never a path of the archive's choosing
                if name.endswith(".png"):
                    with zipped.open(member) as source, open(folder / name, "wb") as file:
                        shutil.copyfileobj(source, file, _BLOCK)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise ValueError(f"{archive.name}: {error}; the same command fetches it again") from None


def _fetch_table(folder: Path, url: str) -> None:
    """data.csv, from the middle of the large archive."""
    try:
        with zipfile.ZipFile(_Remote(url)) as archive:
            names = [n for n in archive.namelist() if PurePosixPath(n).name == "data.csv"]
            if not names:
                raise ValueError(f"{url}: no data.csv in it")
            with replacing(folder / "data.csv") as path:
                path.write_bytes(archive.read(names[0]))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{url}: {error}") from None


class _Remote(io.RawIOBase):
    """A file on a web server, read by ranges."""

    def __init__(self, url: str):
        self.url, self.at, self.length = url, 0, _size(url)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.length)[whence]
        return self.at

    def readinto(self, buffer) -> int:
        stop = min(self.at + len(buffer), self.length)
        if stop <= self.at:
            return 0
        with _open(self.url, self.at, stop) as answer:
            if answer.status != 206:
                raise ValueError(f"{self.url}: the server does not deliver ranges; fetch nights.zip by hand")
            data = answer.read(stop - self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)
