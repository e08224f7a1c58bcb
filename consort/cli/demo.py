"""`consort demo`: the bundled tiny consort on the built-in task suite. No network, no key, no download."""

from __future__ import annotations

import argparse

from consort.cli.tune import add_run_arguments, co_tune_and_print, new_run_dir, run_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    add_run_arguments(parser)
    parser.epilog = (
        "example: consort demo --json\n`consort init --demo` writes the same run as files to edit."
    )


def run(args: argparse.Namespace) -> int:
    """Generate the suite, then do what `consort tune` does."""
    from consort.bench.demo import demo_config
    from consort.bench.suite import write_suite
    from consort.preflight import examine
    from consort.problems import raise_errors

    args.run_dir = args.run_dir or new_run_dir("demo")
    write_suite(args.run_dir / "suite")
    config = demo_config(args.run_dir / "suite")
    found = examine(config)
    raise_errors(found.problems)
    co_tune_and_print(config, run_data(config, found.rows), args)
    return 0
