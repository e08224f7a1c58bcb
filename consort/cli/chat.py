"""`consort chat`: talk to a model or adapter, or ask once and pipe the answer on. Keeps no history."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.style import Style

from consort.config import RuntimeConfig
from consort.config_serve import ServedModel
from consort.errors import ConfigError
from consort.gateway.loading import load_here
from consort.types import Chunk, Consort, DraftedLM, Message, Note, Request

if TYPE_CHECKING:
    from consort.models.decoding.lm import Decodable, LocalLM

DEFAULT_MODEL = "zoo:cloud"
LOOKUP = "prompt-lookup"  # in a drafter's place, what needs none
DRAFTED, STRUCK = Style(color="green"), Style(color="red", dim=True, strike=True)


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
    parser.add_argument(
        "--drafter",
        default="",
        metavar="MODEL",
        help="drafts for the model: same answer, authors in colour; prompt-lookup: what stood there before",
    )
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
    with contextlib.closing(_Talk(args)) as talk:
        opening = [Message("system", args.system)] if args.system else []
        prompt = (
            args.prompt
            if args.prompt is not None
            else None
            if sys.stdin.isatty()
            else sys.stdin.read().strip()
        )
        if prompt is not None:
            talk.answer([*opening, Message("user", prompt)])
            return 0
        print(
            f"{talk.lm.name}. An empty line or Ctrl-D ends; /new forgets the conversation.", file=sys.stderr
        )
        turns = list(opening)
        while asked := _ask():
            if asked == "/new":
                turns = list(opening)
                continue
            turns.append(Message("user", asked))
            turns.append(Message("assistant", talk.answer(turns)))
    return 0


class _Talk:
    """A model, perhaps with a drafter, that answers to the terminal."""

    def __init__(self, args: argparse.Namespace) -> None:
        from consort.models.decoding.lm import LocalLM

        model = _load(args, args.model, args.adapter)
        if args.max_new_tokens >= model.context_tokens:
            raise ConfigError(
                f"--max-new-tokens {args.max_new_tokens} leaves no room for a question",
                where=model.name,
                hint=f"its context is {model.context_tokens} tokens",
            )
        self.lm = LocalLM(model, answers=1, sessions=0)
        self._drafter: LocalLM | None = None
        if args.drafter not in ("", LOOKUP):
            self._drafter = LocalLM(_load(args, args.drafter, None), answers=1, sessions=1)
        self._args, self._room = args, self.lm.context_tokens - args.max_new_tokens
        self._terminal = Console()  # which honours NO_COLOR

    def close(self) -> None:
        """Stop the models' threads."""
        self.lm.close()
        if self._drafter is not None:
            self._drafter.close()

    def answer(self, turns: Sequence[Message]) -> str:
        """Write the answer as it comes; returns it whole. A long conversation loses its oldest turns."""
        args = self._args
        request = Request(
            self._fitting(turns),
            max_tokens=args.max_new_tokens,
            temperature=args.temperature,
            seed=args.seed,
        )
        pieces: list[str] = []

        async def work() -> None:
            async for chunk in self._chunks(request):
                self._show(chunk)
                pieces.append(chunk.text)

        asyncio.run(work())
        print(flush=True)
        return "".join(pieces)

    def _chunks(self, request: Request) -> AsyncIterator[Chunk]:
        if not self._args.drafter:
            return self.lm.stream(request)
        from consort.gateway.loading import drafter_of
        from consort.inference.pace import TRIAL_TOKENS, Pace
        from consort.inference.speculative import speculate

        # a short answer is to be drafted from its first token on
        drafted_by = drafter_of(self._drafter, cast("DraftedLM", self.lm)), Pace(plain_tokens=TRIAL_TOKENS)
        return speculate(lambda cloud: drafted_by)(request, Consort((), self.lm, _tell))

    def _fitting(self, turns: Sequence[Message]) -> tuple[Message, ...]:
        from consort.models.decoding.prompt import prompt_ids

        kept = list(turns)
        begin = int(kept[0].role == "system")
        while len(kept) > begin + 1 and len(prompt_ids(self.lm.model, Request(tuple(kept)))) > self._room:
            del kept[begin : begin + 2]  # a question with its answer
        return tuple(kept)

    def _show(self, chunk: Chunk) -> None:
        """Text in its author's colour, and on a terminal what was drafted in vain."""
        drafted = bool(self._args.drafter) and chunk.model != self.lm.name
        colours = self._terminal.is_terminal and not self._terminal.no_color
        shown = DRAFTED.render(chunk.text) if drafted and colours else chunk.text
        struck = STRUCK.render(chunk.struck) if colours else ""
        print(shown + struck, end="", flush=True)  # text as it is: rich would widen its tabs


def _tell(note: Note) -> None:
    told = note.values
    why = told["undrafted"] or (f"stopped: {told['off']}" if told["off"] else "")
    print(
        f"\n{told['drafter']} drafted {told['drafted']} tokens, {told['accepted']} are in the answer, "
        f"in {told['pieces']} pieces" + (f"; {why}" if why else ""),
        end="",
        file=sys.stderr,
    )


def _load(args: argparse.Namespace, model: str, adapter: Path | None) -> Decodable:
    wanted = ServedModel(model=model, adapter=str(adapter or ""), chat_template=args.chat_template)
    return load_here(wanted, RuntimeConfig(device=args.device))


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
