"""Idempotency keys as Stripe's v1 keeps them: the first answer again, for 24 hours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.wire import ApiError, Json, invalid

MAX_KEY_LENGTH = 255


@dataclass(frozen=True)
class Answer:
    """A status and a body; `is_replayed` when a key has brought it back."""

    status: int
    body: Json
    is_replayed: bool = False


class IdempotencyKeys:
    """Runs each key's request once; which keys run now is known here, what they led to the account keeps."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._running: set[str] = set()

    def run(self, key: str, path: str, params: Json, execute: Callable[[], Answer]) -> Answer:
        """Return the answer kept for `key`, or that of `execute`.

        `execute` raises `ApiError` for all that is not 2xx. What was refused before anything was executed is not kept.
        """
        if len(key) > MAX_KEY_LENGTH:
            raise invalid(f"Keys for idempotent requests can only be up to {MAX_KEY_LENGTH} characters long.")
        if (kept := self._claim(key, path, params)) is not None:
            return kept
        try:
            answer = execute()
            self._keep(key, path, params, answer)
        except ApiError as error:
            if error.is_remembered:
                self._keep(key, path, params, Answer(error.status, error.body()))
            raise
        finally:
            with self._account.changing():
                self._running.discard(key)
        return answer

    def _claim(self, key: str, path: str, params: Json) -> Answer | None:
        account = self._account
        with account.changing():
            account.forget_old_answers()
            if key in self._running:
                message = f"There is currently another in-progress request using this Stripe-Idempotency-Key: {key}"
                raise ApiError(
                    409, message, kind="idempotency_error", code="idempotency_key_in_use", is_remembered=False
                )
            kept = account.remembered.get(key)
            if kept is None:
                self._running.add(key)
                return None
            if (kept["path"], kept["params"]) != (path, params):
                message = (
                    "Keys for idempotent requests can only be used with the same parameters they were first used "
                    f"with. Try using a key other than '{key}' if you meant to execute a different request."
                )
                raise ApiError(400, message, kind="idempotency_error", is_remembered=False)
            return Answer(kept["status"], kept["body"], is_replayed=True)

    def _keep(self, key: str, path: str, params: Json, answer: Answer) -> None:
        account = self._account
        with account.changing():
            kept = {"path": path, "params": params, "status": answer.status, "body": answer.body}
            account.remembered[key] = {**kept, "at": account.clock.now()}
            account.touch()
