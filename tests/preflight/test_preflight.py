"""What is wrong is told before training: all of it, where it is, and what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from typing import get_type_hints

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from consort.config import Config
from consort.errors import ConfigError
from consort.models.zoo import WEIGHTS
from consort.preflight import examine, examine_file, load_checked
from consort.preflight.values import RANGES, value_problems
from tests.tiny_consort import Consort, write_model, write_rows


def told(consort: Consort, *overrides: str) -> str:
    found = examine_file(consort.file, overrides)
    return "\n".join(f"{problem.level}: {problem}" for problem in found.problems)


def test_a_sound_consort_passes_without_a_word(consort: Consort) -> None:
    assert told(consort) == ""
    assert load_checked(consort.file).ok


def test_every_number_of_the_configuration_has_a_range_that_holds_its_default() -> None:
    for table, ranges in RANGES.items():
        numbers = {name for name, kind in get_type_hints(table).items() if kind in (int, float)}
        assert numbers == set(ranges), table
        assert all(getattr(table(), name) in allowed for name, allowed in ranges.items()), table


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tune.rounds=0", "must be at least 1, not 0"),
        ("tune.participation=0", "must be above 0 and at most 1, not 0.0"),
        ("tune.participation=1.5", "must be above 0 and at most 1, not 1.5"),
        ("tune.temperature=0", "must be above 0"),
        ("tune.top_k=-1", "must be at least 1"),
        ("devices.bank.slm.lora_rank=0", "must be at least 1"),
        ("devices.bank.memory_gb=-1", "must be at least 0"),
        ("runtime.device=cdua", 'no torch device is called "cdua"'),
        ("cloud.model=", "no model is given"),
        ("cloud.model=a/b/c", 'neither a directory nor a Hub id'),
        ("devices.bank.slm.model=./none", "no such directory"),
        ("devices.bank.slm.model=zoo:edge-lama", 'did you mean "zoo:edge-llama"'),
        ("devices.clinic.name=bank", 'both named "bank"'),
        ("devices.clinic.name=Bank", 'both named "Bank"'),
        ("devices.bank.name=../x", 'cannot name a device'),
        ("devices.bank.name=cloud", "kept for the cloud"),
        ("devices.bank.name=", "device 1 has no name"),
        ("devices.bank.data=", 'device "bank" has no data'),
        ("devices.bank.data=nowhere", "no such file or directory"),
        ("public=", "no public data is given"),
        ("devices=[]", "no device is given"),
        ("cloud.chat_template=none.jinja", "no such file"),
        ("devices.bank.memory_gb=0.1", 'device "bank" has 0.1 GB'),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_one_error_at_its_key(
    consort: Consort, override: str, words: str
) -> None:
    assert words in told(consort, override)
    assert f"--set {override}" in told(consort, override)
    assert not examine_file(consort.file, [override]).ok


def test_mistakes_of_every_kind_are_told_together_in_one_error(consort: Consort) -> None:
    consort.replace("max_tokens = 64", "max_tokens = 64\nlora_rnk = 3\nlora_alpha = 0")
    write_rows(consort.folder / "bank" / "train.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    (consort.folder / "edge" / "config.json").unlink()
    with pytest.raises(ConfigError) as caught:
        load_checked(consort.file)
    message = str(caught.value)
    assert 'consort.toml:7: unknown key "lora_rnk" in [cloud]; did you mean "lora_rank"?' in message
    assert "consort.toml:8: must be above 0, not 0.0" in message
    assert "bank/train.jsonl:2: " in message
    assert "consort.toml:15: " in message
    assert "holds no config.json" in message


def test_a_mistaken_key_is_told_once_not_again_as_a_default(consort: Consort) -> None:
    consort.replace('model = "cloud"', "model = 3")
    assert len(examine_file(consort.file).problems) == 1


def spoil_json(consort: Consort) -> None:
    (consort.folder / "bank" / "valid.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n\n{"prompt": \n'
    )


def spoil_shape(consort: Consort) -> None:
    write_rows(consort.folder / "bank" / "test.jsonl", [{"question": "a", "answer": "b"}])


def spoil_by_emptying(consort: Consort) -> None:
    (consort.folder / "bank" / "train.jsonl").write_text("\n")


def spoil_encoding(consort: Consort) -> None:
    (consort.folder / "bank" / "train.jsonl").write_bytes(b'{"prompt": "\xff", "completion": "b"}\n')


def spoil_unlabelled(consort: Consort) -> None:
    (consort.folder / "clinic" / "inputs.jsonl").unlink()


def spoil_answer_length(consort: Consort) -> None:
    write_rows(consort.folder / "bank" / "train.jsonl", [{"prompt": "a", "completion": "long " * 70}])


def spoil_by_leaving_one_row(consort: Consort) -> None:
    consort.replace('data = "bank"', 'data = "bank/one.jsonl"')
    write_rows(consort.folder / "bank" / "one.jsonl", [{"prompt": "a", "completion": "b"}])


def spoil_prompt(consort: Consort) -> None:
    write_rows(consort.folder / "clinic" / "inputs.jsonl", [{"prompt": "a"}, {"prompt": ""}])


def spoil_surrogate(consort: Consort) -> None:
    (consort.folder / "bank" / "train.jsonl").write_text('{"prompt": "\\ud83d", "completion": "b"}\n')


def spoil_proxys_template(consort: Consort) -> None:
    shutil.rmtree(consort.folder / "proxy")
    write_model(consort.folder / "proxy", vocabulary=300, template="")


def spoil_proxys_context(consort: Consort) -> None:
    file = consort.folder / "proxy" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 32}))
    write_rows(
        consort.folder / "bank" / "train.jsonl", [{"prompt": "a", "completion": "b " * 15 + "c " * 10}]
    )


def spoil_templates_syntax(consort: Consort) -> None:
    (consort.folder / "chat.jinja").write_text("{% for m in")
    consort.replace("slm.max_tokens", 'slm.chat_template = "chat.jinja"\nslm.max_tokens')


def spoil_template_by_refusal(consort: Consort) -> None:
    (consort.folder / "chat.jinja").write_text('{{ raise_exception("no system turn") }}')
    consort.replace("slm.max_tokens", 'slm.chat_template = "chat.jinja"\nslm.max_tokens')


def spoil_answers_room(consort: Consort) -> None:
    consort.replace("max_new_tokens = 8", "max_new_tokens = 64")


def spoil_template(consort: Consort) -> None:
    shutil.rmtree(consort.folder / "edge")
    write_model(consort.folder / "edge", vocabulary=280, template="")


def spoil_proxy(consort: Consort) -> None:
    shutil.rmtree(consort.folder / "proxy")
    write_model(consort.folder / "proxy", vocabulary=290)


def spoil_tokenizer(consort: Consort) -> None:
    """Words that are whole or unknown: text is lost, so no token can be mapped to bytes."""
    tokenizer = Tokenizer(models.WordLevel({"open": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(consort.folder / "edge" / "tokenizer.json"))


def spoil_weights(consort: Consort) -> None:
    (consort.folder / "edge" / "model.safetensors").write_bytes(b"\x10")


def spoil_config(consort: Consort) -> None:
    (consort.folder / "edge" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "place", "words"),
    [
        (spoil_json, "bank/valid.jsonl:3", "not valid JSON"),
        (spoil_shape, "bank/test.jsonl:1", "unknown shape"),
        (spoil_by_emptying, "bank/train.jsonl", "holds no rows"),
        (spoil_encoding, "bank/train.jsonl", "UTF-8"),
        (spoil_unlabelled, "consort.toml:18", "no such file or directory"),
        (spoil_answer_length, "bank/train.jsonl:1", "does not fit a context of 64"),
        (spoil_template, "consort.toml:13", "no chat template"),
        (spoil_by_leaving_one_row, "consort.toml:11", "nothing is left to learn"),
        (spoil_prompt, "clinic/inputs.jsonl:2", "empty prompt"),
        (spoil_surrogate, "bank/train.jsonl:1", "surrogate"),
        (spoil_proxys_template, "consort.toml:8", "copy the cloud model's chat_template.jinja"),
        (spoil_proxys_context, "bank/train.jsonl:1", "a context of 32 of the proxy"),
        (spoil_templates_syntax, "consort.toml:13", "chat template cannot write a row"),
        (spoil_template_by_refusal, "consort.toml:13", "no system turn"),
        (spoil_answers_room, "consort.toml:22", "leave no room for a question"),
        (spoil_proxy, "consort.toml:8", "tokenizer"),
        (spoil_tokenizer, "consort.toml:13", "bytes"),
        (spoil_weights, "consort.toml:13", "not a safetensors file"),
        (spoil_config, "consort.toml:13", "not valid JSON"),
    ],
)
def test_a_spoilt_file_is_an_error_at_its_place(
    consort: Consort, spoil: Callable[[Consort], None], place: str, words: str
) -> None:
    spoil(consort)
    lines = told(consort).splitlines()
    assert any(line.startswith("error: ") and place in line and words in line for line in lines), lines


def test_all_mistakes_of_data_and_models_are_told_together(consort: Consort) -> None:
    for spoil in (spoil_proxys_template, spoil_answers_room, spoil_prompt, spoil_json):
        spoil(consort)
    text = told(consort)
    for words in ("has no chat template", "leave no room", "empty prompt", "not valid JSON"):
        assert sum(line.startswith("error: ") and words in line for line in text.splitlines()) == 1, text


@pytest.mark.parametrize(
    ("row", "words", "more"),
    [
        ({"prompt": "a", "completion": "long " * 70}, "does not fit", "2 more answers that do not fit"),
        ({"prompt": "a"}, "completion", "2 more malformed rows"),
        ({"prompt": "", "completion": "b"}, "empty prompt", "2 more rows with an empty prompt"),
    ],
)
def test_many_rows_with_one_mistake_are_three_lines_and_a_count(
    consort: Consort, row: dict[str, object], words: str, more: str
) -> None:
    write_rows(consort.folder / "bank" / "train.jsonl", [row] * 5)
    lines = [line for line in told(consort).splitlines() if "the proxy, " not in line]
    assert [f"train.jsonl:{number}: " in line for number, line in enumerate(lines[:3], start=1)] == [True] * 3
    assert all(words in line for line in lines[:3])
    assert "train.jsonl: " in lines[3]
    assert more in lines[3]


@pytest.mark.parametrize(
    ("limit", "words"), [(32, "raise devices.slm.max_tokens"), (64, "a model that reads more")]
)
def test_raising_the_limit_is_advised_only_where_it_helps(consort: Consort, limit: int, words: str) -> None:
    write_rows(consort.folder / "bank" / "train.jsonl", [{"prompt": "a", "completion": "long " * 70}])
    assert words in told(consort, f"devices.bank.slm.max_tokens={limit}")


def test_what_the_template_adds_counts_as_part_of_the_prompt(consort: Consort) -> None:
    assert told(consort) == ""
    (consort.folder / "chat.jinja").write_text("{{ 'so many words ' * 30 }}{{ messages[0].content }}")
    consort.replace("slm.max_tokens", 'slm.chat_template = "chat.jinja"\nslm.max_tokens')
    assert "bank: 3 of 3 training rows are longer than 64 tokens" in told(consort)


@pytest.mark.parametrize("learned_in", ["public/train.jsonl", "clinic/train.jsonl", "clinic/inputs.jsonl"])
def test_a_test_prompt_that_is_learned_elsewhere_is_a_warning(consort: Consort, learned_in: str) -> None:
    tested = (consort.folder / "clinic" / "test.jsonl").read_text().splitlines()[0]
    with (consort.folder / learned_in).open("a") as rows:
        rows.write(tested + "\n")
    (line,) = (
        each for each in told(consort).splitlines() if "prompts of" in each and "clinic/test.jsonl" in each
    )
    assert line.startswith("warning: ")
    assert "1 of 3 prompts" in line
    assert f"1 in {consort.folder / learned_in}" in line


def test_a_template_given_in_the_configuration_serves_a_model_without_one(consort: Consort) -> None:
    spoil_template(consort)
    (consort.folder / "chat.jinja").write_text("{{ messages[0].content }}")
    consort.replace("slm.max_tokens", 'slm.chat_template = "chat.jinja"\nslm.max_tokens')
    consort.replace('unlabelled = "clinic/inputs.jsonl"', 'slm.chat_template = "chat.jinja"')
    assert told(consort) == ""


def test_rows_longer_than_the_context_are_counted_not_refused(consort: Consort) -> None:
    rows = [{"prompt": "many words " * 40, "completion": "b"}, {"prompt": "few", "completion": "b"}]
    write_rows(consort.folder / "bank" / "train.jsonl", rows)
    found = examine_file(consort.file)
    assert found.ok
    assert "bank: 1 of 2 training rows are longer than 64 tokens" in told(consort)


def shortened(consort: Consort, *overrides: str) -> set[tuple[str, str, str, int, int]]:
    models = examine_file(consort.file, overrides).models
    assert models is not None
    return {
        (each.party, each.reader.rpartition("/")[2], each.kind, each.rows, each.max_tokens)
        for each in models.lengths.shortened
    }


def test_what_loses_its_beginning_is_counted_where_it_is_cut(consort: Consort) -> None:
    """A context of 64 tokens; an answer that is to be written takes some of them."""
    letters = [{"prompt": "b" * length, "completion": "c"} for length in (56, 57, 62, 63)]
    write_rows(consort.folder / "bank" / "test.jsonl", letters)
    for room, cut in ((8, 3), (7, 2), (1, 0)):
        expected = {("bank", reader, "test prompts", cut, 64 - room) for reader in ("edge", "cloud") if cut}
        assert shortened(consort, f"eval.max_new_tokens={room}") == expected
    assert shortened(consort, "eval.rows=2") == {
        ("bank", reader, "test prompts", 1, 56) for reader in ("edge", "cloud")
    }
    write_rows(consort.folder / "bank" / "train.jsonl", letters)  # the letter, its answer and its end
    assert shortened(consort, "eval.max_new_tokens=1", "devices.bank.slm.max_tokens=60") == {
        ("bank", reader, "training rows", 2, 60) for reader in ("edge", "proxy")
    }


def test_what_the_proxy_answers_is_cut_as_it_answers_and_as_it_is_learned(consort: Consort) -> None:
    write_rows(consort.folder / "clinic" / "inputs.jsonl", [{"prompt": "b" * n} for n in (57, 62, 63)])
    learned = {("clinic", reader, "unlabelled rows with any answer", 1, 64) for reader in ("edge", "proxy")}
    assert shortened(consort) == learned | {("clinic", "proxy", "unlabelled prompts", 3, 56)}
    assert shortened(consort, "tune.proxy_answers=1") == {("clinic", "proxy", "unlabelled prompts", 1, 56)}


def test_the_warning_of_a_cut_test_prompt_says_whose_it_is_and_what_took_the_room(consort: Consort) -> None:
    write_rows(consort.folder / "public" / "test.jsonl", [{"prompt": "b" * 57, "completion": "c"}])
    assert told(consort) == (
        f"warning: {consort.file}:22: cloud: 1 of 1 test prompts are longer than 56 tokens for "
        f"{consort.folder / 'cloud'}: they lose the beginning; answers may take 8 of its 64 tokens"
    )


def test_the_cloud_model_must_be_able_to_read_what_devices_ask(consort: Consort) -> None:
    file = consort.folder / "cloud" / "tokenizer_config.json"
    file.write_text(json.dumps({"eos_token": "<eos>"}))
    write_rows(consort.folder / "public" / "train.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    write_rows(consort.folder / "public" / "test.jsonl", [{"prompt": "c", "completion": "b"}])
    for name in ("train", "test"):
        rows = [{"instruction": f"{name} {number}", "output": "b"} for number in range(3)]
        write_rows(consort.folder / "bank" / f"{name}.jsonl", rows)
    assert f"{consort.folder / 'cloud'} has no chat template" in told(consort)


def test_a_row_that_is_learned_and_tested_is_a_warning(consort: Consort) -> None:
    shutil.copy(consort.folder / "bank" / "train.jsonl", consort.folder / "bank" / "test.jsonl")
    assert examine_file(consort.file).ok
    assert "3 of 3 prompts" in told(consort)


def test_data_without_test_rows_is_a_warning(consort: Consort) -> None:
    (consort.folder / "bank" / "test.jsonl").unlink()
    assert examine_file(consort.file).ok
    assert "holds no test.jsonl" in told(consort)


def test_a_context_beyond_the_models_own_is_a_warning(consort: Consort) -> None:
    override = "devices.bank.slm.max_tokens=65"
    assert f"--set {override}: max_tokens is 65, but {consort.folder / 'edge'} reads at most 64" in told(
        consort, override
    )


def test_a_bundled_model_is_called_as_it_was_named(consort: Consort) -> None:
    text = told(consort, "devices.bank.slm.model=zoo:edge-gpt2", "devices.bank.slm.max_tokens=5000")
    assert "zoo:edge-gpt2 reads at most 256" in text
    assert str(WEIGHTS) not in text


def test_a_proxy_cannot_keep_more_layers_than_the_cloud_model_has(consort: Consort) -> None:
    assert "has 2 layers" in told(consort, "proxy.model=", "proxy.layers=3")
    assert told(consort, "proxy.model=", "proxy.layers=2") == ""


def test_a_configuration_made_in_code_is_examined_too() -> None:
    found = examine(Config())
    assert {problem.key for problem in found.problems} == {"cloud.model", "public", "devices"}
    assert next(value_problems(dataclasses.replace(Config(), seed=-1))).where == "seed"


def test_a_tokenizer_is_compared_by_content_not_by_file(consort: Consort) -> None:
    file = consort.folder / "proxy" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=3))
    assert told(consort) == ""
