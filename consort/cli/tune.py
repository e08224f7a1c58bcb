"""`consort tune`: co-tune the models of a configuration on their data, and report against tuning alone."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from consort.config import Config
from consort.preflight import Preflight, load_checked
from consort.training.data import Sample

if TYPE_CHECKING:
    from consort.bench.assemble import RunData
    from consort.bench.results import RunResult
    from consort.preflight.data import Rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "file", nargs="?", default="consort.toml", help="the configuration (default: consort.toml)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as a.b=c"
    )
    add_run_arguments(parser)
    parser.epilog = "example: consort tune consort.toml --set tune.rounds=3 --run-dir runs/first"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a run goes and how its result is printed."""
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where the run goes (default: runs/<name>-<time>)"
    )
    parser.add_argument(
        "--ignore-memory", action="store_true", help="begin though the forecast says memory does not suffice"
    )
    parser.add_argument("--resume", action="store_true", help="finish an interrupted run of --run-dir")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, last")


def run(args: argparse.Namespace) -> int:
    """Check everything, then run."""
    from consort.preflight.memory import memory_here, require_memory

    found = load_checked(args.file, args.set, memory=not args.ignore_memory)
    progress = Console(stderr=True)
    for problem in found.problems:
        progress.print(f"{problem.level}: {problem}", style="yellow", markup=False)
    if not args.ignore_memory:
        require_memory(found, memory_here(found.config.runtime.device), where=args.file)
    result = co_tune_and_print(found.config, run_data(found), args)
    if args.json:
        print(json.dumps(result.to_json()))
    return 0


def co_tune_and_print(config: Config, data: RunData, args: argparse.Namespace) -> RunResult:
    """The run itself, with progress on stderr and the result on stdout."""
    from consort.bench.run import run_co_tuning
    from consort.bench.terminal import print_result

    run_dir = args.run_dir or new_run_dir(config.name)
    console = Console(stderr=True)
    if args.resume and not run_dir.exists():
        console.print(f"nothing to resume in {run_dir}: a new run begins", style="yellow", markup=False)
    started = time.monotonic()
    columns = SpinnerColumn(), BarColumn(30), MofNCompleteColumn(), TextColumn("steps,"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        steps = progress.add_task("", total=None)

        def report(line: str) -> None:
            console.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {line}")

        def on_step(finished: int, planned: int) -> None:
            progress.update(steps, completed=finished, total=planned)

        result = run_co_tuning(config, data, run_dir, resume=args.resume, report=report, on_step=on_step)
    print_result(result, Console())
    progress.print(f"report: {run_dir / 'report.html'}", markup=False)
    return result


def new_run_dir(name: str) -> Path:
    """A directory that no other run has, named by the time of day."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def run_data(found: Preflight) -> RunData:
    """The rows a run learns from and is measured on, out of what the preflight has read."""
    from consort.bench.assemble import DeviceRows, RunData

    config, rows, devices = found.config, found.rows, {}
    for index, device in enumerate(config.devices):
        unlabelled = rows.get(f"devices.{index}.unlabelled")
        asked = [row.sample for row in unlabelled.unlabelled(0)] if unlabelled else []
        train, test = _train_and_test(rows[f"devices.{index}.data"], config.eval.rows)
        devices[device.name] = DeviceRows(train, asked, test)
    public_train, public_test = _train_and_test(rows["public"], config.eval.public_rows)
    shortened = found.models.lengths.shortened if found.models else ()
    return RunData(public_train, public_test, devices, tuple(shortened))


def _train_and_test(rows: Rows, limit: int) -> tuple[list[Sample], list[Sample]]:
    """Rows to learn, and rows to measure on."""
    used = rows.used(limit)
    return [row.sample for row in used if row.used == "learned"], [
        row.sample for row in used if row.used == "asked"
    ]
