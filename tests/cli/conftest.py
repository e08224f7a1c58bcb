"""The commands run on the tiny consort."""

from __future__ import annotations

from tests import tiny_consort

consort = tiny_consort.consort
