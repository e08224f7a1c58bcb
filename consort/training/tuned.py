"""A model as a person names it, with the adapter it was tuned into. Does not train, merge or write."""

from __future__ import annotations

from pathlib import Path

from consort.config import RuntimeConfig
from consort.models.local import LocalModel, load_model
from consort.training.peft_directory import load_adapter


def load_tuned(
    model: str, *, adapter: Path | None, runtime: RuntimeConfig, chat_template: str = ""
) -> LocalModel:
    """A Hub id, a local directory or `zoo:<name>`, with the LoRA of a PEFT directory put on it."""
    loaded = load_model(model, runtime=runtime, chat_template=chat_template)
    if adapter is not None:
        load_adapter(loaded, adapter)
    return loaded
