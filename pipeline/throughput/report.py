"""The results of `throughput` as rows, ratios to peers, a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.throughput.parts import LIMITS, PARTS, RATIOS
from pipeline.throughput.settings import Case

Row = dict[str, Any]

# key of a row → head, width and decimals of its column
_COLUMNS = {
    "images_per_s": ("images/s", 9, 0),
    "cores": ("cores", 6, 2),
    "images_per_cpu_s": ("images/CPU-s", 13, 0),
    "megapixels_per_s": ("Mpixel/s", 9, 0),
    "batch_ms": ("batch ms", 9, 1),
    "batch_ms_p99": ("p99", 8, 1),
    "first_batch_s": ("first s", 8, 1),
    "memory_mb": ("MB", 7, 0),
    "gpu_memory_mb": ("GPU MB", 7, 0),
    "disk_kb_per_image": ("disk KB/image", 14, 1),
}


def row(case: Case, result: Mapping[str, Any], pixels: float) -> Row:
    """A case's row from what `racing.race` returned; pixels: of an image of the file, on average.

    Rates are medians of the turns, and "rounds" has each turn's.  batch_ms and batch_ms_p99 are of the
    batches of all turns; with fewer than a hundred, p99 is the longest.
    """
    head = {"part": case.part, "workers": case.workers, "batch_size": case.batch_size}
    if "failed" in result:
        return head | {"failed": result["failed"]}
    turns = result["turns"]
    by_clock = [t["images"] / t["wall_s"] for t in turns]
    by_cpu = [t["images"] / max(t["cpu_s"], 1e-9) for t in turns]
    batches = sorted(1e3 * s for t in turns for s in t["batch_s"])
    last = turns[-1]
    return head | {
        "images_per_s": statistics.median(by_clock),
        "images_per_cpu_s": statistics.median(by_cpu),
        "cores": statistics.median(t["cpu_s"] / t["wall_s"] for t in turns),
        "megapixels_per_s": statistics.median(by_clock) * pixels / 1e6,
        "batch_ms": statistics.median(batches),
        "batch_ms_p99": percentile(batches, 99),
        "first_batch_s": turns[0]["first_batch_s"],
        "memory_mb": max(t["memory_mb"] for t in turns),
        **({"gpu_memory_mb": last["gpu_memory_mb"]} if "gpu_memory_mb" in last else {}),
        "disk_kb_per_image": sum(t["disk_bytes"] for t in turns) / 1e3 / sum(t["images"] for t in turns),
        "rounds": {"images_per_s": by_clock, "images_per_cpu_s": by_cpu},
    }


def percentile(ascending: Sequence[float], percent: int) -> float:
    """The least value that at least `percent` % of the values are not above (nearest rank)."""
    return ascending[-(-len(ascending) * percent // 100) - 1]


def ratios(rows: Sequence[Row]) -> list[Row]:
    """Ours over a peer with the same number of workers, round by round: the median and the range.

    On a CPU of images per CPU-second, on a GPU of images per second.  limit: the same of decoding alone.
    """
    measured = {(r["part"], r["workers"]): r["rounds"] for r in rows if "failed" not in r}
    return [
        _ratio(ours, peer, workers, measured)
        for ours, peer in RATIOS
        for workers in dict.fromkeys(workers for _, workers in measured)
        if {(ours, workers), (peer, workers)} <= measured.keys()
    ]


def _ratio(ours: str, peer: str, workers: int, measured: Mapping[tuple[str, int], Row]) -> Row:
    gpu = PARTS[ours].gpu
    limit = LIMITS[gpu]
    of = "images_per_s" if gpu else "images_per_cpu_s"
    theirs = measured[peer, workers][of]
    values = _paired(measured[ours, workers][of], theirs)
    found = {"ours": ours, "peer": peer, "workers": workers, "of": of,
             "median": statistics.median(values), "range": [min(values), max(values)]}  # fmt: skip
    if limit != ours and (limit, workers) in measured:
        found["limit"] = statistics.median(_paired(measured[limit, workers][of], theirs))
    return found


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def table(rows: Sequence[Row]) -> str:
    """A line for each row."""
    lines = [f"{'part':<41} {'workers':>7} " + " ".join(f"{h:>{w}}" for h, w, _ in _COLUMNS.values())]
    for r in rows:
        head = f"{PARTS[r['part']].title:<41} {r['workers']:>7} "
        cells = (f"{r[k]:>{w},.{d}f}" if k in r else " " * w for k, (_, w, d) in _COLUMNS.items())
        lines.append(head + (f"  failed: {r['failed']}" if "failed" in r else " ".join(cells)))
    return "\n".join(line.rstrip() for line in lines)


def ratio_lines(found: Sequence[Row]) -> list[str]:
    """A line for each ratio."""
    return [
        f"{r['ours']} / {r['peer']}, {r['workers']} workers: {r['median']:.2f} "
        f"({r['range'][0]:.2f}–{r['range'][1]:.2f})"
        + (f", decoding alone {r['limit']:.2f}" if "limit" in r else "")
        for r in found
    ]


def plot(rows: Sequence[Row], path: Path) -> None:
    """A PNG of images per CPU-second, a bar for each number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [r for r in rows if "failed" not in r and r["part"] not in ("read", "pack")]
    names, counts = (list(dict.fromkeys(r[key] for r in shown)) for key in ("part", "workers"))
    figure, axes = plt.subplots(figsize=(8, 0.22 * len(shown) + 1.2))
    for r in shown:
        colour = "#888888" if r["part"].startswith("peer") else "#1f77b4"
        pale = 1 - 0.35 * (counts.index(r["workers"]) % 2)
        alike = [other["workers"] for other in shown if other["part"] == r["part"]]
        height = 0.8 / len(alike)
        bar = axes.barh(
            names.index(r["part"]) + (alike.index(r["workers"]) - (len(alike) - 1) / 2) * height,
            r["images_per_cpu_s"], height, color=colour, alpha=pale,
        )  # fmt: skip
        axes.bar_label(bar, [f"{r['images_per_cpu_s']:,.0f}, {r['workers']} workers"], padding=3, fontsize=7)
    axes.set_yticks(range(len(names)), [PARTS[name].title for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.22, y=0.01)
    axes.set_xlabel("images per CPU-second (grey: peers)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
