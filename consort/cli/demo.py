"""`consort demo`: the bundled tiny consort on the built-in task suite: co-tuned, then served and asked. No
network, no key, no download."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from consort.cli.tune import add_run_arguments, co_tune_and_print, new_run_dir, run_data
from consort.config_file import load_config

if TYPE_CHECKING:
    from consort.bench.demo_serving import Served


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    add_run_arguments(parser)
    parser.epilog = (
        "example: consort demo --json\n`consort init --demo` writes the same run as files to edit."
    )


def run(args: argparse.Namespace) -> int:
    """Generate the suite, do what `consort tune` does, then serve what came of it and ask five questions."""
    from consort.bench.demo import demo_config
    from consort.bench.suite import write_suite
    from consort.preflight import examine
    from consort.preflight.memory import memory_here, require_memory
    from consort.problems import raise_errors

    args.run_dir = args.run_dir or new_run_dir("demo")
    suite = (args.run_dir / "suite").absolute()  # as the run's own files name it
    write_suite(suite)
    config = demo_config(suite)
    found = examine(config)
    raise_errors(found.problems)
    if not args.ignore_memory:
        require_memory(found, memory_here(config.runtime.device), where="the demo")
    result = co_tune_and_print(config, run_data(found), args)
    served = _serve(args.run_dir, config.devices[0].name)
    if args.json:
        serving = None if served is None else [one.to_json() for one in served]
        print(json.dumps(result.to_json() | {"serving": serving}))
    return 0


def _serve(run_dir: Path, device: str) -> list[Served] | None:
    """What the endpoint answered; None where it is not installed, which is said and is no failure."""
    from consort.bench.served import SERVED

    try:
        from consort.bench.demo_serving import print_served, serve_and_ask
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("consort"):
            raise
        hint = "pip install 'consort-lm[serve]', then: consort serve " + str(run_dir / SERVED)
        print(f"not served: {error.name} is not installed\n  {hint}", file=sys.stderr)
        return None
    served = serve_and_ask(load_config(run_dir / SERVED), device=device)
    print_served(served, Console())
    print(f"\nserve it yourself, with a dashboard: consort serve {run_dir / SERVED}", file=sys.stderr)
    return served
