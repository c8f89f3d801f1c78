"""NIGHTS over the network, from a server of its own; skipped without fsspec's HTTP (aiohttp)."""

from __future__ import annotations

import http.server
import io
import threading
import zipfile
from pathlib import Path

import pytest

from dataprep.build_ffcv import main
from dataprep.sources import download
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

pytest.importorskip("aiohttp")

ONE = ["--workers", "1"]


class Server:
    """A web server with ranges, some of whose answers fail or are broken off."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.fail = 0  # answers that will be 503
        self.broken = 0  # answers that will end after half of their bytes
        self.ranges = True
        self.sent = 0  # bytes
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                data = outer.files.get(self.path)
                if outer.fail:
                    outer.fail -= 1
                    self.send_error(503)
                    return
                if data is None:
                    self.send_error(404)
                    return
                wanted = self.headers.get("Range") if outer.ranges else None
                first, last = 0, len(data) - 1
                if wanted:
                    a, _, b = wanted.removeprefix("bytes=").partition("-")
                    first, last = int(a), int(b or last)
                body = data[first : last + 1]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if outer.broken:
                    outer.broken -= 1
                    body = body[: len(body) // 2]
                    self.close_connection = True
                outer.sent += len(body)
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/nights"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """NIGHTS as it is published: nights.zip and chunks, of a few triplets."""
    source = kit.nights_folder(tmp_path / "published", 8)
    files = {}
    for kind in ("ref", "distort"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for path in sorted((source / kind / "000").iterdir()):
                archive.write(path, f"000/{path.name}")
        files[f"/nights/nights_chunked/{kind}/000.zip"] = out.getvalue()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nights/ref/000/000.png", bytes(1_000_000))
        archive.write(source / "data.csv", "nights/data.csv")
    files["/nights/nights.zip"] = out.getvalue()
    monkeypatch.setattr(download, "_PAUSE", 0.01)
    monkeypatch.setattr(download, "CHUNKS", range(1))
    server = Server(files)
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.mark.slow
def test_download_and_build(published, tmp_path):
    arguments = ["nights", "--download", str(tmp_path / "nights"), "--url", published.url]
    assert main([*arguments, "--out", str(tmp_path / "out"), *ONE]) == 0
    assert kit.keys(Beton(tmp_path / "out/triplets-train.beton")) == ["0", "1", "4", "5"]
    sent = published.sent
    assert main([*arguments, "--out", str(tmp_path / "out"), *ONE]) == 0
    assert published.sent == sent  # nothing is fetched again


def pngs(folder: Path) -> dict[str, bytes]:
    return {
        f"{path.parent.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("*/000/*.png")
    }


def test_failed_and_broken_answers_are_asked_for_again(published, tmp_path):
    """The table's and the chunks'."""
    published.fail, published.broken = 2, 2
    download.fetch_nights(tmp_path / "nights", published.url)
    assert published.broken == 0 and pngs(tmp_path / "nights") == pngs(tmp_path / "published")


@pytest.mark.slow
def test_a_server_that_keeps_failing_is_given_up_and_the_same_command_goes_on(published, tmp_path, capsys):
    arguments = ["nights", "--download", str(tmp_path / "nights"), "--url", published.url]
    assert main([*arguments, "--out", str(tmp_path / "out"), *ONE]) == 0
    for chunk in (tmp_path / "nights/.fetched").iterdir():
        chunk.unlink()
    published.fail = 100
    assert main([*arguments, "--out", str(tmp_path / "out"), *ONE]) == 2
    assert "5 times; the same command goes on later" in capsys.readouterr().err
    published.fail = 0
    assert main([*arguments, "--out", str(tmp_path / "out"), *ONE]) == 0


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(published, tmp_path, monkeypatch, ranges):
    """By blocks; a server without ranges sends the whole file again."""
    monkeypatch.setattr(download, "BLOCK", 1_000)
    target = tmp_path / "nights"
    target.mkdir()
    whole = published.files["/nights/nights_chunked/ref/000.zip"]
    (target / ".ref-000.zip.part").write_bytes(whole[:-100])
    (target / "data.csv").write_bytes((tmp_path / "published/data.csv").read_bytes())
    published.ranges = ranges
    download.fetch_nights(target, published.url)
    other = len(published.files["/nights/nights_chunked/distort/000.zip"])
    assert published.sent == other + (100 if ranges else len(whole))
    assert pngs(target) == pngs(tmp_path / "published")


def test_what_the_server_does_not_deliver_is_told(published, tmp_path, capsys):
    arguments = ["nights", "--download", str(tmp_path / "nights"), "--url"]
    assert main([*arguments, published.url + "/elsewhere"]) == 2
    assert "answers 404" in capsys.readouterr().err
    published.files["/nights/nights_chunked/distort/000.zip"] = b"no zip"
    assert main([*arguments, published.url]) == 2
    assert "not a zip file" in capsys.readouterr().err
    published.ranges = False
    (tmp_path / "nights/data.csv").unlink()
    assert main([*arguments, published.url]) == 2
    assert "does not deliver ranges" in capsys.readouterr().err
