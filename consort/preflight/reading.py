"""Whether each model can read the rows it will be given: template, context, and rows that fit.

A device's rows are read by its own model and by the proxy, public rows by the cloud model and the proxy, and
test rows of both by the cloud model too. Prompts are written and counted as training and answering do it
(`training.data`, `training.answers`), from the tokenizer's files alone. Does not count the few prompts that a
run shows to all models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from consort.config import Config, ModelConfig
from consort.errors import ModelError
from consort.models.footprint import ASSUMED_CONTEXT, ModelFiles
from consort.preflight.data import Placed, Rows, Use
from consort.problems import Problem, first_few
from consort.training.data import LEARNED, Kind, Shortened, needs_template, template_reader, written_prompt

_PROXY_TEMPLATE = (
    "copy the cloud model's chat_template.jinja beside its tokenizer.json, or leave proxy.model empty"
)
_TEMPLATE = "set chat_template to a Jinja file, or give the data as prompt/completion"


_LIMIT = re.compile(r"\.\d+\.")  # `devices.0.slm` is written `devices.slm`


@dataclass(frozen=True, slots=True)
class Model:
    """A model as far as reading goes."""

    who: str  # for the person
    key: str
    files: ModelFiles
    template_file: str
    template_hint: str


@dataclass(frozen=True, slots=True)
class Reader:
    """A model that reads a party's rows, and up to where."""

    party: str
    model: Model
    max_tokens: int
    limit_key: str  # of max_tokens
    writes: int  # tokens that an answer of it may take
    asks: Use  # the rows that this model answers
    rows: list[Placed]

    @property
    def context(self) -> int:
        """Tokens that it reads at most."""
        return self.model.files.context_tokens or ASSUMED_CONTEXT

    @property
    def room(self) -> int:
        """Tokens of prompt and answer together, where it learns."""
        return min(self.max_tokens, self.context)


@dataclass(slots=True)
class Lengths:
    """What the rows' lengths come to: whose prompts are cut, and the longest row by the limit it is under."""

    shortened: list[Shortened] = field(default_factory=list)
    longest: dict[str, int] = field(default_factory=dict)  # tokens, by the key of max_tokens


def reading_problems(
    config: Config, rows: Mapping[str, Rows], files: Mapping[str, ModelFiles], lengths: Lengths
) -> Iterator[Problem]:
    """What is wrong between models and rows; a mistake of a row that several models meet is told once."""
    yield from _answer_room(config, files)
    told: set[tuple[str, str]] = set()
    for reader in _readers(config, rows, files):
        for problem in (*_limits(reader), *_rows_problems(reader, lengths)):
            if (problem.where, problem.what) not in told:
                told.add((problem.where, problem.what))
                yield problem


def _answer_room(config: Config, files: Mapping[str, ModelFiles]) -> Iterator[Problem]:
    contexts = {each.name: each.context_tokens for each in files.values() if each.context_tokens}
    if contexts and config.eval.max_new_tokens >= min(contexts.values()):
        name = min(contexts, key=lambda each: contexts[each])
        key = "eval.max_new_tokens"
        what = f"answers of {config.eval.max_new_tokens} tokens leave no room for a question"
        yield Problem(key, what, f"{name} reads and writes at most {contexts[name]} together", key)


def _readers(config: Config, rows: Mapping[str, Rows], files: Mapping[str, ModelFiles]) -> Iterator[Reader]:
    writes, nothing = config.eval.max_new_tokens, Rows()
    cloud, proxy = _model("cloud", config.cloud, files), _proxy(config, files)
    limit, limit_key = config.cloud.max_tokens, "cloud.max_tokens"
    public = rows.get("public", nothing).used(config.eval.public_rows)
    if cloud:
        yield Reader("cloud", cloud, limit, limit_key, writes, "asked", public)
    if proxy and config.proxy.model:  # one pruned from the cloud model reads as that does
        yield Reader("cloud", proxy, limit, limit_key, writes, "answered", public)
    for index, device in enumerate(config.devices):
        key, its_limit = f"devices.{index}", device.slm.max_tokens
        own = rows.get(f"{key}.data", nothing).used(config.eval.rows)
        asked = [_unanswered(row) for row in own if row.used == "asked"]
        own += rows.get(f"{key}.unlabelled", nothing).unlabelled(config.tune.proxy_answers)
        if slm := _model(f"{key}.slm", device.slm, files):
            yield Reader(device.name, slm, its_limit, f"{key}.slm.max_tokens", writes, "asked", own)
        if proxy:
            yield Reader(device.name, proxy, its_limit, f"{key}.slm.max_tokens", writes, "answered", own)
        if cloud:
            yield Reader(device.name, cloud, limit, limit_key, writes, "asked", asked)


def _model(key: str, settings: ModelConfig, files: Mapping[str, ModelFiles]) -> Model | None:
    found = files.get(f"{key}.model")
    return Model(found.name, f"{key}.model", found, settings.chat_template, _TEMPLATE) if found else None


