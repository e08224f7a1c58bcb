"""`consort chat`: talk to a model or adapter, or ask once and pipe the answer on. Keeps no history."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from consort.config import RuntimeConfig
from consort.errors import ConfigError
from consort.models.gguf.file import is_gguf
from consort.types import Message

if TYPE_CHECKING:
    from consort.models.decoding.lm import Decodable

DEFAULT_MODEL = "zoo:cloud"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"Hub id, zoo:NAME, GGUF file, or directory of a model or adapter; default: {DEFAULT_MODEL}",
    )
    parser.add_argument(
        "prompt", nargs="?", help="ask this once; default: standard input if piped, else talk"
    )
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT directory made for this model")
    parser.add_argument("--system", default="", metavar="TEXT", help="instructions before the conversation")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="longest answer, default: 64"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--chat-template", default="", metavar="FILE", help="for a model that brings none")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.epilog = "example: consort chat zoo:cloud 'What is a proxy?'"


def run(args: argparse.Namespace) -> int:
    """Answer to stdout as it is written; everything else goes to stderr."""
    model = _load(args)
    opening = [Message("system", args.system)] if args.system else []
    prompt = (
        args.prompt if args.prompt is not None else None if sys.stdin.isatty() else sys.stdin.read().strip()
    )
    if prompt is not None:
        _answer(model, [*opening, Message("user", prompt)], args)
        return 0
    print(f"{model.name}. An empty line or Ctrl-D ends; /new forgets the conversation.", file=sys.stderr)
    turns = list(opening)
    while asked := _ask():
        if asked == "/new":
            turns = list(opening)
            continue
        turns.append(Message("user", asked))
        turns.append(Message("assistant", _answer(model, turns, args)))
    return 0


def _load(args: argparse.Namespace) -> Decodable:
    runtime = RuntimeConfig(device=args.device)
    if is_gguf(args.model):
        if args.adapter is not None:
            hint = "consort export MODEL OUT --format gguf --adapter DIR merges it"
            raise ConfigError("an adapter cannot be put on a GGUF file", where=args.model, hint=hint)
        from consort.models.gguf.model import load_gguf

        return load_gguf(args.model, runtime=runtime, chat_template=args.chat_template)
    from consort.training.tuned import load_tuned

    return load_tuned(args.model, adapter=args.adapter, runtime=runtime, chat_template=args.chat_template)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _answer(model: Decodable, turns: list[Message], args: argparse.Namespace) -> str:
    """Write the answer as it comes; returns it whole. A long conversation loses its beginning."""
    from consort.models.decoding.stream import stream_text
    from consort.training.data import Sample, prompt_ids

    room = model.context_tokens - args.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"--max-new-tokens {args.max_new_tokens} leaves no room for a question",
            where=model.name,
            hint=f"its context is {model.context_tokens} tokens",
        )
    ids = prompt_ids(Sample(tuple(turns), None), model)[-room:]
    pieces = []
    for piece in stream_text(
        model, ids, max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed
    ):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print(flush=True)
    return "".join(pieces)
