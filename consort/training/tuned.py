"""A model as a person names it, with the adapter it was tuned into: a model and an adapter for it, or the
adapter's directory alone, which names its base. Does not train, merge or write."""

from __future__ import annotations

from pathlib import Path

from consort.config import RuntimeConfig
from consort.errors import ModelError
from consort.models.local import LocalModel, load_model, save_model
from consort.training.peft_directory import CONFIG, base_of, load_adapter

_TUNED_FROM = "tuned_from"  # in config.json, as adapter_config.json has base_model_name_or_path


def load_tuned(
    model: str, *, adapter: Path | None, runtime: RuntimeConfig, chat_template: str = ""
) -> LocalModel:
    """A Hub id, a local directory, `zoo:<name>` or a PEFT directory, with the LoRA of `adapter` put on it."""
    base, adapter = base_and_adapter(model, adapter)
    name = "" if base == model else Path(model).name
    loaded = load_model(base, runtime=runtime, chat_template=chat_template, name=name)
    if adapter is not None:
        load_adapter(loaded, adapter)
    return loaded


def base_and_adapter(model: str, adapter: Path | None) -> tuple[str, Path | None]:
    """What to load and what to put on it; a PEFT directory as `model` stands for its base and itself."""
    if not (Path(model) / CONFIG).is_file():
        return model, adapter
    if adapter is not None:
        raise ModelError(
            f"this is an adapter itself, and another is named: {adapter}",
            where=model,
            hint="name one of them, or the base model and an adapter",
        )
    return base_of(Path(model)), Path(model)


def save_tuned(model: LocalModel, folder: Path, *, base: str) -> None:
    """A model tuned in full, as a transformers directory that says what it was tuned from."""
    setattr(model.module.config, _TUNED_FROM, base)
    save_model(model, folder)


def tuned_from(model: LocalModel, name: str) -> str:
    """What a model loaded as `name` was tuned from: itself, unless a run has tuned it in full."""
    return str(getattr(model.module.config, _TUNED_FROM, name))
