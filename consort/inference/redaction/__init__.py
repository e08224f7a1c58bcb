"""Private spans leave no device: found without a download, hidden behind placeholders, given back.

`redact` wraps any strategy; `builtin` is what it finds private by; `spans.Detector` is how others join in.
"""

from consort.inference.redaction.detectors import builtin, detector
from consort.inference.redaction.spans import KINDS, STRUCTURED, Detector, Span
from consort.inference.redaction.strategy import redact

__all__ = ["KINDS", "STRUCTURED", "Detector", "Span", "builtin", "detector", "redact"]
