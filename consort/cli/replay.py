"""`consort replay`: yesterday's ledger under another strategy, threshold, scorer or price."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from consort.config_serve import ServeConfig
from consort.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from consort.bench.intervals import Figure
    from consort.bench.replay import Replayed
    from consort.bench.replay_cases import Policy, Price, Strategy
    from consort.gateway.history import History
    from consort.gateway.labels import Label
    from consort.inference.calibration import Calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "state",
        nargs="?",
        type=Path,
        default=Path(ServeConfig().state),
        help="the ledger's folder, serve.state",
    )
    parser.add_argument("--days", type=float, metavar="N", help="the last N days; default: everything")
    parser.add_argument(
        "--strategy",
        choices=("edge", "cloud", "route", "cascade"),
        help="what `consort` would have meant; default: as it was",
    )
    parser.add_argument(
        "--threshold", type=float, metavar="T", help="of route and cascade; default: as it was"
    )
    parser.add_argument(
        "--goal", action="append", default=[], metavar="GOAL", help="find the threshold, as `calibrate` does"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="C", help="of the goals, default: 0.95"
    )
    parser.add_argument("--scorer", type=Path, metavar="FILE", help="a file of `consort calibrate --out`")
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="NAME=IN,OUT",
        help="money for a million tokens of a model, read and written; default: as it was",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws where the ledger does not know")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.epilog = "example: consort replay consort-state --days 1 --strategy cascade --threshold 0.7"


def run(args: argparse.Namespace) -> int:
    """Replay and print, beside what was."""
    from consort.bench.replay import answered_a_month, replay
    from consort.bench.replay_cases import Policy
    from consort.gateway.history import read_history

    if args.days is not None and args.days <= 0:
        raise ConfigError(f"--days {args.days:g} holds nothing", hint="as in: --days 1")
    history = read_history(args.state, days=args.days)
    policy = Policy(args.strategy, args.threshold, prices=_prices(args.price))
    goals = None
    try:
        if args.scorer:
            policy = _scored(policy, args.scorer, history)
        if args.goal:
            policy, goals = _aimed(history, policy, args)
        was, would = (replay(history, each, seed=args.seed) for each in (Policy(), policy))
    except DataError as error:
        raise DataError(error.what, where=error.where or str(args.state), hint=error.hint) from None
    if args.json:
        told: dict[str, object] = {"policy": _policy_json(policy), "goals": asdict(goals) if goals else None}
        told["answered_a_month"] = answered_a_month(history)
        print(json.dumps({**told, "was": asdict(was), "would_be": asdict(would)}))
        return 0
    _tell(was, would, policy, goals, answered_a_month(history))
    return 0


def _prices(given: Sequence[str]) -> dict[str, Price]:
    found = {}
    for text in given:
        name, _, written = text.rpartition("=")
        try:
            read, wrote = (float(part) for part in written.split(","))
        except ValueError:
            read = wrote = -1.0
        if not name or not (0 <= read < float("inf") and 0 <= wrote < float("inf")):
            raise ConfigError("not a price", where=f"--price {text}", hint="as in: --price gpt-4=2.5,10")
        found[name] = (read, wrote)
    return found


def _scored(policy: Policy, path: Path, history: History) -> Policy:
    """The policy with another scorer, and with that scorer's threshold where none is given."""
    from consort.inference.gain_file import load_scorer

    stored = load_scorer(path)
    if "proxy" in stored.model.groups and not any("proxy" in label.features for label in history.graded):
        what = "this scorer hears the device's proxy, and no label in this ledger did"
        hint = "name the proxy under [serve.proxy] and set serve.shadow_share, or calibrate on this ledger"
        raise DataError(what, where=str(path), hint=hint)
    threshold = policy.threshold
    if threshold is None and stored.calibration is not None:
        threshold = stored.calibration.threshold
    score: Callable[[Label, Strategy], float | None] = _scores(stored.model)
    return replace(policy, score=score, threshold=threshold)


