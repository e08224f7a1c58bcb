"""`consort export`: a model, with its adapter, as a PEFT directory, merged safetensors or GGUF."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from consort.config import RuntimeConfig

if TYPE_CHECKING:
    from consort.training.export import Precision

# what each form is mostly used at: training goes on in bfloat16, llama.cpp is quick in float16 everywhere
_DEFAULT_PRECISION: dict[str, Precision] = {"peft": "float32", "safetensors": "bfloat16", "gguf": "float16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("model", help="Hub id, zoo:NAME, or directory of a model or adapter")
    parser.add_argument("out", type=Path, help="a new directory to write")
    parser.add_argument("--format", required=True, choices=tuple(_DEFAULT_PRECISION), help="what to write")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT directory made for this model")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "q8_0"),
        help="of the weights; default: float32 for PEFT, bfloat16 for safetensors, float16 for GGUF; "
        "q8_0 is for GGUF only",
    )
    parser.add_argument("--chat-template", default="", metavar="FILE", help="for a model that brings none")
    parser.epilog = "example: consort export zoo:cloud out/cloud --format gguf"


def run(args: argparse.Namespace) -> int:
    """Write it; prints the path to load."""
    from consort.training.adapters import OWN
    from consort.training.export import export_model
    from consort.training.tuned import base_and_adapter, load_tuned

    base, adapter = base_and_adapter(args.model, args.adapter)
    model = load_tuned(
        args.model,  # by this name, not the base's
        adapter=args.adapter,
        runtime=RuntimeConfig(device="cpu"),
        chat_template=args.chat_template,
    )
    written = export_model(
        model,
        args.out,
        form=args.format,
        precision=args.precision or _DEFAULT_PRECISION[args.format],
        base=base,
        adapter=OWN if adapter else "",
    )
    print(written)
    print(f"what it is and how to load it: {args.out / 'README.md'}", file=sys.stderr)
    return 0
