"""Samples: rows of JSONL as prompts and answers, and the token ids a model reads for them.

Three row shapes are read: `{"messages": [...]}`, `{"prompt", "completion"}` and `{"instruction", "input",
"output"}`. A prompt of messages is written by the model's own chat template; a `prompt` string is used as it
stands. Does not shuffle, batch or cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from consort.errors import DataError, ModelError
from consort.models.template import written
from consort.problems import SHOWN
from consort.types import Message, Role

if TYPE_CHECKING:
    from consort.align import Spans
    from consort.models.decoding.prompt import Reader
    from consort.models.local import LocalModel

SPLITS = ("train", "valid", "test")
LEARNED = ("training rows", "unlabelled rows with any answer")
Kind: TypeAlias = Literal[
    "training rows", "unlabelled rows with any answer", "test prompts", "unlabelled prompts"
]


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and its answer; `answer` is None where nobody has answered yet."""

    prompt: tuple[Message, ...] | str
    answer: str | None

    def answered(self, answer: str) -> Sample:
        """The same prompt with this answer."""
        return replace(self, answer=answer)


@dataclass(frozen=True, slots=True)
class RowsRead:
    """The rows of one file, the line of each, and why others could not be read."""

    file: str
    samples: list[Sample]
    lines: list[int]
    malformed: list[DataError]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample in one model's tokens. `answer_ids` ends with the end-of-sequence token, which `spans` leaves
    out."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    spans: Spans
    truncated: bool  # the prompt lost its beginning to fit the context

    @property
    def num_tokens(self) -> int:
        """Prompt and answer together."""
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True, slots=True)
class Shortened:
    """How many of a party's rows of one kind are longer than a model reads: their prompts lose the beginning.

    `max_tokens` are those of prompt and answer together where the rows are learned, of the prompt alone where
    the model answers them.
    """

    party: str
    reader: str
    kind: Kind
    rows: int
    of: int
    max_tokens: int

    def __str__(self) -> str:
        who = "their prompts" if self.kind in LEARNED else "they"
        return (
            f"{self.rows} of {self.of} {self.kind} are longer than {self.max_tokens} tokens for "
            f"{self.reader}: {who} lose the beginning"
        )


def read_samples(path: Path, split: str = "train", *, labelled: bool = True) -> list[Sample]:
    """Samples of a JSONL file, or of `<path>/<split>.jsonl`; DataError names file and line of the first
    malformed rows. Answers are optional if not `labelled`."""
    read = read_rows(path, split, labelled=labelled)
    if len(read.malformed) == 1:
        raise read.malformed[0]
    if read.malformed:
        first = "".join(f"\n  {error.where}: {error.what}" for error in read.malformed[:SHOWN])
        raise DataError(f"{len(read.malformed)} malformed rows, the first of them:{first}", where=read.file)
    return read.samples


def read_rows(path: Path, split: str = "train", *, labelled: bool = True) -> RowsRead:
    """As `read_samples`, with the malformed rows returned; DataError for a file that is missing or empty."""
    file = path / f"{split}.jsonl" if path.is_dir() else path
    if not file.exists():
        raise DataError(
            "no such file",
            where=str(file),
            hint="give a JSONL file, or a directory with train/valid/test.jsonl",
        )
    read = RowsRead(str(file), [], [], [])
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    read.samples.append(_parse(line, f"{file}:{number}", labelled=labelled))
                    read.lines.append(number)
                except DataError as error:
                    read.malformed.append(error)
    if not read.samples and not read.malformed:
        raise DataError("the file holds no rows", where=str(file), hint="each line is one JSON object")
    return read


def needs_template(samples: Sequence[Sample]) -> bool:
    """Whether a model needs a chat template to read any of these."""
    return any(not isinstance(sample.prompt, str) for sample in samples)


def prompt_ids(sample: Sample, model: Reader) -> list[int]:
    """The prompt in the model's tokens, ending where the answer begins.

    Where nothing was asked, the end of an earlier text stands there, as in pretraining.
    """
    text = written_prompt(sample, model.tokenizer, where=model.name)
    plain = isinstance(sample.prompt, str)
    ids: list[int] = model.tokenizer(text, add_special_tokens=plain)["input_ids"]
    return ids or [model.eos_id]


