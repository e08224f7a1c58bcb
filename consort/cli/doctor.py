"""`consort doctor`: what is installed, what is missing, and the command that repairs it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from consort.doctor import examine_machine
from consort.preflight import examine_file

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("file", nargs="?", default="", help="also examine the run of this configuration")
    parser.add_argument(
        "--run-dir", default="runs", metavar="DIR", help="where runs would go (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.epilog = "example: consort doctor consort.toml"


def run(args: argparse.Namespace) -> int:
    """Print each finding and its repair; 1 if something that a run needs is missing."""
    findings = examine_machine(Path(args.run_dir))
    if args.file:
        # With the configuration only: its checks align tokenizers and read models' files.
        from consort.doctor_run import examine_run

        findings += examine_run(examine_file(args.file))
    failed = any(finding.state == "fail" for finding in findings)
    if args.json:
        print(
            json.dumps({"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]})
        )
        return int(failed)
    console = Console(highlight=False, soft_wrap=True)  # rich honours NO_COLOR
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = f"[{STYLES[finding.state]}]{finding.state:4}[/]"
        console.print(f"{mark}  {escape(finding.name):{width}}  {escape(finding.detail)}")
        if finding.repair:
            console.print(f"{'':{width + 8}}-> {escape(finding.repair)}")
    return int(failed)
