"""`consort serve`: one OpenAI-compatible endpoint for the whole consort. Loads everything, then listens."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from consort.config_file import load_config
from consort.problems import raise_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("file", nargs="?", help="the configuration; default: the bundled tiny consort")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as a.b=c"
    )
    parser.add_argument("--role", choices=("gateway", "cloud"), help="cloud: verify other gateways' drafts")
    parser.add_argument("--host", metavar="ADDRESS", help="default: serve.host")
    parser.add_argument("--port", type=int, help="default: serve.port")
    parser.add_argument("--strategy", metavar="NAME", help="what the model name `consort` means")
    parser.add_argument("--state", metavar="DIR", help="the folder of ledger and keys")
    parser.epilog = "example: consort serve consort.toml --port 8800"


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from consort.gateway.serve import serve
    from consort.preflight.values import range_problems

    config = load_config(args.file or os.devnull, args.set)  # without a file: an empty one, and --set
    given = {name: getattr(args, name) for name in ("role", "host", "port", "strategy", "state")}
    changes = {name: value for name, value in given.items() if value is not None}
    config = replace(config, serve=replace(config.serve, **changes))
    raise_errors(list(range_problems(config)))  # also of what the arguments say
    serve(config)
    return 0
