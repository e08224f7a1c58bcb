"""`consort calibrate`: learn from outcomes who should answer, and find the threshold that keeps goals; or
measure from which likeness on the cache may take another question's answer."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from consort.errors import ConfigError
from consort.problems import nearest

if TYPE_CHECKING:
    from consort.bench.learn import Learned
    from consort.bench.outcomes import Pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "outcomes", type=Path, nargs="?", help='JSONL: {"prompt", "scores": {model: score}, "answers"?}'
    )
    add_pair_arguments(parser)
    parser.add_argument(
        "--ledger", type=Path, metavar="DIR", help="learn from the labels of this ledger (serve.shadow_share)"
    )
    parser.add_argument("--days", type=float, metavar="N", help="of the ledger, its last N days")
    parser.add_argument(
        "--cache",
        action="store_true",
        help='measure the likeness of serve.alike instead, on rows {"prompt", "answer"} or logged texts',
    )
    parser.add_argument(
        "--max-error", type=float, default=0.02, metavar="E", help="of --cache: wrong answers, default: 0.02"
    )
    parser.add_argument(
        "--goal", action="append", default=[], metavar="GOAL", help="may be given more than once"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="C", help="of the goals, default: 0.95"
    )
    parser.add_argument("--requests-per-month", type=float, metavar="N", help="for a goal in EUR/month")
    parser.add_argument(
        "--when",
        choices=("before", "after"),
        help="decide before or after the edge's answer; default: after, where the outcomes have its answers",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the scorer and its threshold, safetensors"
    )
    parser.epilog = (
        'example: consort calibrate outcomes.jsonl --goal "quality >= 0.98 of cloud" --out scorer.safetensors'
    )


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """The two models of the outcomes and their prices, as `consort bench` takes them too."""
    parser.add_argument(
        "--small", default="", metavar="NAME", help="default: of two models, the one that scores less"
    )
    parser.add_argument(
        "--large", default="", metavar="NAME", help="default: of two models, the one that scores more"
    )
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="NAME=EUR",
        help="euros a request; default: the outcomes'",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the division into halves or folds")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def prices(given: Sequence[str], models: Sequence[str]) -> dict[str, float]:
    """`NAME=EUR` as a price a request."""
    found = {}
    for text in given:
        name, _, written = text.rpartition("=")
        if name not in models:
            raise ConfigError(
                f'"{name}" is not one of the two models', where=f"--price {text}", hint=nearest(name, models)
            )
        try:
            found[name] = float(written)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < float("inf"):
            raise ConfigError(
                f'"{written}" is not a price', where=f"--price {text}", hint="as in: gpt-4=0.01"
            )
    return found


def run(args: argparse.Namespace) -> int:
    """Learn from one half of the outcomes, calibrate and judge on the other; print, and store if asked."""
    if bool(args.outcomes) == bool(args.ledger):
        raise ConfigError("give either a file of outcomes or --ledger DIR", where="consort calibrate")
    if args.ledger and (args.small or args.large):
        raise ConfigError("a ledger has its own two models", where="--small, --large", hint="leave them out")
    if args.cache:
        from consort.cli.calibrate_cache import run_cache

        return run_cache(args)
    from consort.bench.learn import learn_scorer
    from consort.inference.gain_file import save_scorer
    from consort.inference.goals import parse_goal

    goals = [parse_goal(text) for text in args.goal]
    data = _data(args)
    given = prices(args.price, (data.small, data.large))
    after = args.when == "after" or (args.when is None and data.has_answers)
    if after and not data.has_answers:
        raise ConfigError(
            f'not every outcome has an answer of "{data.small}"',
            where=str(args.outcomes or args.ledger),
            hint="give --when before",
        )
    print(
        f"{data.small} and {data.large}: learning from half of {len(data.outcomes)} outcomes", file=sys.stderr
    )
    learned = learn_scorer(
        data,
        goals,
        after_answer=after,
        prices_eur=given,
        confidence=args.confidence,
        requests_per_month=args.requests_per_month,
        seed=args.seed,
    )
    if args.out:
        save_scorer(learned.scorer, args.out)
        print(f"scorer: {args.out}", file=sys.stderr)
    if args.json:
        print(json.dumps(_as_json(learned)))
    else:
        _tell(learned)
    return 0


def _data(args: argparse.Namespace) -> Pair:
    if args.outcomes:
        from consort.bench.outcomes import pair, read_outcomes

        return pair(
            read_outcomes(args.outcomes), small=args.small, large=args.large, where=str(args.outcomes)
        )
    from consort.bench.traffic import labelled_pair
    from consort.gateway.history import read_history

    history = read_history(args.ledger, days=args.days)
    data = labelled_pair(history, where=args.ledger)
    kept = "with their texts" if data.outcomes[0].prompt else "without texts, by their features"
    print(f"{len(data.outcomes)} labels {kept}; a score is agreement with {data.large}", file=sys.stderr)
    heard = sum("proxy" in label.features for label in history.graded)
    if 0 < heard < len(history.graded):
        whole = all("proxy" in outcome.features for outcome in data.outcomes)
        learned = "learning from these" if whole else "learning without it"
        print(f"{heard} of {len(history.graded)} labels heard the proxy: {learned}", file=sys.stderr)
    return data


def _as_json(learned: Learned) -> dict[str, object]:
    model, judged, calibration = learned.scorer.model, learned.judged, learned.scorer.calibration
    figures = (("apgr", judged.apgr), ("cpt50", judged.cpt50), ("cpt80", judged.cpt80))
    return {
        "small": model.small,
        "large": model.large,
        "when": "after" if model.needs_answer else "before",
        "judged": learned.num_judged,
        **{name: [figure.value, figure.low, figure.high] for name, figure in figures},
        "goals": dataclasses.asdict(calibration) if calibration else None,
    }


def _tell(learned: Learned) -> None:
    model, judged, calibration = learned.scorer.model, learned.judged, learned.scorer.calibration
    when = "after" if model.needs_answer else "before"
    print(f"deciding {when} the answer of {model.small}, judged on {learned.num_judged} unseen outcomes:")
    print(f"  APGR {judged.apgr}   CPT(50) {judged.cpt50}   CPT(80) {judged.cpt80}")
    if calibration is None:
        return
    print(f"goals: {'; '.join(calibration.goals)}, with {calibration.confidence:.0%} confidence")
    if not calibration.kept:
        print("  no threshold could be certified on so many outcomes; give more outcomes or a gentler goal")
        place = "everything goes to the cloud" if calibration.cloud_share else "everything stays at the edge"
        print(f"  until then {place}")
        return
    print(f"  {calibration.rule(model.small, model.large)}")
    euros = (
        ""
        if calibration.eur_per_request is None
        else f", {1000 * calibration.eur_per_request:.3g} EUR / 1,000"
    )
    print(
        f"  {1 - calibration.cloud_share:.0%} at the edge, "
        f"{calibration.quality_of_cloud:.1%} of the cloud's quality{euros}"
    )