def _scores(model: object) -> Callable[[Label, Strategy], float | None]:
    from consort.inference.evidence import Evidence
    from consort.inference.gain_model import GainModel

    assert isinstance(model, GainModel)

    def score(label: Label, strategy: Strategy) -> float | None:
        if model.needs_answer and strategy == "route":
            raise DataError("this scorer judges answers, and route decides before there is one")
        if "proxy" in model.groups and "proxy" not in label.features:
            return None  # from before there was a proxy: decided as others are
        answered = model.needs_answer
        kept = {group: v for group, v in label.features.items() if answered or group == "surface"}
        known = Evidence(
            label.question or "",
            label.small_answer if answered else None,
            kept=kept,  # type: ignore[arg-type]
        )
        try:
            return model.suffices(model.gain(known))
        except ModelError as error:
            raise DataError(error.what, hint=error.hint) from None

    return score


def _aimed(history: History, policy: Policy, args: argparse.Namespace) -> tuple[Policy, Calibration]:
    from consort.bench.replay import threshold_for
    from consort.inference.goals import parse_goal

    if policy.strategy not in ("route", "cascade") or args.threshold is not None:
        hint = "give --strategy route or cascade, and no --threshold"
        raise ConfigError("a goal finds the threshold of a strategy that has one", where="--goal", hint=hint)
    goals = [parse_goal(text) for text in args.goal]
    found = threshold_for(history, policy, policy.strategy, goals, confidence=args.confidence, seed=args.seed)
    return replace(policy, threshold=found.threshold), found


def _policy_json(policy: Policy) -> dict[str, object]:
    return {
        "strategy": policy.strategy,
        "threshold": policy.threshold,
        "scorer": policy.score is not None,
        "prices": dict(policy.prices),
    }


def _tell(
    was: Replayed, would: Replayed, policy: Policy, goals: Calibration | None, a_month: float | None
) -> None:
    print(f"{would.requests} requests, {would.decided} of them decided anew", file=sys.stderr)
    if would.failed:
        print(f"{would.failed} further requests failed, and are left out", file=sys.stderr)
    if goals is not None:
        kept = "kept" if goals.kept else "NOT certified"
        pace = "" if a_month is None else f", at {a_month:,.0f} answered requests a month"
        print(f"goals {kept} with {goals.confidence:.0%} confidence{pace}: {goals.rule()}")
    table = Table()
    for heading in ("", "as it was", policy.strategy or "replayed", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    figures: list[tuple[str, Figure | None, Figure | None, str]] = [
        ("at the edge", was.edge_share, would.edge_share, ".1%"),
        ("money", was.money, would.money, ".6g"),
        ("p50, s", was.p50_s, would.p50_s, ".3f"),
        ("p95, s", was.p95_s, would.p95_s, ".3f"),
        ("agreement", was.quality, would.quality, ".3f"),
    ]
    for name, before, after, form in figures:
        table.add_row(name, _shown(before, form), _shown(after, form), _kind(name, after, would))
    Console().print(table)
    print("agreement: of the answers with the cloud's, 1 where they say the same")
    for heading, one in (("as it was", was), (policy.strategy or "replayed", would)):
        if one.shared:
            print(f"{heading}: without {one.shared} answers that edge and cloud wrote together (defer, mix)")
    if would.quality is None and would.shared < would.requests:
        hint = "" if would.labels else ": set serve.shadow_share, so that some requests get one"
        print(f"no label tells what the edge's answers are worth{hint}")
    for word, count in would.guessed.items():
        print(f"{count} requests lacked {word}: drawn from those that have one")


def _shown(figure: Figure | None, form: str) -> str:
    if figure is None:
        return "unknown"
    value = format(figure.value, form)
    return value if figure.is_exact else f"{value} ({figure.low:{form}}, {figure.high:{form}})"


def _kind(name: str, figure: Figure | None, would: Replayed) -> str:
    if figure is None:
        return "not known"
    if name.startswith("agreement"):
        return f"from {would.labels} labels"
    return "exact" if figure.is_exact else "estimated"
