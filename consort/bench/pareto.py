"""A picture of quality against the share asked of the cloud, or against money: one line a strategy.

Imports matplotlib, and only when a picture is drawn. Does not measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consort.bench.compare import Strategy
from consort.bench.outcomes import Pair
from consort.bench.routing_curve import routing_curve
from consort.errors import ConfigError, MissingExtraError

KINDS = (".svg", ".png", ".pdf")
_COLOURS = ("#8a929b", "#d9822b", "#3fa46a", "#2f86d1")  # readable on white and black


def draw_pareto(
    path: Path, data: Pair, ways: Sequence[Strategy], *, small_eur: float | None, large_eur: float | None
) -> None:
    """Draw each strategy from the edge alone to the cloud alone; against money where prices are known."""
    if path.suffix not in KINDS:
        raise ConfigError(
            f'no picture can be written as "{path.suffix}"', where=str(path), hint=", ".join(KINDS)
        )
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "matplotlib is not installed", hint="pip install 'consort-lm[plots]'"
        ) from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    edge, cloud = float(data.small_scores.mean()), float(data.large_scores.mean())
    for way, colour in zip(ways, _COLOURS, strict=False):
        curve = routing_curve(way.need, data.gains)
        quality = edge + (cloud - edge) * curve.recovered
        spent = curve.share
        if small_eur is not None and large_eur is not None:
            kept = small_eur * (np.ones_like(curve.share) if way.edge_first else 1 - curve.share)
            spent = 1000 * (kept + large_eur * curve.share)
        axes.plot(spent, quality, color=colour, label=f"{way.name}: APGR {curve.apgr:.3f}")
    axes.axhline(cloud, color="#8a929b", linewidth=0.8, linestyle=":")
    axes.annotate(f"{data.large} alone", (0, cloud), textcoords="offset points", xytext=(2, 3), fontsize=8)
    priced = small_eur is not None and large_eur is not None
    axes.set_xlabel("EUR for 1,000 requests" if priced else "share asked of the cloud")
    axes.set_ylabel("mean score")
    axes.set_title(f"{data.small} and {data.large}, {len(data.outcomes)} prompts", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=150)
