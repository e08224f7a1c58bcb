"""`consort check`: every mistake of a configuration, its data and its models, before any training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from consort.config import Config
from consort.preflight import Preflight, examine_file
from consort.problems import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "file", nargs="?", default="consort.toml", help="the configuration (default: consort.toml)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as a.b=c"
    )
    parser.add_argument("--no-models", action="store_true", help="leave the models out: values and data only")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.epilog = "example: consort check consort.toml --set devices.bank.slm.lora_rank=4"


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 if a run, or the endpoint of a file that names none, could not start."""
    found = examine_file(args.file, args.set, models=not args.no_models)
    if args.json:
        problems = [dataclasses.asdict(problem) for problem in found.problems]
        print(
            json.dumps({"ok": found.ok, "problems": problems, "rows": _row_counts(found)}, ensure_ascii=False)
        )
        return 0 if found.ok else 1
    for problem in found.problems:
        print(f"{problem.level}: {problem}")
    if found.ok:
        print(_summary(found, args.file))
        return 0
    count = sum(problem.level == "error" for problem in found.problems)
    print(f"{args.file}: {counted(count, 'mistake')} to mend", file=sys.stderr)
    return 1


def _summary(found: Preflight, file: str) -> str:
    if found.serves_only:
        return _served_summary(found.config, file)
    config, rows_of = found.config, _row_counts(found)
    named = [("public", "", rows_of["public"]), ("cloud", config.cloud.model, {})]
    named.append(("proxy", config.proxy.model or "pruned from the cloud model", {}))
    for index, device in enumerate(config.devices):
        counts = rows_of[f"devices.{index}.data"]
        if unlabelled := rows_of.get(f"devices.{index}.unlabelled"):
            counts |= {"unlabelled": unlabelled["train"]}
        named.append((device.name, device.slm.model, counts))
    width = max(len(name) for name, _, _ in named)
    devices, rounds = counted(len(config.devices), "device"), counted(config.tune.rounds, "round")
    lines = [f"OK {file}: {devices}, {rounds}"]
    for name, model, counts in named:
        told = ", ".join(f"{split} {count}" for split, count in counts.items())
        lines.append(f"  {name:{width}}  {'; '.join(filter(None, [model, told]))}")
    return "\n".join(lines)


def _served_summary(config: Config, file: str) -> str:
    from consort.gateway.loading import served

    edges, cloud = served(config)
    sides = [*(("edge", edge) for edge in edges), ("cloud", cloud), ("proxy", config.serve.proxy)]
    given = [(side, model) for side, model in sides if model.is_given]
    width = max(len(model.name or side) for side, model in given)
    lines = [f"OK {file}: serves, and names no run"]
    for side, model in given:
        place = ", ".join(
            filter(None, [model.model, model.base_url, "takes drafts" if model.drafted else ""])
        )
        lines.append(f"  {model.name or side:{width}}  {side}: {place}")
    return "\n".join(lines)


def _row_counts(found: Preflight) -> dict[str, dict[str, int]]:
    return {
        key: {split: len(rows) for split, rows in data.splits.items()} for key, data in found.rows.items()
    }
