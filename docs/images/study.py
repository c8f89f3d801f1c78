"""Draw how far a study's arms are from the baseline: `python docs/images/study.py controls`."""

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


def draw(axes: plt.Axes, group: dict) -> None:
    """A row for each arm, a marker and its 95 % interval for each measure, in points."""
    pairs = group["against_baseline"]
    for row, pair in enumerate(pairs):
        for number, (key, (name, marker)) in enumerate(MEASURES.items()):
            found, height = pair["figures"][key]["difference"], row + 0.22 * (number - 1)
            ends = [100 * found[end] for end in ("low", "high")]
            axes.plot(ends, [height, height], color=f"C{number}", linewidth=1.5)
            label = None if row else name
            axes.plot(100 * found["value"], height, marker, color=f"C{number}", label=label)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(pairs)), [pair["arm"].removesuffix(f", {group['name']}") for pair in pairs])
    axes.set_title(f"{group['name']}, {len(pairs[0]['seeds'])} seeds", fontsize=10)
    axes.set_xlabel("points above the baseline")


def main(name: str) -> None:
    groups = json.loads((HERE.parent / "evidence" / f"{name}.json").read_text())["groups"]
    rows = len(groups[0]["against_baseline"])
    figure, axes = plt.subplots(1, len(groups), figsize=(9, 1.3 + 0.5 * rows), sharex=True, sharey=True)
    for each, group in zip(axes, groups):
        draw(each, group)
    axes[0].invert_yaxis()  # of all, which share it
    marks = axes[0].get_legend_handles_labels()
    figure.legend(*marks, loc="lower center", ncols=len(MEASURES), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(HERE / f"study-{name}.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1])
