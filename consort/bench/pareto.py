"""A picture of quality against the share asked of the cloud, or against money: a line for each ranking, from
the edge alone to the cloud alone, and a point for each strategy that was run as it is configured.

Imports matplotlib, and only when a picture is drawn. Does not measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from consort.bench.compare import Strategy
from consort.bench.metrics import Score
from consort.bench.outcomes import Pair
from consort.bench.routing_curve import routing_curve
from consort.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".svg", ".png", ".pdf")
_GREY = "#5d6168"
_CELLS = 30  # of each axis: points in one cell share a name tag
_COLOURS = ("#8a929b", "#d9822b", "#3fa46a", "#2f86d1")  # readable on white and black


@dataclass(frozen=True, slots=True)
class Point:
    """A strategy as it ran; `eur` a request, where prices are known."""

    name: str
    cloud_share: float
    eur: float | None
    quality: Score


def check_drawable(path: Path) -> None:
    """ConfigError for a kind of picture that cannot be written, MissingExtraError without matplotlib: to be
    told before hours of measuring."""
    if path.suffix not in KINDS:
        raise ConfigError(
            f'no picture can be written as "{path.suffix}"', where=str(path), hint=", ".join(KINDS)
        )
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib is not installed", hint="pip install 'consort-lm[plots]'")


def draw_pareto(
    path: Path,
    data: Pair,
    ways: Sequence[Strategy],
    *,
    small_eur: float | None,
    large_eur: float | None,
    points: Sequence[Point] = (),
) -> None:
    """Draw rankings and points; against money where prices are known, with bars of 95 %."""
    check_drawable(path)
    from matplotlib.figure import Figure

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
    priced = small_eur is not None and large_eur is not None
    _draw_points(axes, points, priced=priced)
    axes.axhline(cloud, color="#8a929b", linewidth=0.8, linestyle=":")
    axes.annotate(f"{data.large} alone", (0, cloud), textcoords="offset points", xytext=(2, 3), fontsize=8)
    axes.set_xlabel("EUR for 1,000 requests" if priced else "share asked of the cloud")
    axes.set_ylabel("mean score")
    axes.set_title(f"{data.small} and {data.large}, {len(data.outcomes)} prompts", fontsize=10)
    if ways:
        axes.legend(frameon=False, fontsize=8, loc="best")
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=150)


def _draw_points(axes: Axes, points: Sequence[Point], *, priced: bool) -> None:
    """The points, hollow where another is better in one and not worse in the other; one name where they
    fall together."""

    def place(point: Point) -> float:
        return 1000 * (point.eur or 0.0) if priced else point.cloud_share

    widest = max((place(point) for point in points), default=0.0)
    names: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        at, quality = place(point), point.quality.mean
        low, high = point.quality.interval
        beaten = any(
            place(other) <= at
            and other.quality.mean >= quality
            and (place(other), other.quality.mean) != (at, quality)
            for other in points
        )
        axes.errorbar(
            at,
            quality,
            yerr=(high - low) / 2,
            fmt="o",
            color=_GREY,
            markerfacecolor="none" if beaten else _GREY,
            markersize=6,
            elinewidth=0.7,
        )
        cell = (round(_CELLS * at / widest) if widest else 0, round(_CELLS * quality))
        names.setdefault(cell, []).append(point)
    firsts = [together[0] for together in names.values()]
    for first, together in zip(firsts, names.values(), strict=True):
        at_right = widest > 0 and place(first) > 0.6 * widest
        # of two points near each other the upper one has its name above
        beside = [other for other in firsts if abs(place(other) - place(first)) < 0.15 * widest]
        under = [other for other in beside if 0 < first.quality.mean - other.quality.mean < 0.1]
        axes.annotate(
            ", ".join(point.name for point in together),
            (place(first), first.quality.mean),
            textcoords="offset points",
            xytext=(-7 if at_right else 7, 6 if under else -12),
            ha="right" if at_right else "left",
            fontsize=8,
        )
