"""Draws accuracy over processor time from what benchmarks/curves.py has measured.

python docs/curves.py        docs/assets/curves/*.json -> docs/assets/curves.svg
"""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

ASSETS = Path(__file__).parent / "assets"
NAMES = {
    "ours": ("contrastive loss alone, 128 tokens, 2 epochs", "#c2410c", "-"),
    "mnrl": ("sentence-transformers, MultipleNegativesRankingLoss", "#2563eb", "--"),
    "triplet": ("sentence-transformers, TripletLoss, mined negatives", "#0f766e", ":"),
}


def draw(measured: Path, picture: Path) -> None:
    """Write the picture of all runs in a folder."""
    mpl.rcParams.update({"svg.hashsalt": "curves", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11})
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for what, (name, colour, style) in NAMES.items():
        points = json.loads((measured / f"{what}.json").read_text())["points"]
        minutes, accuracy = [p["seconds"] / 60 for p in points], [100 * p["strict"] for p in points]
        axes.plot(minutes, accuracy, style, color=colour, label=name, linewidth=2, marker="o", markersize=4)
        axes.annotate(f"{accuracy[-1]:.1f}", (minutes[-1], accuracy[-1]), (5, -4), textcoords="offset points", color=colour)
    axes.set_xlabel("minutes of one core, from the start of the process")
    axes.set_ylabel("accuracy@1, validation, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    figure.legend(frameon=False, loc="outside lower center", fontsize=10)
    figure.savefig(picture, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    draw(ASSETS / "curves", ASSETS / "curves.svg")
