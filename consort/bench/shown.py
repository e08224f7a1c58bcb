"""A few test prompts answered by every model of a run, before it and after: to be read by a person.

One prompt a device, chosen to show a change, so it proves nothing: the table measures. All of it happens on
the machine of the run; between machines a device's rows would stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consort.bench.assemble import Answers, RunData
from consort.bench.kept import learn, load_party
from consort.bench.metrics import exact_match
from consort.bench.results import ModelAnswer, ShownPrompt
from consort.bench.served import CLOUD
from consort.config import Config, ModelConfig
from consort.errors import ModelError
from consort.federated.journal import Entry
from consort.models.local import LocalModel
from consort.training.answers import answer
from consort.training.data import Sample, prompt_ids
from consort.types import FloatArray

PROMPTS = 3

Told = Mapping[str, Sequence[str | None]]  # "before" and "after": an answer to each prompt


@dataclass(frozen=True, slots=True)
class Chosen:
    """One of a device's test rows."""

    device: str
    row: int


def choose(data: RunData, answers: Answers) -> list[Chosen]:
    """Of each of the first devices the first test row that co-tuning set right, else its first one."""
    chosen = []
    for device in list(data.devices)[:PROMPTS]:
        before, after = answers.before[device], answers.after[device]
        right = [row.answer or "" for row in data.devices[device].test]
        mended = (
            row
            for row, reference in enumerate(right)
            if exact_match(after[row], reference) and not exact_match(before[row], reference)
        )
        chosen.append(Chosen(device, next(mended, 0)))
    return chosen


def ask(
    config: Config,
    name: str,
    settings: ModelConfig,
    learned: Mapping[str, FloatArray],
    prompts: Sequence[Sample],
) -> Entry:
    """A step of the run: the model's answers as it was and with what it has learned."""
    model = load_party(config, name, settings, {})
    readable = [_reads(model, prompt) for prompt in prompts]

    def told() -> list[str | None]:
        asked = [prompt for prompt, reads in zip(prompts, readable, strict=True) if reads]
        texts = iter(answer(model, asked, max_new_tokens=config.eval.max_new_tokens) if asked else ())
        return [next(texts) if reads else None for reads in readable]

    before = told()
    learn(model, settings, learned)
    return Entry(json.dumps({"before": before, "after": told()}).encode())


def shown(
    data: RunData, chosen: Sequence[Chosen], answers: Answers, told: Mapping[str, Told]
) -> list[ShownPrompt]:
    """The prompts with everybody's answers; a device's own are those that were measured."""
    examples = []
    for index, (device, row) in enumerate((each.device, each.row) for each in chosen):
        sample = data.devices[device].test[row]
        said = [
            ModelAnswer(device, answers.before[device][row], answers.after[device][row])
            if name == device
            else ModelAnswer(name, told[name]["before"][index], told[name]["after"][index])
            for name in data.devices
        ]
        said.append(ModelAnswer(CLOUD, answers.cloud_before[device][row], answers.cloud_after[device][row]))
        examples.append(ShownPrompt(device, _asked(sample), sample.answer or "", tuple(said)))
    return examples


def _reads(model: LocalModel, prompt: Sample) -> bool:
    """Not without a chat template, for example, which only the prompt's own device may have needed."""
    try:
        prompt_ids(prompt, model)
    except ModelError:
        return False
    return True


def _asked(sample: Sample) -> str:
    if isinstance(sample.prompt, str):
        return sample.prompt
    return "\n".join(turn.content for turn in sample.prompt)
