"""`consort verify-receipt`: was this answer, written with drafts, the cloud model's own, bit for bit?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from consort.config import RuntimeConfig
from consort.config_serve import ServedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("request", type=Path, help="the JSON body that was sent")
    parser.add_argument("answer", type=Path, help="the JSON that came back, with its receipt")
    parser.add_argument("--model", default="zoo:cloud", help="the cloud's model, as [serve.cloud] names it")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT directory made for this model")
    parser.add_argument(
        "--chat-template", default="", metavar="FILE", help="a Jinja file, where [serve.cloud] names one"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="the result as one JSON line")
    parser.epilog = "example: consort verify-receipt request.json answer.json --model zoo:cloud"


def run(args: argparse.Namespace) -> int:
    """Exit code 0 if the model alone writes the same answer and the receipt is this request's, else 1."""
    from consort.gateway.loading import load_here
    from consort.gateway.proof import read_claim, verify
    from consort.models.decoding.lm import LocalLM

    claim = read_claim(args.request, args.answer)
    named = ServedModel(model=args.model, adapter=str(args.adapter or ""), chat_template=args.chat_template)
    model = load_here(named, RuntimeConfig(device=args.device))
    lm = LocalLM(model, answers=1, sessions=0, context_tokens=model.context_tokens)
    try:
        proof = verify(claim, lm)
    finally:
        lm.close()
    if args.json:
        print(json.dumps(proof.told()))
        return 0 if proof.holds else 1
    for conflict in proof.conflicts:
        print(f"another request's receipt: {conflict}", file=sys.stderr)
    if not proof.same:
        print(f"different from character {proof.differs_at} on", file=sys.stderr)
        print(f"  the answer: …{proof.said!r}", file=sys.stderr)
        print(f"  the model:  …{proof.alone!r}", file=sys.stderr)
    elif proof.holds:
        print(f"identical: {model.name} alone writes the same, with seed {claim.seed}")
    else:
        print(
            f"{model.name} alone writes the same as the receipt says, not as was asked for", file=sys.stderr
        )
    return 0 if proof.holds else 1
