"""Laws of the learned gain: it ranks what can be ranked, the file says the same as the model, and nothing of
the judged question's scores can reach it."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from consort.errors import DataError, ModelError
from consort.inference.calibration import Calibration
from consort.inference.evidence import Evidence, ProxyView
from consort.inference.gain_file import StoredScorer, load_scorer, save_scorer
from consort.inference.gain_fit import fit_gain, fit_prepared, prepare
from consort.inference.gain_model import GainModel
from consort.inference.scorers import checks_scorer, gain_scorer, proxy_scorer
from consort.types import Answer, Message, Request

TOPICS = ("proof of a theorem in number theory", "weather in a town by the sea", "history of an old bridge")
WORDS = ("please", "tell", "me", "about", "the", "old", "new", "great", "small", "question", "today")


def questions(number: int, seed: int) -> tuple[list[Evidence], np.ndarray]:
    """Questions on three topics; the cloud gains only on the first, noisily."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(3, size=number)
    evidence = [Evidence(f"{' '.join(rng.choice(WORDS, 6))} {TOPICS[topic]}") for topic in topics]
    gains = np.where(topics == 0, rng.random(number) < 0.6, 0) - (rng.random(number) < 0.1)
    return evidence, gains.astype(float)


@pytest.fixture(scope="module")
def model() -> GainModel:
    evidence, gains = questions(150, seed=0)
    return fit_gain(evidence, gains, small="edge", large="cloud")


def test_what_the_cloud_gains_on_is_told_from_unseen_questions(model: GainModel) -> None:
    evidence, _ = questions(60, seed=1)
    needy = [model.gain(known) for known in evidence if "theorem" in known.question]
    easy = [model.gain(known) for known in evidence if "theorem" not in known.question]
    assert min(needy) > max(easy)


def test_probabilities_fall_as_gains_rise_and_match_their_frequency(model: GainModel) -> None:
    evidence, gains = questions(400, seed=2)
    predicted = np.array([model.gain(known) for known in evidence])
    likely = np.array([model.suffices(gain) for gain in predicted])
    order = np.argsort(predicted)
    assert np.all(np.diff(likely[order]) <= 0)
    assert likely.mean() == pytest.approx(float((gains <= 0).mean()), abs=0.08)


def test_left_out_predictions_are_those_of_a_model_without_the_example() -> None:
    """The closed form equals learning anew; only the words' rarity is that of all examples."""
    evidence, gains = questions(40, seed=3)
    prepared = prepare(evidence)
    (penalty, inverse) = next(iter(prepared.inverses.items()))
    kernel = np.linalg.inv(inverse)
    gains = gains - gains.mean()
    rest = np.arange(40) != 7
    alone = np.linalg.solve(kernel[np.ix_(rest, rest)], gains[rest])
    closed = gains[7] - (inverse @ gains)[7] / inverse[7, 7]
    assert closed == pytest.approx(float(kernel[7][rest] @ alone))
    assert penalty > 0


def test_a_score_equals_the_kernel_expansion(model: GainModel) -> None:
    """Folding the words into one weight a bucket changes nothing: fitted values solve the ridge."""
    evidence, gains = questions(60, seed=4)
    prepared = prepare(evidence)
    fitted = fit_prepared(prepared, gains, small="edge", large="cloud")
    inverse = prepared.inverses[fitted.penalty]
    expected = gains - fitted.penalty * (inverse @ (gains - gains.mean()))
    np.testing.assert_allclose([fitted.gain(known) for known in evidence], expected, atol=1e-5)


def test_a_stored_scorer_says_the_same(model: GainModel, tmp_path: Path) -> None:
    calibration = Calibration(("quality >= 0.98 of cloud",), 0.95, 0.7, True, 0.3, 0.8, 0.99, None, 100)
    save_scorer(StoredScorer(model, calibration, np.array([0.2, 0.9])), tmp_path / "scorer.safetensors")
    read = load_scorer(tmp_path / "scorer.safetensors")
    evidence, _ = questions(20, seed=5)
    np.testing.assert_allclose(
        [read.model.gain(known) for known in evidence], [model.gain(known) for known in evidence], atol=1e-6
    )
    assert read.calibration == calibration
    assert read.scores.tolist() == [0.2, 0.9]
    assert (read.model.small, read.model.groups) == ("edge", ("surface",))


