"""The eight real tokenizers."""

from pathlib import Path

import pytest

from consort.align import Vocabulary
from tests.align.texts_and_teachers import NAMES


@pytest.fixture(scope="session")
def vocabularies(shared_data: Path) -> dict[str, Vocabulary]:
    return {name: Vocabulary.of(shared_data / "tokenizers" / f"{name}.json") for name in NAMES}
