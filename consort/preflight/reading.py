"""Whether each model can read the rows it will be given: template, context, and rows that fit.

A device's rows are read by its own model and by the proxy, public rows by the cloud model and the proxy.
Prompts are written and counted as training does it (`training.data`), from the tokenizer's files alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from consort.config import Config
from consort.errors import ModelError
from consort.models.footprint import ModelFiles
from consort.preflight.data import Placed, Rows
from consort.problems import Problem, first_few
from consort.training.data import Shortened, needs_template, template_reader, written_prompt

_PROXY_TEMPLATE = (
    "copy the cloud model's chat_template.jinja beside its tokenizer.json, or leave proxy.model empty"
)
_TEMPLATE = "set chat_template to a Jinja file, or give the data as prompt/completion"


_LIMIT = re.compile(r"\.\d+\.")  # `devices.0.slm` is written `devices.slm`


@dataclass(frozen=True, slots=True)
class Reader:
    """A model that reads rows, and up to where."""

    party: str  # whose rows
    who: str  # for the person
    key: str  # of the model
    files: ModelFiles
    template_file: str
    template_hint: str
    max_tokens: int
    limit_key: str  # of max_tokens
    writes: int  # tokens of an answer that is not given yet
    rows: list[Placed]

    @property
    def room(self) -> int:
        """Tokens of prompt and answer together."""
        return min(self.max_tokens, self.files.context_tokens or self.max_tokens)


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
    pruned = not config.proxy.model
    proxy_key = "cloud.model" if pruned else "proxy.model"
    proxy_template = config.cloud.chat_template if pruned else ""
    writes = config.eval.max_new_tokens
    parties = [("cloud", "cloud", config.cloud, _placed(rows, "public"))]
    for index, device in enumerate(config.devices):
        own = _placed(rows, f"devices.{index}.data", f"devices.{index}.unlabelled")
        parties.append((device.name, f"devices.{index}.slm", device.slm, own))
    for party, key, settings, its_rows in parties:
        limit, limit_key = settings.max_tokens, f"{key}.max_tokens"
        if model := files.get(f"{key}.model"):
            yield Reader(
                party,
                model.name,
                f"{key}.model",
                model,
                settings.chat_template,
                _TEMPLATE,
                limit,
                limit_key,
                writes,
                its_rows,
            )
        if (proxy := files.get(proxy_key)) and not (pruned and key == "cloud"):  # then it reads as the cloud
            hint = _TEMPLATE if pruned else _PROXY_TEMPLATE
            who = f"the proxy, {proxy.name}"
            yield Reader(
                party, who, proxy_key, proxy, proxy_template, hint, limit, limit_key, writes, its_rows
            )


def _placed(rows: Mapping[str, Rows], *keys: str) -> list[Placed]:
    found = []
    for key in keys:
        for placed in rows[key].placed if key in rows else []:
            unanswered = replace(placed, sample=replace(placed.sample, answer=None))
            found.append(unanswered if key.endswith(".unlabelled") else placed)  # the proxy will answer
    return found


def _limits(reader: Reader) -> Iterator[Problem]:
    context = reader.files.context_tokens
    if context and reader.max_tokens > context:
        what = f"max_tokens is {reader.max_tokens}, but {reader.who} reads at most {context}"
        hint = "the model's own limit is used"
        yield Problem(reader.limit_key, what, hint, reader.limit_key, level="warning")


def _rows_problems(reader: Reader, lengths: Lengths) -> Iterator[Problem]:
    """Answers that do not fit are errors, rows whose prompt will lose its beginning are counted."""
    if not reader.files.tokenizer.exists():
        return
    try:
        tokenizer = template_reader(reader.files.folder, reader.template_file)
    except (ModelError, OSError):  # told where the tokenizer or the file is checked
        return
    if needs_template([each.sample for each in reader.rows]) and not tokenizer.chat_template:
        what = f"{reader.who} has no chat template, and the data holds conversations"
        yield Problem(reader.key, what, reader.template_hint, reader.key)
        return
    readable, prompts, refused = [], [], []
    for placed in reader.rows:
        try:
            prompts.append(written_prompt(placed.sample, tokenizer, where=reader.who))
            readable.append(placed)
        except ModelError as error:
            refused.append(Problem(placed.where, f"{reader.who}: {error.what}", error.hint, reader.key))
    if len(refused) > 1 and not prompts and len({problem.what for problem in refused}) == 1:
        yield replace(refused[0], where=reader.key)  # the template itself, not a row
        return
    yield from first_few(refused, f"rows that the chat template of {reader.who} refuses")
    yield from _lengths(reader, tokenizer, readable, prompts, lengths)


def _lengths(
    reader: Reader, tokenizer: Any, rows: Sequence[Placed], prompts: Sequence[str], lengths: Lengths
) -> Iterator[Problem]:
    room, cut, longest = reader.room, 0, 0
    empty, too_long = [], []
    asked = [
        _count(tokenizer, text, special=isinstance(placed.sample.prompt, str))
        for placed, text in zip(rows, prompts, strict=True)
    ]
    for placed, prompt in zip(rows, asked, strict=True):
        said = placed.sample.answer
        answer = 0 if said is None else _count(tokenizer, said, special=False) + 1
        if prompt == 0:
            what = "an empty prompt, for models that have no token which begins a text"
            empty.append(Problem(placed.where, what, "write what is asked, or drop the row", reader.key))
        if answer >= room:
            what = f"an answer of {answer} tokens does not fit a context of {room} of {reader.who}"
            hint = "shorten or drop the row, or take a model that reads more"
            if reader.max_tokens < (reader.files.context_tokens or math.inf):
                hint = f"raise {_LIMIT.sub('.', reader.limit_key)}, or shorten or drop the row"
            too_long.append(Problem(placed.where, what, hint, reader.limit_key))
        cut += prompt + answer > room
        longest = max(longest, min(prompt + (answer or reader.writes), room))
    yield from first_few(empty, "rows with an empty prompt")
    yield from first_few(too_long, f"answers that do not fit a context of {room} of {reader.who}")
    key = reader.limit_key
    lengths.longest[key] = max(longest, lengths.longest.get(key, 0))
    if cut:
        shortened = Shortened(reader.party, reader.who, cut, len(rows), room)
        lengths.shortened.append(shortened)
        yield Problem(key, str(shortened), key=key, level="warning")


def _count(tokenizer: Any, text: str, *, special: bool) -> int:
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=special).ids)