def written_prompt(sample: Sample, tokenizer: Any, *, where: str) -> str:
    """The prompt as text: as it stands, or by the chat template; ModelError where that cannot write it."""
    if isinstance(sample.prompt, str):
        return sample.prompt
    without = "give the data as prompt/completion"
    return written(sample.prompt, tokenizer, where=where, what="a row", without=without)


def template_reader(folder: Path, chat_template: str = "") -> Any:
    """The tokenizer of a model's folder for `written_prompt`, with another template if a file is named."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer can be read here: {error}", where=str(folder)) from error
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if chat_template:
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    return tokenizer


def encode(sample: Sample, model: LocalModel, max_tokens: int) -> Encoded:
    """Prompt and answer are encoded apart, as in generation; a long prompt loses its beginning, the answer
    never anything."""
    assert sample.answer is not None, "only answered samples can be learned from"
    spans = model.vocabulary.spans(sample.answer)
    answer = (*spans.ids.tolist(), model.eos_id)
    prompt = prompt_ids(sample, model)
    context = min(max_tokens, model.context_tokens)
    room = context - len(answer)
    if room < 1:
        raise DataError(
            f"an answer of {len(answer)} tokens does not fit a context of {context}",
            where=model.name,
            hint="raise max_tokens, or shorten or drop the row; `consort check` names its file and line",
        )
    return Encoded(tuple(prompt[-room:]), answer, spans, truncated=len(prompt) > room)


def fits(sample: Sample, model: LocalModel, max_tokens: int) -> bool:
    """Whether `encode` finds room for the answer and its end, and for one token of the prompt."""
    assert sample.answer is not None, "only answered samples can be learned from"
    return len(model.vocabulary.spans(sample.answer).ids) + 1 < min(max_tokens, model.context_tokens)


def _parse(line: bytes, where: str, *, labelled: bool) -> Sample:
    try:
        row = json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 at byte {error.start + 1} of the line", where=where, hint="save as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"not valid JSON: {error.msg} at column {error.colno}", where=where, hint="one JSON object a line"
        ) from None
    if not isinstance(row, dict):
        raise DataError(
            "a row must be a JSON object",
            where=where,
            hint='for example {"prompt": "...", "completion": "..."}',
        )
    if "messages" in row:
        sample = _from_messages(row["messages"], where, labelled=labelled)
    elif "prompt" in row:
        sample = Sample(_text(row, "prompt", where), _answer(row, "completion", where, labelled=labelled))
    elif "instruction" in row or "input" in row:
        asked = "\n".join(
            text for key in ("instruction", "input") if (text := _text(row, key, where, default=""))
        )
        sample = Sample((Message("user", asked),), _answer(row, "output", where, labelled=labelled))
    else:
        raise DataError(
            f"a row of unknown shape, with the keys {sorted(row)}",
            where=where,
            hint="known shapes: messages; prompt and completion; instruction, input and output",
        )
    for text in _texts(sample):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                "half of a surrogate pair is not text",
                where=where,
                hint="the row holds a broken \\ud83d-like escape; write the character itself",
            ) from None
    return sample


def _texts(sample: Sample) -> Iterator[str]:
    yield from (
        [sample.prompt] if isinstance(sample.prompt, str) else (turn.content for turn in sample.prompt)
    )
    if sample.answer is not None:
        yield sample.answer


def _from_messages(turns: Any, where: str, *, labelled: bool) -> Sample:
    wrong = DataError(
        "`messages` must be a list of {role, content}"
        + (" that ends with the assistant's" if labelled else ""),
        where=where,
        hint="roles: " + ", ".join(get_args(Role)),
    )
    if not isinstance(turns, list) or not turns:
        raise wrong
    for turn in turns:
        known = (
            isinstance(turn, dict)
            and turn.get("role") in get_args(Role)
            and isinstance(turn.get("content"), str)
        )
        if not known:
            raise wrong
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    if messages[-1].role == "assistant" and len(messages) > 1:
        return Sample(messages[:-1], messages[-1].content)
    if labelled:
        raise wrong
    return Sample(messages, None)


def _answer(row: dict[str, Any], key: str, where: str, *, labelled: bool) -> str | None:
    if not labelled and row.get(key) is None:
        return None
    return _text(row, key, where)


def _text(row: dict[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str):
        found = "is missing" if key not in row else f"is a {type(value).__name__}"
        raise DataError(f'"{key}" {found}; it must be a string', where=where)
    return value
