"""Every test here spoils the tiny consort in its own way."""

from __future__ import annotations

from tests import tiny_consort

consort = tiny_consort.consort
