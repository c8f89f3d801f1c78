"""What `verify` finds and what `inspect` shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.build import build
from dataprep.build_ffcv import main
from dataprep.shard import SampleSettings
from dataprep.sources.pairs import open_pairs
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit
from tests.kits.pipeline import overwrite, pairs_file


def damaged(path: Path, name: str) -> None:
    """Change one thing in a finished file."""
    beton = Beton(path)
    raw = bytearray(path.read_bytes())
    offset = lambda field, index: int(beton.rows(np.array(index)).spans(field)[0])  # noqa: E731
    start = 24 + len(beton.fields) * 1041
    if name == "image":
        at = offset("image", 2)
        raw[at : at + 4] = bytes(4)
    elif name == "tokens":
        at = offset("tokens", 1)
        raw[at + 4 * 76 : at + 4 * 77] = b"\1\0\0\0"
    elif name == "checksum":
        raw[start + beton.dtype.fields["image_xxh3"][1]] ^= 1
    elif name == "luma":
        at = start + beton.dtype.fields["luma"][1]
        raw[at : at + 8] = np.float64(1).tobytes()
    elif name == "size":
        at = start + beton.dtype.fields["image"][1] + 1
        raw[at : at + 2] = b"\7\0"
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "name, message",
    [
        ("image", "sample 2: image: its bytes are not those that were written (checksum)"),
        ("checksum", "sample 0: image: its bytes are not those that were written (checksum)"),
        ("tokens", "sample 1: tokens: not start"),
        ("luma", "sample 0: image: stored mean luma is wrong"),
        ("size", "sample 0: image: engines refuse it: it has 56×40 pixels, the table says"),
    ],
)
@pytest.mark.parametrize("decode", [True, False])
def test_verify_finds_damage(tmp_path, capsys, name, message, decode):
    source = open_pairs(kit.captions_table(tmp_path / "in", 4))
    build(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    command = ["verify", str(tmp_path / "out.beton"), "--workers", "1", *(["--decode"] if decode else [])]
    assert main(command) == 0
    done = "every image decoded" if decode else "--decode decodes every image too"
    told = capsys.readouterr().out
    assert told.endswith(f"4 samples, all sound (checksums compared{', ' if decode else '; '}{done})\n")
    damaged(tmp_path / "out.beton", name)
    found = decode or name != "luma"  # which takes the pixels
    assert main(command) == (1 if found else 0)
    assert (message in capsys.readouterr().out) == found


def test_a_file_without_checksums_is_decoded(tmp_path, capsys):
    path = tmp_path / "p.beton"
    old = pairs_file(path, 5, checksums=False)
    assert main(["verify", str(path), "--workers", "1"]) == 0
    assert "5 samples, all sound (no checksums in it, every image decoded)" in capsys.readouterr().out
    overwrite(old, 3, old.jpeg(3).tobytes()[:-30])
    assert main(["verify", str(path), "--workers", "1"]) == 1
    assert "sample 3: image: engines refuse it: " in capsys.readouterr().out


@pytest.mark.slow
def test_inspect_prints_and_draws(tmp_path, capsys):
    build(open_pairs(kit.captions_table(tmp_path / "in", 9)), tmp_path / "p.beton", SampleSettings(), kit.ONE)
    assert main(["inspect", str(tmp_path / "p.beton"), "--sheet", str(tmp_path / "p.png")]) == 0
    told = capsys.readouterr().out
    assert "pairs, 9 samples" in told and "short side 40…40…40 px" in told
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width > 600 and np.asarray(sheet).std() > 10
    main(
        [
            "nights",
            "--source",
            str(kit.nights_folder(tmp_path / "n", 8)),
            "--out",
            str(tmp_path),
            "--workers",
            "1",
        ]
    )
    arguments = ["inspect", str(tmp_path / "triplets-train.beton"), "--sheet", str(tmp_path / "t.png")]
    assert main(arguments) == 0 and "votes are human" in capsys.readouterr().out
