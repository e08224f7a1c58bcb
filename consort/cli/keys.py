"""`consort keys`: who may ask the endpoint. A key is shown once, when it is made; only its hash is kept."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from consort.config_serve import ServeConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("action", choices=["add", "list", "revoke"])
    parser.add_argument("name", nargs="?", help="whose key")
    parser.add_argument("--budget", type=float, default=0.0, metavar="MONEY", help="a month; default: any")
    parser.add_argument(
        "--per-minute", type=float, default=0.0, metavar="N", help="requests a minute; default: no limit"
    )
    parser.add_argument("--state", default=ServeConfig().state, metavar="DIR", help="as serve.state")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.epilog = "example: consort keys add laptop --budget 10"


def run(args: argparse.Namespace) -> int:
    """Print the new key, or the keys' names and limits."""
    from consort.gateway.keys import Key, add_key, read_keys, revoke_key

    file = Path(args.state) / "keys.json"
    if args.action == "list":
        rows = [{name: v for name, v in asdict(k).items() if name != "sha256"} for k in read_keys(file)]
        lines = [
            f"{row['name']}  budget {_limit(row['budget'])}  per minute {_limit(row['per_minute'])}"
            for row in rows
        ]
        print(json.dumps(rows) if args.json else "\n".join(lines))
        return 0
    if not args.name:
        print(f"consort keys {args.action} needs a name", file=sys.stderr)
        return 2
    if args.action == "revoke":
        revoke_key(file, args.name)
        return 0
    secret = add_key(file, Key(args.name, budget=args.budget, per_minute=args.per_minute))
    print(json.dumps({"name": args.name, "key": secret}) if args.json else secret)
    print("this is the only time it is shown", file=sys.stderr)
    return 0


def _limit(most: float) -> str:
    return f"{most:g}" if most else "any"
