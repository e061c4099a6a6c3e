"""A stand-in for Gemini, and a client of each SDK."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.replies.gemini.base import GeminiClient
from tests.replies.gemini.support import CLASSES, WAYS, Way, make_client


@pytest.fixture
def standin() -> Iterator[GeminiStandin]:
    with GeminiStandin() as running:
        yield running


@pytest.fixture(params=WAYS, ids=lambda way: f"{way.sdk} {way.method}")
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture(params=CLASSES)
def sdk(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def client(way: Way, standin: GeminiStandin) -> Iterator[GeminiClient]:
    """The client of `way`'s SDK."""
    made = make_client(way.sdk, standin.url)
    yield made
    made.close()


@pytest.fixture
def streaming(sdk: str, standin: GeminiStandin) -> Iterator[GeminiClient]:
    """A client of `sdk` for what is about streams alone."""
    made = make_client(sdk, standin.url)
    yield made
    made.close()