def _proxy(config: Config, files: Mapping[str, ModelFiles]) -> Model | None:
    """One that is pruned from the cloud model has its tokenizer, template and context."""
    key = "proxy.model" if config.proxy.model else "cloud.model"
    template, hint = ("", _PROXY_TEMPLATE) if config.proxy.model else (config.cloud.chat_template, _TEMPLATE)
    found = files.get(key)
    return Model(f"the proxy, {found.name}", key, found, template, hint) if found else None


def _unanswered(row: Placed) -> Placed:
    return replace(row, sample=replace(row.sample, answer=None))


def _limits(reader: Reader) -> Iterator[Problem]:
    if reader.max_tokens > reader.context:
        what = f"max_tokens is {reader.max_tokens}, but {reader.model.who} reads at most {reader.context}"
        hint = "the model's own limit is used"
        yield Problem(reader.limit_key, what, hint, reader.limit_key, level="warning")


def _rows_problems(reader: Reader, lengths: Lengths) -> Iterator[Problem]:
    """Answers that do not fit are errors, rows whose prompt will lose its beginning are counted."""
    model = reader.model
    if not model.files.tokenizer.exists():
        return
    try:
        tokenizer = template_reader(model.files.folder, model.template_file)
    except (ModelError, OSError):  # told where the tokenizer or the file is checked
        return
    if needs_template([each.sample for each in reader.rows]) and not tokenizer.chat_template:
        what = f"{model.who} has no chat template, and the data holds conversations"
        yield Problem(model.key, what, model.template_hint, model.key)
        return
    readable, prompts, refused = [], [], []
    for placed in reader.rows:
        try:
            prompts.append(written_prompt(placed.sample, tokenizer, where=model.who))
            readable.append(placed)
        except ModelError as error:
            refused.append(Problem(placed.where, f"{model.who}: {error.what}", error.hint, model.key))
    if len(refused) > 1 and not prompts and len({problem.what for problem in refused}) == 1:
        yield replace(refused[0], where=model.key)  # the template itself, not a row
        return
    yield from first_few(refused, f"rows that the chat template of {model.who} refuses")
    yield from _lengths(reader, tokenizer, readable, prompts, lengths)


def _lengths(
    reader: Reader, tokenizer: Any, rows: Sequence[Placed], prompts: Sequence[str], lengths: Lengths
) -> Iterator[Problem]:
    model, room, longest = reader.model, reader.room, 0
    empty, too_long = [], []
    counts: list[_Counted] = []
    for placed, text in zip(rows, prompts, strict=True):
        said = placed.sample.answer
        prompt = _count(tokenizer, text, special=isinstance(placed.sample.prompt, str))
        answer = 0 if said is None else _count(tokenizer, said, special=False) + 1
        counts.append(_Counted(placed.used, prompt, answer))
        if prompt == 0:
            what = "an empty prompt, for models that have no token which begins a text"
            empty.append(Problem(placed.where, what, "write what is asked, or drop the row", model.key))
        if answer >= room:
            what = f"an answer of {answer} tokens does not fit a context of {room} of {model.who}"
            hint = "shorten or drop the row, or take a model that reads more"
            if reader.max_tokens < reader.context:
                hint = f"raise {_LIMIT.sub('.', reader.limit_key)}, or shorten or drop the row"
            too_long.append(Problem(placed.where, what, hint, reader.limit_key))
        if placed.used in ("learned", "answered"):
            longest = max(longest, min(prompt + (answer or reader.writes), room))
    yield from first_few(empty, "rows with an empty prompt")
    yield from first_few(too_long, f"answers that do not fit a context of {room} of {model.who}")
    lengths.longest[reader.limit_key] = max(longest, lengths.longest.get(reader.limit_key, 0))
    for shortened in _shortened(reader, counts):
        lengths.shortened.append(shortened)
        learned = shortened.kind in LEARNED
        key = reader.limit_key if learned else "eval.max_new_tokens"
        hint = "" if learned else f"answers may take {reader.writes} of its {reader.context} tokens"
        yield Problem(key, f"{reader.party}: {shortened}", hint, key, "warning")


@dataclass(frozen=True, slots=True)
class _Counted:
    """A row in one model's tokens."""

    used: Use
    prompt: int
    answer: int  # with its end; 0: not given


def _shortened(reader: Reader, counts: Sequence[_Counted]) -> Iterator[Shortened]:
    """What is cut where the model learns, then where it answers. What the proxy will have answered is as long
    as its answer: counted is what even the shortest, a token and the end, makes too long."""
    kinds: list[tuple[Kind, Use, int, int]] = [
        ("training rows", "learned", 0, reader.room),
        ("unlabelled rows with any answer", "answered", 2, reader.room),
    ]
    asked: Kind = "test prompts" if reader.asks == "asked" else "unlabelled prompts"
    left = reader.context - reader.writes
    for kind, used, more, room in kinds:
        tokens = [row.prompt + row.answer + more for row in counts if row.used == used]
        if cut := sum(each > room for each in tokens):
            yield Shortened(reader.party, reader.model.who, kind, cut, len(tokens), room)
    prompts = [row.prompt for row in counts if row.used == reader.asks]
    if left > 0 and (cut := sum(each > left for each in prompts)):  # else nothing can be answered
        yield Shortened(reader.party, reader.model.who, asked, cut, len(prompts), left)


def _count(tokenizer: Any, text: str, *, special: bool) -> int:
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=special).ids)
