"""`consort bench`: strategies compared, live on prompts with right answers, or on outcomes that are known."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from consort.cli.calibrate import add_pair_arguments, prices
from consort.config import Config
from consort.config_file import dump_config, load_config
from consort.errors import ConfigError
from consort.problems import nearest

if TYPE_CHECKING:
    from consort.bench.live import Question, Replies
    from consort.bench.live_standings import LiveStanding
    from consort.bench.metrics import Score
    from consort.bench.routing_curve import Judged

WIDTH = 120  # columns where there is no terminal: no interval is broken over two lines
METRICS = {"rouge_l": "Rouge-L in percent", "em": "exact match in percent"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("file", nargs="?", type=Path, help="rows to ask, or outcomes; default: see below")
    add_pair_arguments(parser)
    live = parser.add_argument_group("live: prompts are asked")
    live.add_argument(
        "--config", metavar="FILE", help="whose models answer; default: the bundled tiny consort"
    )
    live.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as a.b=c"
    )
    live.add_argument(
        "--strategy", action="append", default=[], metavar="NAME", help="may be given more than once"
    )
    live.add_argument(
        "--metric", choices=("rouge_l", "em"), default="rouge_l", help="quality; default: rouge_l"
    )
    live.add_argument(
        "--keep", type=Path, metavar="FILE", help="write edge and cloud as outcomes, for `consort calibrate`"
    )
    known = parser.add_argument_group("on outcomes: no model is asked")
    known.add_argument(
        "--cloud-share",
        type=float,
        default=0.5,
        metavar="S",
        help="compare where the cloud answers S; default: 0.5",
    )
    known.add_argument("--folds", type=int, default=10, metavar="N", help="of the cross-fitting, default: 10")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw quality against cost: .svg, .png, .pdf"
    )
    parser.epilog = (
        "example: consort bench --config runs/first/serve.toml --picture pareto.svg\n"
        "         consort bench outcomes.jsonl --price gpt-4=0.01\n\n"
        "The file holds rows to ask (as training data, with right answers) or outcomes (with scores).\n"
        "Without it, the test rows of the configuration's devices are asked, each at its own device."
    )


def run(args: argparse.Namespace) -> int:
    """Compare and print: outcomes where the file holds them, else live."""
    return _known(args) if args.file and _holds_outcomes(args.file) else _live(args)


def _holds_outcomes(file: Path) -> bool:
    """Whether the first row has scores; what is no row at all is the reader's to refuse."""
    try:
        with file.open("rb") as lines:
            first = json.loads(next((line for line in lines if line.strip()), b"null"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(file)) from None
    except ValueError:
        return False
    return isinstance(first, dict) and "scores" in first


# ---- live


def _live(args: argparse.Namespace) -> int:
    from consort.bench.live import LIVE, opened, replies
    from consort.bench.live_standings import CLOUD, EDGE, live_pair, live_standings, rankings
    from consort.bench.outcomes import write_outcomes
    from consort.bench.pareto import Point, check_drawable, draw_pareto
    from consort.gateway.strategies import STRATEGIES

    names = tuple(dict.fromkeys((EDGE, CLOUD, *(args.strategy or LIVE))))
    for name in names:
        if name not in STRATEGIES:
            raise ConfigError(
                f'no strategy "{name}"', where="--strategy", hint=nearest(name, list(STRATEGIES))
            )
    if args.picture:
        check_drawable(args.picture)
    with TemporaryDirectory(prefix="consort-suite-") as folder:
        config, asked = _questions(args, Path(folder))

        async def ask() -> Replies:
            async with opened(config) as service:
                with Progress(console=Console(stderr=True), transient=True) as progress:
                    task = progress.add_task(f"{len(names)} strategies", total=len(asked))
                    return await replies(
                        service, asked, names, told=lambda count: progress.update(task, completed=count)
                    )

        found = asyncio.run(ask())
    data = live_pair(asked, found, metric=args.metric)
    standings = live_standings(asked, found, metric=args.metric, seed=args.seed)
    if args.json:
        rows = [one.to_json() for one in standings]
        print(json.dumps({"questions": len(asked), "metric": args.metric, "rows": rows}))
    else:
        _print_live(standings, len(asked), args.metric, config.serve.currency)
    if args.keep:
        write_outcomes(args.keep, data.outcomes)
        print(f"outcomes: {args.keep}", file=sys.stderr)
    if args.picture:
        priced = any(one.price for one in standings)
        by_name = {one.name: one.price if priced else None for one in standings}
        draw_pareto(
            args.picture,
            data,
            rankings(found) if data.gains.sum() > 0 else (),
            small_eur=by_name[EDGE],
            large_eur=by_name[CLOUD],
            points=[Point(one.name, 1 - one.edge_share, by_name[one.name], one.quality) for one in standings],
        )
        print(f"picture: {args.picture}", file=sys.stderr)
    return 0


def _questions(args: argparse.Namespace, folder: Path) -> tuple[Config, list[Question]]:
    """The configuration and what is asked: the file's rows, else each device's test rows at that device."""
    from consort.bench.demo import demo_config
    from consort.bench.live import questions
    from consort.bench.suite import write_suite
    from consort.cli.tune import run_data
    from consort.preflight import load_checked
    from consort.training.data import read_samples

    file = args.config or str(folder / "bundled.toml")
    if not args.config:
        write_suite(folder / "suite")
        Path(file).write_text(dump_config(demo_config(folder / "suite")), encoding="utf-8")
    if args.file:
        config = load_config(file, args.set)
        rows = read_samples(args.file, "test")[: config.eval.rows or None]
        return config, questions(rows, max_tokens=config.eval.max_new_tokens)
    found = load_checked(file, args.set, models=False)
    tokens = found.config.eval.max_new_tokens
    asked = []
    for device, known in run_data(found).devices.items():
        asked += questions(known.test, max_tokens=tokens, device=device)
    return found.config, asked


def _print_live(standings: Sequence[LiveStanding], count: int, metric: str, currency: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(
        title=f"{METRICS[metric]}, {count} questions, 95 % intervals",
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
    )
    priced = any(one.price for one in standings)
    headings = ["", "quality", "– cloud's", "at edge", "B sent", "p50", "p95"]
    for heading in [*headings, *([f"{currency}/1,000"] if priced else [])]:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for one in standings:
        cells = [
            one.name + (f" ({one.failures} failed)" if one.failures else ""),
            _with_margin(one.quality),
            "–" if one.name == "cloud" else _with_margin(one.against_cloud, signed=True),
            f"{one.edge_share:.0%}",
            f"{one.cloud_bytes:.0f}",
            *(f"{1000 * time.value:.0f} ms" for time in (one.p50_s, one.p95_s)),
        ]
        table.add_row(*cells, *([f"{1000 * one.price:.3g}"] if priced else []))
    console.print(table)
    judged = [(one.name, one.judged) for one in standings if one.judged is not None]
    if judged:
        console.print(_ranking_table(judged))
    else:
        console.print("The cloud is no better here than the edge: no ranking to judge.")


def _with_margin(score: Score, *, signed: bool = False) -> str:
    low, high = score.interval
    return f"{100 * score.mean:{'+' if signed else ''}.1f} ± {50 * (high - low):.1f}"


# ---- on outcomes


def _known(args: argparse.Namespace) -> int:
    from consort.bench.compare import request_eur, standings, strategies
    from consort.bench.outcomes import pair, read_outcomes
    from consort.bench.pareto import draw_pareto

    if not 0 <= args.cloud_share <= 1:
        raise ConfigError(f"--cloud-share {args.cloud_share:g} is no share", hint="give 0 to 1")
    if args.folds < 2:
        raise ConfigError(f"--folds {args.folds} leaves nothing to learn from", hint="give 2 or more")
    data = pair(read_outcomes(args.file), small=args.small, large=args.large, where=str(args.file))
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
        rows = [one.to_json() for one in found]
        print(
            json.dumps(
                {"small": data.small, "large": data.large, "prompts": len(data.outcomes), "rows": rows}
            )
        )
        return 0
    table = Table(
        title=f"{len(data.outcomes)} prompts of {args.file}", title_justify="left", box=SIMPLE, pad_edge=False
    )
    for heading in ("", "quality", "at the edge", "EUR / 1,000"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for one in found:
        eur = "" if one.eur is None else f"{1000 * one.eur:.3g}"
        table.add_row(one.name, _with_margin(one.quality), f"{one.edge_share:.0%}", eur)
    console = Console()
    console.print(table)
    console.print(_ranking_table([(one.name, one.judged) for one in found if one.judged is not None]))
    return 0


def _ranking_table(rows: Sequence[tuple[str, Judged]]) -> Table:
    """How well each score ranks prompts, at every threshold at once."""
    table = Table(title="As rankings (chance: APGR .5)", title_justify="left", box=SIMPLE, pad_edge=False)
    for heading in ("", "APGR", "CPT(50)", "CPT(80)"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, judged in rows:
        table.add_row(name, str(judged.apgr), str(judged.cpt50), str(judged.cpt80))
    return table
