"""What can be wrong with the models that `[serve]` names: places, templates, adapters made for another base.

By files alone where they tell: an adapter whose shapes are not the model's is another's, and one made for
weights of this hash is its own. Only where the files' hash is another is a model loaded: its own names of the
weights may differ from the files'. Of a base without safetensors at hand, as on the Hub, the name alone is
compared. Endpoints are not asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from safetensors import safe_open

from consort.config import Config, RuntimeConfig
from consort.config_serve import ServedModel
from consort.errors import ConfigError, ModelError
from consort.gateway.loading import served
from consort.gateway.opening import check_known, chosen_strategy
from consort.models.footprint import ModelFiles, read_model_files
from consort.models.gguf.file import is_gguf
from consort.models.zoo import located
from consort.problems import Problem


def served_problems(config: Config) -> Iterator[Problem]:
    """Every model of `[serve]` that `consort serve` could not load."""
    serve = config.serve
    # each by itself, as one mistake must not hide another; a run's own models are checked with the run
    checks = (check_known, served, chosen_strategy) if serve.edges or serve.cloud.is_given else (check_known,)
    yield from dict.fromkeys(problem for check in checks for problem in _told(check, config))
    named = {f"serve.edges.{index}": model for index, model in enumerate(serve.edges)}
    for key, model in (named | {"serve.cloud": serve.cloud, "serve.proxy": serve.proxy}).items():
        if model.model and not model.base_url:
            yield from _here(key, model)


def _told(check: Callable[[Config], object], config: Config) -> Iterator[Problem]:
    try:
        check(config)
    except ConfigError as error:
        yield Problem(error.where, error.what, error.hint, error.where)


def _here(key: str, model: ServedModel) -> Iterator[Problem]:
    """A model that runs on this machine."""
    if model.chat_template and not os.path.isfile(model.chat_template):
        what = f"no such file: {model.chat_template}"
        yield Problem(f"{key}.chat_template", what, "name a Jinja file", f"{key}.chat_template")
    part = "model"
    try:
        if is_gguf(model.model):
            _check_gguf(model)
            return
        base, adapter = _base_and_adapter(model)
        files = read_model_files(base)
        if adapter:
            part = "adapter" if model.adapter else "model"
            _check_adapter(adapter, base, files)
    except ModelError as error:
        place = f"{key}.{part}"
        yield Problem(place, f"{error.where}: {error.what}", error.hint, place)


def _check_gguf(model: ServedModel) -> None:
    if not os.path.isfile(model.model):
        raise ModelError("no such file", where=model.model, hint="`consort export --format gguf` writes one")
    if model.adapter:
        hint = "consort export MODEL OUT --format gguf --adapter DIR merges it"
        raise ModelError("an adapter cannot be put on a GGUF file", where=model.model, hint=hint)


def _base_and_adapter(model: ServedModel) -> tuple[str, Path | None]:
    """As `serve` takes them: a PEFT directory may stand for its base and itself."""
    from consort.training.tuned import base_and_adapter

    return base_and_adapter(model.model, Path(model.adapter) if model.adapter else None)


def _check_adapter(directory: Path, base: str, files: ModelFiles) -> None:
    """ModelError if the adapter was made for another base."""
    from consort.training.peft_directory import base_sha256_of, named_base, target_shapes

    named = named_base(directory)
    other = ModelError(
        f"this adapter was made for another base than {base}",
        where=str(directory),
        hint=f"its base: {named or 'not named'}",
    )
    targets, shapes = target_shapes(directory), files.shapes
    layers = {target: _layer(target, shapes) for target in targets}
    # sorted, as some models hold their layers transposed
    if any(layer and sorted(layer) != sorted(targets[target]) for target, layer in layers.items()):
        raise other
    if shapes and not any(layers.values()):
        raise other
    expected = base_sha256_of(directory)
    weights = sorted(files.folder.glob("*.safetensors"))
    if not expected or (not weights and _one_place(named, base)):
        return
    if expected != files_sha256(weights) and expected != _sha256(base):
        raise other


def _layer(target: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the layer of this name, empty where there is none. Published files may leave out the first
    words of a layer's name."""
    parts = target.split(".")
    names = (f"{'.'.join(parts[begin:])}.weight" for begin in range(len(parts)))
    return next((shapes[name] for name in names if name in shapes), ())


def _one_place(named: str, base: str) -> bool:
    try:
        ours, theirs = located(base), located(named)
    except ModelError:  # it names a bundled model that is not there any more
        return False
    return ours == theirs or (os.path.isdir(theirs) and os.path.realpath(ours) == os.path.realpath(theirs))


def files_sha256(files: Sequence[Path]) -> str:
    """`base_sha256` of a model whose files name the weights as the model does, read one weight at a time."""
    from consort.models.local import weights_sha256

    with ExitStack() as opened:
        stored = [opened.enter_context(safe_open(file, framework="pt")) for file in files]
        places = {name: file for file in stored for name in file.keys()}  # noqa: SIM118
        return weights_sha256((name, places[name].get_tensor(name)) for name in sorted(places))


def _sha256(base: str) -> str:
    from consort.models.local import load_model
    from consort.training.adapters import base_sha256

    return base_sha256(load_model(base, runtime=RuntimeConfig(device="cpu")))
