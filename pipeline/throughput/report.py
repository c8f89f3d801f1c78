"""The results of `throughput` as a table, as ratios to peers and as a plot."""

from __future__ import annotations

from pathlib import Path

from pipeline.throughput.parts import PARTS, RATIOS

Results = dict[str, dict[str, float]]  # part → what `measuring.measure_part` returns


def table(results: Results) -> str:
    """A line for each part."""
    columns = f"{'part':<36} {'images/s':>9} {'images/CPU-s':>13} {'CPU ms/image':>13} {'memory MB':>10}"
    lines = [f"{columns} {'disk KB/image':>14}"]
    for name, r in results.items():
        cost = 1000 / r["images_per_cpu_s"]
        lines.append(f"{PARTS[name].title:<36} {r['images_per_s']:>9.0f} {r['images_per_cpu_s']:>13.0f} "
                     f"{cost:>13.3f} {r['memory_mb']:>10.0f} {r['disk_kb_per_image']:>14.1f}")  # fmt: skip
    return "\n".join(lines)


def ratios(results: Results) -> dict[str, float]:
    """Ours over the best peer, in images per CPU-second, where both were measured."""
    rate = {name: r["images_per_cpu_s"] for name, r in results.items()}
    return {
        name: rate[ours] / max(rate[p] for p in peers if p in rate)
        for name, (ours, peers) in RATIOS.items()
        if ours in rate and any(p in rate for p in peers)
    }


def plot(results: Results, path: Path) -> None:
    """A PNG of images per CPU-second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rates = {n: r["images_per_cpu_s"] for n, r in results.items() if n not in ("read", "pack")}
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rates) + 1.2))
    colours = ["#888888" if n.startswith("peer") else "#1f77b4" for n in rates]
    bars = axes.barh([PARTS[n].title for n in rates], list(rates.values()), color=colours)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("images per CPU-second (grey: peers)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
