"""`consort eval`: Rouge-L, exact match, perplexity and bits per byte of any model or adapter on any rows."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from consort.config import RuntimeConfig
from consort.errors import ConfigError
from consort.problems import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("model", help="Hub id, zoo:NAME, or directory of a model or adapter")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT directory made for this model")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="JSONL file, or directory with train/valid/test.jsonl",
    )
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"), help="default: test")
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="the first N rows; default: all")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="longest answer, default: 64"
    )
    parser.add_argument("--chat-template", default="", metavar="FILE", help="for a model that brings none")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.epilog = "example: consort eval runs/demo/adapters/bank --data data/bank"


def run(args: argparse.Namespace) -> int:
    """Measure and print; scores are shares in JSON and percent in the table."""
    from consort.bench.metrics import likelihood, majority_baseline, score_answers
    from consort.training.answers import answer
    from consort.training.data import read_samples
    from consort.training.likelihood import answer_likelihoods
    from consort.training.tuned import load_tuned

    samples = read_samples(args.data, args.split)[: args.rows or None]
    train = (
        read_samples(args.data, "train")
        if args.data.is_dir() and (args.data / "train.jsonl").exists()
        else []
    )
    model = load_tuned(
        args.model,
        adapter=args.adapter,
        runtime=RuntimeConfig(device=args.device),
        chat_template=args.chat_template,
    )
    if args.max_new_tokens >= model.context_tokens:
        raise ConfigError(
            f"--max-new-tokens {args.max_new_tokens} leaves no room for a question",
            where=model.name,
            hint=f"its context is {model.context_tokens} tokens",
        )
    rows = counted(len(samples), "row")
    print(f"{model.name}: answering {rows}", file=sys.stderr)
    references = [sample.answer or "" for sample in samples]
    scores = score_answers(answer(model, samples, max_new_tokens=args.max_new_tokens), references)
    found = answer_likelihoods(model, samples)
    fit = likelihood(found.log_likelihoods, found.num_tokens, num_bytes=found.num_bytes)
    if found.num_truncated:
        print(
            f"{counted(found.num_truncated, 'prompt')} lost the beginning to fit the context", file=sys.stderr
        )
    majority = majority_baseline([sample.answer or "" for sample in train], references) if train else None
    measured = {
        "rouge_l": scores.rouge_l,
        "em": scores.em,
        "perplexity": fit.perplexity,
        "bits_per_byte": fit.bits_per_byte,
    }
    if args.json:
        values = {name: score.mean for name, score in measured.items()}
        errors = {f"{name}_stderr": score.stderr for name, score in measured.items()}
        print(
            json.dumps(
                {"model": args.model, "rows": len(samples), **values, **errors, "majority_em": majority}
            )
        )
        return 0
    table = Table(title=f"{model.name} on {rows} of {args.data}", title_justify="left")
    for heading in ("", "value", "± stderr"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, label, factor in _ROWS:
        score = measured[name]
        table.add_row(label, f"{factor * score.mean:.4g}", f"{factor * score.stderr:.2g}")
    if majority is not None:
        table.add_row("exact match of the commonest training answer, %", f"{100 * majority:.4g}", "")
    Console().print(table)
    return 0


_ROWS = (
    ("rouge_l", "Rouge-L, %", 100),
    ("em", "exact match, %", 100),
    ("perplexity", "perplexity of the answers, per token", 1),
    ("bits_per_byte", "bits per byte of the answers", 1),
)
