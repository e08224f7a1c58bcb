"""A model answering samples: as test predictions, and as further data (the proxy's answers to unlabelled
inputs)."""

from __future__ import annotations

from collections.abc import Sequence

from consort.errors import ConfigError, ModelError
from consort.models.local import LocalModel, generate
from consort.training.data import Sample, fits, prompt_ids
from consort.types import Message

# of the probability that made-up prompts are sampled from: a small model's tail is noise that derails it
MADE_UP_MASS = 0.9


def answer(model: LocalModel, samples: Sequence[Sample], *, max_new_tokens: int) -> list[str]:
    """Greedy answers as text, in the order of the samples; a long prompt loses its beginning."""
    room = model.context_tokens - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"an answer of up to {max_new_tokens} tokens leaves no room for a question",
            where=model.name,
            hint=f"its context is {model.context_tokens} tokens: lower eval.max_new_tokens",
        )
    prompts = [prompt_ids(sample, model)[-room:] for sample in samples]
    return [model.vocabulary.decode(ids) for ids in generate(model, prompts, max_new_tokens=max_new_tokens)]


def answered(
    model: LocalModel,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    readers: Sequence[tuple[LocalModel, int]],
) -> list[Sample]:
    """The samples with this model's answers, less those it left empty or that are too long for one of
    `readers`, each with its window in tokens: what is short in one model's tokens can fill another's."""
    texts = answer(model, samples, max_new_tokens=max_new_tokens)
    written = [sample.answered(text) for sample, text in zip(samples, texts, strict=True) if text.strip()]
    return [sample for sample in written if all(fits(sample, reader, tokens) for reader, tokens in readers)]


def made_up(model: LocalModel, *, count: int, max_new_tokens: int, seed: int) -> list[Sample]:
    """Prompts the model makes up, sampled from the likely tokens after its template's opening; unanswered,
    without repeats.

    This is how a device's proxy asks in the cloud what its device is asked, though no question ever left the
    device. A model can repeat what it has memorised: `experiments/real_co_tuning.py` counts how often it
    does.
    """
    mark = "\x00"
    rendered = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    if rendered.count(mark) != 1 or not rendered.partition(mark)[2]:
        raise ModelError(
            "its chat template does not write a question once, as it is, with something after it",
            where=model.name,
            hint="prompts cannot be made up with it: set tune.public_samples = 0",
        )
    opening, closing = rendered.split(mark)
    # a template that opens with the question itself leaves only the end of the text before
    ids = model.tokenizer(opening, add_special_tokens=False)["input_ids"] or [model.eos_id]
    written = generate(
        model, [ids] * count, max_new_tokens=max_new_tokens, temperature=1.0, top_p=MADE_UP_MASS, seed=seed
    )
    texts = dict.fromkeys(model.vocabulary.decode(continuation) for continuation in written)
    asked = [text.split(closing)[0] for text in texts if closing in text]
    return [Sample((Message("user", text),), None) for text in asked if text.strip()]
