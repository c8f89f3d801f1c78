"""The report of a study: one page and every figure of it as JSON.

    OUT/index.html   one file without any reference to the network
    OUT/study.json   the same figures with the seeds' own values

`paired.py` compares arms, `speed.py` and `dose.py` fit curves, `words.py` says what came out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from eval.study.findings import finished, page, record
from eval.study.findings.analysis import Analysis
from eval.study.findings.finished import ArmRuns
from pipeline.base import console, files

__all__ = ["ArmRuns", "write"]


def write(name: str, description: str, arms: Sequence[ArmRuns], out: Path) -> None:
    """Write the report of the runs that are finished; what is not, is said on the page.

    Raises ValueError where nothing is finished, or runs cannot be read or compared.  Both files are made
    before either is written.
    """
    analyses = [Analysis(group, number) for number, group in enumerate(finished.groups(arms))]
    text = page.build(name, description, analyses)
    values = record.record(name, description, analyses, out)
    figures = json.dumps(values, ensure_ascii=False, allow_nan=False)
    files.write(out / "study.json", figures + "\n")
    files.write(out / "index.html", text)
    console.say(f"{out / 'index.html'} ({len(text.encode()) / 1e6:.1f} MB)")
