"""Detectors by name: the built-in one, Presidio and GLiNER. The latter two are imported only when asked for.

They bring models of their own, which their libraries load from where they are told; nothing here downloads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from consort.errors import ConfigError, MissingExtraError
from consort.inference.redaction.context import context
from consort.inference.redaction.spans import KINDS, Detector, Span, disjoint
from consort.inference.redaction.structured import structured

_NOT_LETTERS = re.compile(r"[^a-z]+")
# What others call the kinds; anything else keeps its own name.
_KINDS = {
    "creditcard": "card", "ibancode": "iban", "emailaddress": "email", "phonenumber": "phone",
    "ipaddress": "ip", "location": "place", "gpe": "place", "city": "place", "country": "place",
    "nrp": "nationality", "organization": "organisation", "company": "organisation", "datetime": "date",
    "dateofbirth": "date", "streetaddress": "address", "usssn": "id", "socialsecuritynumber": "id",
    "passportnumber": "id", "usdriverlicense": "id", "usbanknumber": "id", "uspassport": "id", "usitin": "id",
    "uknhs": "id",
}  # fmt: skip
_GLINER_LABELS = (
    "person", "organization", "company", "street address", "city", "country", "date of birth", "phone number",
    "email address", "credit card", "passport number", "social security number",
)  # fmt: skip


def builtin(text: str) -> list[Span]:
    """Every kind of `spans.KINDS`, by checksum, form and context; disjoint, from left to right."""
    return disjoint(text, [*structured(text), *context(text)])


def detector(
    names: Sequence[str] = ("builtin",), *, kinds: Collection[str] = (), model: str = ""
) -> Detector:
    """What any of the named detectors finds, of the given kinds only (none given: of all).

    `model` is GLiNER's model, a directory or Hub id.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ConfigError(f"no such kind: {unknown[0]}", where="redact", hint=f"known are {', '.join(KINDS)}")
    if not names:
        raise ConfigError("no detector finds nothing", where="serve.detectors", hint='as in ["builtin"]')
    detectors = [_named(name, model) for name in names]
    if detectors == [builtin] and not kinds:
        return builtin

    def detect(text: str) -> list[Span]:
        found = [span for each in detectors for span in each(text) if not kinds or span.kind in kinds]
        return disjoint(text, found)

    return detect


def presidio(analyzer: Any = None, *, language: str = "en") -> Detector:
    """Microsoft Presidio, with its recognisers and the language model that it is set up with."""
    if analyzer is None:
        try:
            from presidio_analyzer import AnalyzerEngine
        except ImportError as error:
            raise _missing("Presidio", "presidio-analyzer") from error
        analyzer = AnalyzerEngine()

    def detect(text: str) -> list[Span]:
        results = analyzer.analyze(text, language=language)
        return disjoint(text, [Span(found.start, found.end, _kind(found.entity_type)) for found in results])

    return detect


def gliner(model: Any, *, labels: Sequence[str] = _GLINER_LABELS, threshold: float = 0.5) -> Detector:
    """GLiNER: `model` is a directory, a Hub id, or what has its `predict_entities`."""
    if isinstance(model, str):
        try:
            from gliner import GLiNER
        except ImportError as error:
            raise _missing("GLiNER", "gliner") from error
        model = GLiNER.from_pretrained(model)

    def detect(text: str) -> list[Span]:
        results = model.predict_entities(text, list(labels), threshold=threshold)
        return disjoint(
            text, [Span(found["start"], found["end"], _kind(found["label"])) for found in results]
        )

    return detect


def _named(name: str, model: str) -> Detector:
    if name == "builtin":
        return builtin
    if name == "presidio":
        return presidio()
    if name == "gliner" and model:
        return gliner(model)
    if name == "gliner":
        raise ConfigError(
            "GLiNER needs a model", where="serve.gliner_model", hint="name its directory or Hub id"
        )
    raise ConfigError(
        f"no detector is called {name}", where="serve.detectors", hint="known are builtin, presidio, gliner"
    )


def _kind(name: str) -> str:
    letters = _NOT_LETTERS.sub("", name.lower())
    return _KINDS.get(letters, letters)


def _missing(what: str, package: str) -> MissingExtraError:
    return MissingExtraError(
        f"{what} is not installed", where="serve.detectors", hint=f"pip install {package}"
    )
