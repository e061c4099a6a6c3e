"""What `POST /subscribe/pro` refuses of a body, which it makes nothing of."""

from __future__ import annotations

from io import BytesIO

import pytest

from chatapi.dev.stripe.standin import StripeStandin
from tests.support import Account

BOTH = pytest.mark.parametrize("path", ["/subscribe/pro", "/subscription/pro"])
LONGEST = 64 * 1024


@BOTH
def test_body_is_refused_when_it_is_too_long(account: Account, stripe: StripeStandin, path: str) -> None:
    answer = account.client.post(path, data=b"x" * (LONGEST + 1), headers=account.headers)

    assert (answer.status_code, answer.get_json()["error"]) == (413, "payload_too_large")
    assert stripe.requests == []


@BOTH
def test_chunked_body_is_refused_when_it_is_too_long(account: Account, stripe: StripeStandin, path: str) -> None:
    answer = account.client.post(
        path,
        input_stream=BytesIO(b"x" * (LONGEST + 1)),
        headers=account.headers,
        environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    )

    assert (answer.status_code, answer.get_json()["error"]) == (413, "payload_too_large")
    assert stripe.requests == []


@BOTH
def test_encoded_body_is_refused(account: Account, stripe: StripeStandin, path: str) -> None:
    answer = account.client.post(path, data=b"{}", headers={**account.headers, "Content-Encoding": "gzip"})

    assert (answer.status_code, answer.get_json()["error"]) == (415, "unsupported_media_type")
    assert stripe.requests == []


@BOTH
def test_longest_body_is_ignored(account: Account, path: str) -> None:
    answer = account.client.post(path, data=b"x" * LONGEST, headers=account.headers)

    assert answer.status_code == 200
