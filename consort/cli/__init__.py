"""The command line: one file a verb, loaded only when it is called, so that `consort --help` is quick.

A verb's module offers `add_arguments(parser)`, which also sets an example as epilog, and `run(args) -> int`.
The result goes to stdout, progress and errors to stderr; the exit code is 0, 1 for an error the person can
mend, 2 for a command that cannot be read.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from consort import __version__
from consort.errors import ConsortError, MissingExtraError
from consort.problems import nearest

VERBS = {
    "demo": "watch a tiny bundled consort make itself better, then answer: no network, no key, no download",
    "init": "write a commented configuration",
    "check": "find every mistake in a configuration, its data and its models, before training",
    "doctor": "what is installed, what is missing, and the command that repairs it",
    "tune": "co-tune the models of a configuration on their data",
    "eval": "measure a model or adapter: Rouge-L, exact match, perplexity",
    "calibrate": "learn from outcomes who should answer, and keep goals of quality, cost and latency",
    "bench": "compare strategies, live on prompts or on outcomes: quality, cost, latency, APGR, CPT",
    "chat": "talk to a model or adapter",
    "serve": "answer behind one OpenAI-compatible endpoint",
    "replay": "what yesterday's ledger would have been under another policy, before switching",
    "keys": "make, list and revoke the keys of the endpoint",
    "verify-receipt": "prove that an answer written with drafts is the cloud model's own",
    "export": "write a tuned model as a PEFT directory, merged safetensors or GGUF",
}

EPILOG = """\
begin here:
  consort demo                      see it work, in under three minutes
  consort init consort.toml         write a configuration, then edit it
  consort check consort.toml        all mistakes at once
  consort tune consort.toml         co-tune

`consort VERB --help` explains a verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    # Without this, torch's threads collapse as soon as another process computes (docs/footguns.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return _run(words)
    except KeyboardInterrupt:
        return _failed("interrupted", code=130, debug=debug)
    except ConsortError as error:
        return _failed(str(error), code=1, debug=debug)
    except ModuleNotFoundError as error:
        return _failed(str(_missing_extra(error)), code=1, debug=debug)
    except OSError as error:  # a full disk, a read-only directory: the system's words, without our stack
        place = f"{error.filename}: " if error.filename else ""
        return _failed(f"{place}{error.strerror or error}", code=1, debug=debug)


def _run(words: list[str]) -> int:
    place = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    before, verb, after = words[:place], "".join(words[place : place + 1]), words[place + 1 :]
    parser, verbs = command_line()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    if verb and verb not in VERBS:
        parser.error(f'no verb "{verb}"; {nearest(verb, list(VERBS))}')
    args = parser.parse_args(before)  # --help and --version leave here
    if not verb:
        parser.error("a verb is missing; `consort --help` lists them")
    module = verb_module(verb)
    module.add_arguments(verbs[verb])
    # intermixed: options may stand between what has no name, as in `chat MODEL --seed 1 PROMPT`
    code: int = module.run(verbs[verb].parse_intermixed_args(after, namespace=args))
    return code


def verb_module(verb: str) -> ModuleType:
    """The file of a verb."""
    return importlib.import_module(f"consort.cli.{verb.replace('-', '_')}")


def command_line() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The whole command line, and the still empty parser of each verb."""
    parser = argparse.ArgumentParser(
        prog="consort",
        description="One large language model in the cloud and many small ones at the edge, co-tuned.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    debug_help = "show the traceback of an error"
    parser.add_argument("--version", action="version", version=f"consort {__version__}")
    parser.add_argument("--debug", action="store_true", help=debug_help)
    # Not `required`: a missing verb gets our own words.
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    verbs = {}
    for verb, purpose in VERBS.items():
        verbs[verb] = subparsers.add_parser(
            verb,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # SUPPRESS: the verb's own default must not undo a --debug given before the verb.
        verbs[verb].add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=debug_help)
    return parser, verbs


def _failed(message: str, *, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code


def _missing_extra(error: ModuleNotFoundError) -> MissingExtraError:
    """The extra that holds a module we could not import; any other missing module is our own mistake."""
    from consort.doctor import extra_of

    extra = extra_of((error.name or "").partition(".")[0])
    if not extra:
        raise error
    return MissingExtraError(f"{error.name} is not installed", hint=f"pip install 'consort-lm[{extra}]'")
