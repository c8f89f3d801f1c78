"""Draw how far a study's arms are from the baseline: `python docs/images/study.py controls` (`fractions`)."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
MEASURES = {  # figure of study.json → (how it is called here, marker)
    "mean:Mean of the sets/acc1": ("top-1, mean of three sets", "o"),
    "emoji-names/acc5": ("top-5 over the names", "s"),
    "emoji-retrieval/text_retrieval_recall@1": ("image to text, R@1", "^"),
}
OF_DOSES = {
    "mean:Mean of the sets/acc1": "top-1, mean of three sets",
    "emoji-names/acc5": "top-5 over the names",
    "triplets/twoafc": "2AFC, held-out triplets",
}


def points(pair: dict, key: str) -> tuple[float, float, float]:
    """Of the difference to the baseline: its mean and the ends of its 95 % interval."""
    found = pair["figures"][key]["difference"]
    return tuple(100 * found[name] for name in ("value", "low", "high"))


def draw_arms(axes: plt.Axes, group: dict) -> None:
    """A row for each arm, a marker and its interval for each measure."""
    pairs = group["against_baseline"]
    for row, pair in enumerate(pairs):
        for number, (key, (name, marker)) in enumerate(MEASURES.items()):
            value, *ends = points(pair, key)
            height = row + 0.22 * (number - 1)
            axes.plot(ends, [height, height], color=f"C{number}", linewidth=1.5)
            axes.plot(value, height, marker, color=f"C{number}", label=None if row else name)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(pairs)), [pair["arm"].removesuffix(f", {group['name']}") for pair in pairs])
    axes.set_xlabel("points above the baseline")


def draw_doses(axes: plt.Axes, group: dict, key: str) -> None:
    """A curve over the share of triplets for each series, with the interval of each dose."""
    pairs = {pair["arm"]: pair for pair in group["against_baseline"]}
    series = {curve["series"]: curve["doses"] for curve in group["dose_response"]}
    for number, (name, doses) in enumerate(series.items()):
        found = [(dose["dose"], *points(pairs[dose["arm"]], key)) for dose in doses]
        at, values, low, high = (list(column) for column in zip(*found))
        at = [dose * 1.06 ** (2 * number - 1) if dose < 1 else dose for dose in at]  # side by side
        below, above = ([abs(v - e) for v, e in zip(values, ends)] for ends in (low, high))
        axes.errorbar(at, values, (below, above), marker="os"[number], label=name, capsize=2)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([dose["dose"] for dose in doses], [f"{dose['dose']:.0%}" for dose in doses])
    axes.minorticks_off()


def of_arms(groups: list[dict]) -> plt.Figure:
    rows = len(groups[0]["against_baseline"])
    figure, axes = plt.subplots(1, len(groups), figsize=(9, 1.3 + 0.5 * rows), sharex=True, sharey=True)
    for each, group in zip(axes, groups):
        draw_arms(each, group)
    axes[0].invert_yaxis()  # of all, which share it
    return figure


def of_doses(groups: list[dict]) -> plt.Figure:
    figure, axes = plt.subplots(len(OF_DOSES), len(groups), figsize=(9, 8), sharex=True, sharey="row")
    for row, (key, name) in zip(axes, OF_DOSES.items()):
        for each, group in zip(row, groups):
            draw_doses(each, group, key)
        row[0].set_ylabel(f"{name}\n(points above the baseline)")
    for each in axes[-1]:
        each.set_xlabel("share of the triplets")
    return figure


def main(name: str) -> None:
    groups = json.loads((HERE.parent / "evidence" / f"{name}.json").read_text())["groups"]
    figure = of_doses(groups) if groups[0]["dose_response"] else of_arms(groups)
    for axes, group in zip(figure.axes, groups):
        seeds = min(len(pair["seeds"]) for pair in group["against_baseline"])
        axes.set_title(f"{group['name']}, {seeds} seeds", fontsize=10)
    marks, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(marks, names, loc="lower center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))  # room for the legend
    figure.savefig(HERE / f"study-{name}.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1])
