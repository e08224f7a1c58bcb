"""`consort bench`: ways of deciding who answers, compared on outcomes: quality, money, APGR and CPT."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from consort.cli.calibrate import add_pair_arguments, prices
from consort.errors import ConfigError

if TYPE_CHECKING:
    from consort.bench.compare import Standing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    add_pair_arguments(parser)
    parser.add_argument(
        "--cloud-share",
        type=float,
        default=0.5,
        metavar="S",
        help="compare where the cloud answers S; default: 0.5",
    )
    parser.add_argument(
        "--folds", type=int, default=10, metavar="N", help="of the cross-fitting, default: 10"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw quality against cost: .svg, .png, .pdf"
    )
    parser.epilog = "example: consort bench outcomes.jsonl --price gpt-4=0.01 --picture pareto.svg"


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from consort.bench.compare import request_eur, standings, strategies
    from consort.bench.outcomes import pair, read_outcomes
    from consort.bench.pareto import draw_pareto

    if not 0 <= args.cloud_share <= 1:
        raise ConfigError(f"--cloud-share {args.cloud_share:g} is no share", hint="give 0 to 1")
    if args.folds < 2:
        raise ConfigError(f"--folds {args.folds} leaves nothing to learn from", hint="give 2 or more")
    data = pair(read_outcomes(args.outcomes), small=args.small, large=args.large, where=str(args.outcomes))
    given = prices(args.price, (data.small, data.large))
    print(f"{data.small} and {data.large}: {len(data.outcomes)} prompts, {args.folds} folds", file=sys.stderr)
    ways = strategies(data, folds=args.folds, seed=args.seed)
    found = standings(data, ways, cloud_share=args.cloud_share, prices_eur=given, seed=args.seed)
    if args.picture:
        small_eur, large_eur = (request_eur(data, name, given) for name in (data.small, data.large))
        draw_pareto(
            args.picture,
            data,
            ways,
            small_eur=None if small_eur is None else float(small_eur.mean()),
            large_eur=None if large_eur is None else float(large_eur.mean()),
        )
        print(f"picture: {args.picture}", file=sys.stderr)
    if args.json:
        rows = [_as_json(one) for one in found]
        print(
            json.dumps(
                {"small": data.small, "large": data.large, "prompts": len(data.outcomes), "rows": rows}
            )
        )
        return 0
    table = Table(title=f"{len(data.outcomes)} prompts of {args.outcomes}", title_justify="left")
    for heading in ("", "quality", "at the edge", "EUR / 1,000", "APGR", "CPT(50)", "CPT(80)"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in found:
        low, high = one.quality.interval
        figures = [] if one.judged is None else [one.judged.apgr, one.judged.cpt50, one.judged.cpt80]
        table.add_row(
            one.name,
            f"{one.quality.mean:.3f} ({low:.3f}, {high:.3f})",
            f"{one.edge_share:.0%}",
            "" if one.eur is None else f"{1000 * one.eur:.3g}",
            *map(str, figures),
        )
    Console().print(table)
    return 0


def _as_json(one: Standing) -> dict[str, object]:
    row: dict[str, object] = {
        "strategy": one.name,
        "quality": one.quality.mean,
        "quality_interval": one.quality.interval,
        "edge_share": one.edge_share,
        "eur_per_request": one.eur,
    }
    if one.judged is not None:
        for name, figure in (
            ("apgr", one.judged.apgr),
            ("cpt50", one.judged.cpt50),
            ("cpt80", one.judged.cpt80),
        ):
            row |= {name: figure.value, f"{name}_interval": (figure.low, figure.high)}
    return row