def test_damaged_and_missing_files_are_one_clear_error(model: GainModel, tmp_path: Path) -> None:
    path = tmp_path / "scorer.safetensors"
    with pytest.raises(ModelError, match="no such scorer"):
        load_scorer(path)
    path.write_bytes(b"not a scorer")
    with pytest.raises(ModelError, match="damaged"):
        load_scorer(path)
    save_scorer(StoredScorer(model), path)
    path.write_bytes(path.read_bytes().replace(b"consort.gain/1", b"consort.gain/9"))
    with pytest.raises(ModelError, match="version"):
        load_scorer(path)


def test_a_scorer_of_answers_refuses_a_question_alone() -> None:
    evidence, gains = questions(40, seed=6)
    answered = [dataclasses.replace(known, answer="It is 3 + 4 = 7.") for known in evidence]
    model = fit_gain(answered, gains)
    assert model.needs_answer
    with pytest.raises(ModelError, match="needs checks"):
        model.gain(evidence[0])


def test_too_few_outcomes_are_refused() -> None:
    evidence, gains = questions(5, seed=7)
    with pytest.raises(DataError, match="too few"):
        fit_gain(evidence, gains)


def view(share: float) -> ProxyView:
    return ProxyView(float(share), nats_per_byte=float(1 - share), least=-1.0, likeness=0.5)


def test_scorers_answer_in_0_to_1_before_and_after(model: GainModel) -> None:
    request = Request((Message("user", f"tell me about the {TOPICS[0]}"),))
    answer = Answer("2 + 2 = 5, perhaps", "edge")

    async def proxy(request: Request, answer: Answer | None) -> ProxyView:
        return view(1.0)

    for scorer in (gain_scorer(model), checks_scorer(), proxy_scorer(proxy)):
        for known in (None, answer):
            assert 0 <= asyncio.run(scorer(request, known)) <= 1  # type: ignore[arg-type]
    easy = Request((Message("user", f"tell me about the {TOPICS[1]}"),))
    score = gain_scorer(model)
    assert asyncio.run(score(easy, None)) > asyncio.run(score(request, None))  # type: ignore[arg-type]
    assert asyncio.run(checks_scorer()(request, answer)) < 0.5  # type: ignore[arg-type]


def test_other_devices_are_asked_where_their_agreement_was_learned() -> None:
    same = np.arange(60) % 2 == 0
    evidence = [
        Evidence("one question", "#### 4", others=("#### 4" if agrees else "#### 9",)) for agrees in same
    ]
    model = fit_gain(evidence, (~same).astype(float))
    request, answer = Request((Message("user", "one question"),)), Answer("#### 4", "edge")

    async def agrees(request: Request) -> list[str]:
        return ["#### 4"]

    async def differs(request: Request) -> list[str]:
        return ["#### 9"]

    trusted, doubted = (
        asyncio.run(gain_scorer(model, other_answers=ask)(request, answer))  # type: ignore[arg-type]
        for ask in (agrees, differs)
    )
    assert trusted > doubted


def test_agreement_of_the_proxy_is_learned_where_it_is_given() -> None:
    rng = np.random.default_rng(8)
    agreement = rng.random(120)
    evidence = [Evidence("the same question", proxy=view(value)) for value in agreement]
    model = fit_gain(evidence, (agreement < 0.5).astype(float))
    assert model.groups == ("surface", "proxy")

    async def agrees(request: Request, answer: Answer | None) -> ProxyView:
        return view(0.9)

    async def differs(request: Request, answer: Answer | None) -> ProxyView:
        return view(0.1)

    request = Request((Message("user", "the same question"),))
    trusted, doubted = (
        asyncio.run(gain_scorer(model, proxy_agreement=ask)(request, None))  # type: ignore[arg-type]
        for ask in (agrees, differs)
    )
    assert trusted > doubted
