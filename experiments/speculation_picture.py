"""The picture of speculation in the README, from experiments/results/speculation_speed.json.

python experiments/speculation_picture.py       # docs/images/speculation.svg
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
KINDS = ("stories", "short answers")
COLOURS = {"stories": "#1f6f8b", "short answers": "#d98032"}


def main() -> None:
    rows = json.loads((HERE / "results" / "speculation_speed.json").read_text(encoding="utf-8"))["constant"]
    mpl.rcParams |= {"font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "consort"}
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.1), sharey=True, layout="constrained")
    for axis, temperature in zip(axes, (0.0, 1.0), strict=True):
        shown = [row for row in rows if row["temperature"] == temperature]
        trips = sorted({row["rtt_s"] for row in shown})
        for number, kind in enumerate(KINDS):
            of_kind = [next(r for r in shown if r["rtt_s"] == trip and r["kind"] == kind) for trip in trips]
            places = [place + 0.34 * (number - 0.5) for place in range(len(trips))]
            heights = [row["speed_up"] for row in of_kind]
            apart = [
                [row["speed_up"] - row["low"] for row in of_kind],
                [row["high"] - row["speed_up"] for row in of_kind],
            ]
            axis.bar(places, heights, 0.32, yerr=apart, capsize=3, color=COLOURS[kind], label=kind)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(trips)), [f"{1000 * trip:.0f} ms" for trip in trips])
        axis.set_xlabel("round trip")
        axis.set_title("greedy" if temperature == 0 else f"temperature {temperature:g}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("times as quick as\nthe cloud's own stream")
    axes[1].legend(frameon=False)
    path = HERE.parent / "docs" / "images" / "speculation.svg"
    figure.savefig(path, metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main()
