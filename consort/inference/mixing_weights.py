"""How much a mixture steers at each token: always the same, less and less, or as learned from answers.

The likelihood of a reference answer under `model + a * (plus - minus)` is concave in `a`, and so it is under
`(1 - a) * model + a * plus` in probabilities; a learned `a` is a sum of features: what is learned is the one
best sum (Newton), not where a descent stopped. Stored as JSON, never pickle. Chooses no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from consort.errors import ModelError
from consort.files import whole_file
from consort.inference.blending import aligned, entropy, log_probability
from consort.types import FloatArray, TopK

# tuned: llm + a (tuned - base); product: (1 - a) llm + a tuned; mean: the same of probabilities;
# contrast: llm + a (llm - base), within what the LLM finds plausible
Kind: TypeAlias = Literal["tuned", "product", "mean", "contrast"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FORMAT = "consort.mixing/1"
FEATURES = (
    "one",
    "entropy of the model",
    "entropy of plus",
    "entropy of minus",
    "model and plus agree",
    "log-probability of the model's likeliest",
    "log-probability of plus' likeliest",
    "log of the position",
)
LARGEST = 8.0  # a learned weight is held between 0 and this: beyond, the tokens nobody listed decide
_STEPS = 50  # of Newton's method, which needs about ten


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known when a token is about to be written; `position` counts the answer's tokens from 0."""

    model: TopK
    plus: TopK
    minus: TopK
    position: int


Weight: TypeAlias = Callable[[Moment], float]


def fixed(weight: float) -> Weight:
    """The same at every token."""
    return lambda moment: weight


def fading(weight: float, half_life_tokens: float) -> Weight:
    """Half as much after every `half_life_tokens`: the beginning of an answer decides what it is."""
    return lambda moment: weight * 0.5 ** (moment.position / half_life_tokens)


@dataclass(frozen=True, slots=True)
class Learned:
    """A weight for each moment of one kind of mixture: the features' sum, held between 0 and `largest`."""

    coefficients: tuple[float, ...]
    kind: Kind = "tuned"
    largest: float = LARGEST

    def __call__(self, moment: Moment) -> float:
        """The weight of this token."""
        return float(np.clip(features(moment) @ np.array(self.coefficients), 0.0, self.largest))


def features(moment: Moment) -> FloatArray:
    """Numbers by `FEATURES`."""
    model, plus, minus = moment.model, moment.plus, moment.minus
    likeliest = [int(each.ids[each.logprobs.argmax()]) for each in (model, plus)]
    return np.array(
        [
            1.0,
            entropy(model),
            entropy(plus),
            entropy(minus),
            float(likeliest[0] == likeliest[1]),
            float(model.logprobs.max()),
            float(plus.logprobs.max()),
            float(np.log1p(moment.position)),
        ]
    )


def fit(
    moments: Sequence[Moment], tokens: Sequence[int], *, size: int, kind: Kind = "tuned", penalty: float = 1.0
) -> Learned:
    """The weights under which these reference tokens are likeliest; `penalty` on the squared coefficients of
    standardised features, that of `one` left free."""
    found = np.array([features(moment) for moment in moments])
    mean, spread = found.mean(0), found.std(0)
    mean[0], spread[spread < 1e-9] = 0.0, np.inf  # what never varies is `one` again
    spread[0] = 1.0
    standard_NF = (found - mean) / spread
    choice = _Averaging if kind == "mean" else _Steering
    rows = [choice.of(moment, token, size) for moment, token in zip(moments, tokens, strict=True)]
    penalties = np.full(len(FEATURES), penalty)
    penalties[0] = 1e-3
    coefficients = _newton(rows, standard_NF, penalties)
    raw = coefficients / spread
    raw[0] -= float(coefficients[1:] @ (mean[1:] / spread[1:]))
    return Learned(tuple(raw.tolist()), kind, 1.0 if kind == "mean" else LARGEST)


