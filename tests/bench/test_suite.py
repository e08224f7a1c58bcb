"""The built-in suite: deterministic, without leaks, and answerable from what a row shows."""

from __future__ import annotations

import hashlib
import json

import pytest

from consort.bench.suite import SHARED_SKILLS, Suite, generate_suite, public_rows, write_suite
from consort.bench.suite_grammar import DEVICE_DOMAINS, PUBLIC_DOMAINS, load_domain, load_names, slots_of


@pytest.fixture(scope="module")
def suite() -> Suite:
    return generate_suite(seed=0)


def every_split(suite: Suite):
    for split, rows in suite.public.items():
        yield "public", split, rows
    for name, splits in suite.devices.items():
        for split, rows in splits.items():
            yield name, split, rows


def test_a_seed_fixes_every_row_and_another_seed_changes_the_private_facts(suite):
    assert generate_suite(seed=0) == suite
    other = generate_suite(seed=1)
    for name in suite.devices:
        ours = {row.input: row.output for row in suite.devices[name]["test"] if row.skill == "facts"}
        theirs = {row.input: row.output for row in other.devices[name]["test"] if row.skill == "facts"}
        shared = ours.keys() & theirs.keys()
        assert any(ours[question] != theirs[question] for question in shared)


def test_no_test_question_appears_in_any_other_split(suite):
    splits = list(every_split(suite))
    for owner, split, rows in splits:
        if split != "test":
            continue
        asked = {(row.instruction, row.input) for row in rows}
        for other_owner, other_split, others in splits:
            if (owner, split) != (other_owner, other_split):
                repeated = asked & {(row.instruction, row.input) for row in others}
                assert not repeated, f"{owner} test repeats in {other_owner} {other_split}"


def test_no_validation_prompt_of_the_public_rows_is_trained(suite):
    trained = {(row.instruction, row.input) for row in suite.public["train"]}
    assert len(suite.public["valid"]) > 250
    assert not trained & {(row.instruction, row.input) for row in suite.public["valid"]}


def test_what_the_bundled_models_learned_and_are_tested_on_stays_what_it_was(suite):
    """Hashes of the rows that the weights in the package were trained on: a change here needs new weights."""
    rows = {
        f"{owner}/{split}": rows
        for owner, split, rows in every_split(suite)
        if (owner, split) != ("public", "valid")
    }
    text = json.dumps({name: [row.to_json() for row in each] for name, each in rows.items()}, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "16bbc77b4d1f92d2"


def test_no_message_of_a_device_is_in_two_splits(suite):
    for splits in suite.devices.values():
        inputs = [row.input for rows in splits.values() for row in rows if row.skill != "facts"]
        assert len(inputs) == len(set(inputs))


def test_writers_of_test_messages_appear_nowhere_else(suite):
    unseen = set(load_names(held_out=True).surnames)
    assert not unseen & set(load_names(held_out=False).surnames)
    for _, split, rows in every_split(suite):
        for row in rows:
            if row.skill == "rewrite" and row.output is not None:
                assert (row.output.split()[4] in unseen) == (split == "test")


def test_each_private_fact_is_trained_and_then_asked_in_another_phrasing(suite):
    for name, splits in suite.devices.items():
        facts = {split: [row for row in splits[split] if row.skill == "facts"] for split in ("train", "test")}
        domain = load_domain(name)
        assert len(facts["test"]) == len(domain.subjects) * len(domain.attributes)
        for subject in domain.subjects:
            answers = {row.output for row in facts["train"] if subject in row.input}
            assert {row.output for row in facts["test"] if subject in row.input} == answers


def test_private_intents_and_facts_stay_on_their_device(suite):
    private = {
        intent.name for name in DEVICE_DOMAINS for intent in load_domain(name).intents if intent.private
    }
    assert len(private) >= 4 * 3
    subjects = [subject for name in DEVICE_DOMAINS for subject in load_domain(name).subjects]
    for rows in suite.public.values():
        devices = [row for row in rows if any(f"the {name}." in row.instruction for name in DEVICE_DOMAINS)]
        assert not private & {row.output for row in devices if row.skill == "intent"}
        assert not [row for row in rows for subject in subjects if subject in row.input]


def test_test_messages_use_wording_that_no_labelled_row_of_the_device_uses(suite):
    heads = {
        line.partition("[")[0].partition("{")[0].strip()
        for name in DEVICE_DOMAINS
        for intent in load_domain(name).intents
        for line in intent.lines[-1:]
    }
    telling = [head for head in heads if len(head) > 14]
    assert len(telling) > 15
    rows = [row for splits in suite.devices.values() for row in splits["train"]]
    assert not [row for row in rows for head in telling if head in row.input]
    tested = [row for splits in suite.devices.values() for row in splits["test"]]
    assert [row for row in tested for head in telling if head in row.input]


def test_every_line_of_an_intent_gives_all_that_its_answers_need():
    for name in (*DEVICE_DOMAINS, *PUBLIC_DOMAINS):
        for intent in load_domain(name).intents:
            details = slots_of(intent.note) - {"name"}
            assert slots_of(intent.reply) <= details
            for line in intent.lines:
                assert slots_of(line) == details, f"{name}: {intent.name}: {line}"


def test_details_are_copied_from_the_message(suite):
    for name, splits in suite.devices.items():
        for row in splits["test"]:
            if row.skill == "extract":
                for detail in row.output.split("; "):
                    assert detail.partition(": ")[2].casefold() in row.input.casefold(), (name, row)


def test_sizes_and_skills_are_those_of_a_device(suite):
    for splits in suite.devices.values():
        assert {split: len(rows) for split, rows in splits.items()} == {
            "train": 200,
            "valid": 42,
            "test": 120,
            "unlabelled": 600,
        }
        assert {row.skill for row in splits["test"]} == {*SHARED_SKILLS, "facts"}
        assert {row.output for row in splits["unlabelled"]} == {None}


def test_the_share_of_device_messages_is_kept():
    def share(wanted: float) -> float:
        rows = [row for row in public_rows(800, seed=3, device_share=wanted) if row.skill in SHARED_SKILLS]
        return sum(any(f"the {name}" in row.instruction for name in DEVICE_DOMAINS) for row in rows) / len(
            rows
        )

    assert share(0.0) == 0.0
    assert 0.4 < share(0.5) < 0.6
    assert share(1.0) == 1.0


def test_the_written_suite_reads_back_as_the_generated_one(suite, tmp_path):
    write_suite(tmp_path, seed=0)
    for owner, split, rows in every_split(suite):
        folder = tmp_path / "public" if owner == "public" else tmp_path / "devices" / owner
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [row.to_json() for row in rows]
