"""`consort calibrate --cache`: from which likeness on the cache may take another question's answer.

Writes what `serve.alike` reads; where no likeness could be certified it writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from consort.errors import ConfigError, DataError


def run_cache(args: argparse.Namespace) -> int:
    """Measure, print, and store if asked."""
    from consort.inference.cache import OFF
    from consort.inference.cache_measured import measure_likeness, save_likeness

    if not 0 < args.max_error < 1:
        raise ConfigError(f"--max-error {args.max_error:g} is no share", hint="as in: --max-error 0.02")
    if not 0.5 <= args.confidence < 1:
        raise ConfigError(f"a confidence of {args.confidence:g} is no confidence", hint="give 0.5 to 0.999")
    asked = _asked(args)
    measured = measure_likeness(asked, max_error=args.max_error, confidence=args.confidence)
    proven = measured.threshold < OFF
    if args.out and proven:
        save_likeness(measured, args.out)
        print(f'likeness: {args.out}; serve it with alike = "{args.out}"', file=sys.stderr)
    elif args.out:
        print(f"{args.out} is not written: nothing could be certified", file=sys.stderr)
    if args.json:
        print(json.dumps({"certified": proven, **dataclasses.asdict(measured)}))
        return 0
    print(f"{measured.pairs} questions compared with the one most alike before them:")
    if not proven:
        print(f"  none has surely at most {args.max_error:.1%} wrong answers; only the same question counts")
        return 0
    print(
        f"  from a likeness of {measured.threshold:.4f} on at most {args.max_error:.1%} wrong answers, with "
        f"{args.confidence:.0%} confidence: {measured.hits} questions, {measured.wrong} of them wrong"
    )
    return 0


def _asked(args: argparse.Namespace) -> list[tuple[str, str]]:
    if args.ledger:
        from consort.bench.traffic import logged_answers
        from consort.gateway.history import read_history

        return logged_answers(read_history(args.ledger, days=args.days), where=args.ledger)
    return _read(args.outcomes)


def _read(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), hint='JSONL: {"prompt", "answer"}')
    asked = []
    for line, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            prompt, answer = row["prompt"], row["answer"]
        except (ValueError, KeyError, TypeError):
            prompt = answer = None
        if not isinstance(prompt, str) or not isinstance(answer, str):
            hint = 'a row: {"prompt": "...", "answer": "..."}'
            raise DataError("no question with its answer", where=f"{path}:{line}", hint=hint)
        asked.append((prompt, answer))
    return asked