@dataclass(frozen=True, slots=True)
class _Steering:
    """One token's choice: log-probabilities without steering, what each unit of it adds, how many tokens each
    entry stands for, and which was right."""

    scores: FloatArray
    slopes: FloatArray
    log_counts: FloatArray
    right: int

    @classmethod
    def of(cls, moment: Moment, token: int, size: int) -> _Steering:
        every = aligned((moment.model, moment.plus, moment.minus), size)
        model, plus, minus = np.hstack([every.logprobs, every.unlisted[:, None]])
        place = int(np.searchsorted(every.ids, token))
        listed = place < len(every.ids) and every.ids[place] == token
        log_counts = np.zeros(len(model))
        log_counts[-1] = np.log(every.num_unlisted) if every.num_unlisted else -np.inf
        return cls(model, plus - minus, log_counts, place if listed else len(every.ids))

    def at(self, weight: float) -> tuple[float, float, float]:
        """Log-likelihood of the right token, its slope and its curvature."""
        scores = self.scores + weight * self.slopes
        total = np.logaddexp.reduce(scores + self.log_counts)
        shares = np.exp(scores + self.log_counts - total)
        mean = float(shares @ self.slopes)
        variance = float(shares @ (self.slopes - mean) ** 2)
        return float(scores[self.right] - total), float(self.slopes[self.right]) - mean, variance


@dataclass(frozen=True, slots=True)
class _Averaging:
    """One token's choice: its probability by the model, and how much larger it is by the other."""

    model: float
    more: float

    @classmethod
    def of(cls, moment: Moment, token: int, size: int) -> _Averaging:
        model, plus = (np.exp(log_probability(each, token, size)) for each in (moment.model, moment.plus))
        return cls(float(model), float(plus - model))

    def at(self, weight: float) -> tuple[float, float, float]:
        """As `_Steering.at`; beyond the weights under which the token is possible, nothing is."""
        mass = self.model + weight * self.more
        if mass <= 0:
            return -np.inf, 0.0, 0.0
        slope = self.more / mass
        return float(np.log(mass)), slope, slope**2


def _newton(
    rows: Sequence[_Steering | _Averaging], features_NF: FloatArray, penalties: FloatArray
) -> FloatArray:
    coefficients = np.zeros(features_NF.shape[1])

    def measured(at: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        values = [row.at(float(weight)) for row, weight in zip(rows, features_NF @ at, strict=True)]
        gains, slopes, curvatures = np.array(values).T
        gradient = features_NF.T @ slopes - penalties * at
        hessian = features_NF.T @ (features_NF * curvatures[:, None]) + np.diag(penalties)
        return float(gains.sum() - penalties @ at**2 / 2), gradient, hessian

    gain, gradient, hessian = measured(coefficients)
    for _ in range(_STEPS):
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6:
            further = measured(coefficients + size * step)
            if further[0] >= gain:
                break
            size /= 2
        else:
            break
        grown = further[0] - gain
        coefficients = coefficients + size * step
        gain, gradient, hessian = further
        if grown < 1e-9 * max(1.0, abs(gain)):
            break
    return coefficients


def save_weights(learned: Learned, path: Path) -> None:
    """Write the whole file or nothing."""
    about = {
        "format": FORMAT,
        "features": list(FEATURES),
        "kind": learned.kind,
        "coefficients": list(learned.coefficients),
        "largest": learned.largest,
    }
    with whole_file(path) as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())


def load_weights(path: Path) -> Learned:
    """Read learned weights; ModelError for another version or other features."""
    hint = "write it anew with consort.inference.mixing_weights"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT or tuple(about["features"]) != FEATURES:
            raise ModelError("these weights are of another version", where=str(path), hint=hint)
        coefficients = tuple(float(value) for value in about["coefficients"])
        if len(coefficients) != len(FEATURES) or not np.isfinite([*coefficients, about["largest"]]).all():
            raise ValueError("a coefficient for each feature is needed")
        if about["kind"] not in KINDS:
            raise ValueError(f"no kind of mixture is called {about['kind']}")
        return Learned(coefficients, about["kind"], float(about["largest"]))
    except FileNotFoundError:
        raise ModelError("there are no such weights", where=str(path), hint=hint) from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the weights are damaged: {error}", where=str(path), hint=hint) from error
