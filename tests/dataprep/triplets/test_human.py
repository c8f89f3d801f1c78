"""People's real answers through other readers than `nights`, which build the same of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from dataprep.build_ffcv import main
from pipeline.beton.fields import Beton
from pipeline.beton.triplets import SIDES


def as_tables(source: Path, folder: Path, split: str) -> tuple[Path, Path]:
    """The genuine rows of a split: renamed as a generic table asks, and as NIGHTS before it was filtered."""
    with open(source / "data.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    folder.mkdir()
    table, raw = folder / "table.csv", folder / "nights_raw.csv"
    with open(table, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["votes", "right", "left", "ref", "vote", "mark"])
        for row in rows:
            out.writerow(
                [row[name] for name in ("votes", "right_path", "left_path", "ref_path", "right_vote", "id")]
            )
    with open(raw, "w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    for path in source.iterdir():
        if path.is_dir():
            (folder / path.name).symlink_to(path)
    return table, raw


def samples(file: Path) -> tuple[np.ndarray, list, list[list[int]]]:
    beton = Beton(file)
    votes = beton.metadata["votes"].tolist()
    return beton.metadata["vote"], votes, beton.rows(np.arange(len(beton))).checksums(SIDES).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, split", [("glyph_triplets", "test"), ("nights_sample", "test"), ("material_triplets", "test")]
)
def test_a_table_of_real_answers_is_the_set_itself(tmp_path, shared_data, name, split):
    table, raw = as_tables(shared_data / name, tmp_path / "in", split)
    one = ["--workers", "1"]
    nights = ["nights", "--source", str(shared_data / name), "--splits", split, "--min-votes", "0"]
    assert main([*nights, "--out", str(tmp_path), *one]) == 0
    generic = ["table", "--source", str(table), "--images", str(shared_data / name), "--kind", "2afc"]
    assert main([*generic, "--out", str(tmp_path / "table.beton"), *one]) == 0
    unfiltered = ["nights-raw", "--source", str(raw.parent), "--out", str(tmp_path / "raw.beton"), *one]
    assert main(unfiltered) == 2  # its rows are the test split's, and a file is recorded as train by default
    assert main([*unfiltered, "--split", split]) == 0
    vote, votes, pictures = samples(tmp_path / f"triplets-{split}.beton")
    assert len(vote) >= 3
    for other in ("table", "raw"):
        vote2, votes2, pictures2 = samples(tmp_path / f"{other}.beton")
        assert votes2 == votes and pictures2 == pictures
        assert np.abs(vote2 - vote).max() < 1e-4  # shares of four digits, which need not add up to 1
