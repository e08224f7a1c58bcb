"""Fixtures for all tests:

the folder with real tokenizers, tasks and checkpoints that stays outside the repository.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# a build server checks the same examples each time; everywhere else hypothesis goes on looking
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("CONSORT_DATA", _DEFAULT))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set CONSORT_DATA to the folder with tokenizers/ and tasks/")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Vocabulary maps of the tests stay out of the user's cache."""
    os.environ.setdefault("CONSORT_CACHE", str(tmp_path_factory.mktemp("cache")))
