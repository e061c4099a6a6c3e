"""What happens by itself as time passes, in the order in which it is due."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

from chatapi.dev.stripe import checkout, invoices, subscriptions
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.wire import ApiError, Json

Step = tuple[int, int, Callable[[], object]]
"""When it is due, its turn among those due at one moment, and what it does."""

PERIOD_ENDS = 3
RETRY = 4


def live_until(account: Account, moment: int) -> None:
    """Let everything happen that is due until `moment`, each thing at its own time."""
    waiting = _Waiting(account, moment)
    for kind in ("checkout.session", "subscription", "invoice"):
        for about in account.all_of(kind):
            waiting.add(about)
    while waiting.do_next():
        pass
    account.clock.move_to(moment)
    account.forget_old_answers()


class _Waiting:
    """What is due until a moment, the earliest first; an object may have more to do once it has done something."""

    def __init__(self, account: Account, moment: int) -> None:
        self._account = account
        self._moment = moment
        self._numbers = itertools.count()
        self._heap: list[tuple[int, int, int, Json]] = []

    def add(self, about: Json) -> None:
        """Wait for the next thing that is due for an object, if any."""
        step = self._next(about)
        if step is not None:
            heapq.heappush(self._heap, (step[0], step[1], next(self._numbers), about))

    def do_next(self) -> bool:
        """Do the next thing; return whether there was one."""
        while self._heap:
            due_at, turn, _, about = heapq.heappop(self._heap)
            step = self._next(about)
            if step is not None and step[:2] == (due_at, turn):
                self._do(step, about)
                return True
            # What was done since has changed what is due for it.
            self.add(about)
        return False

    def _do(self, step: Step, about: Json) -> None:
        """Do a step. The object waits on then, and so does an invoice that was made."""
        invoice_id = about.get("latest_invoice")
        with self._account.clock.stopped_at(min(step[0], self._moment)):
            step[2]()
        self.add(about)
        if about.get("latest_invoice") != invoice_id:
            self.add(self._account.kinds["invoice"][about["latest_invoice"]])

    def _next(self, about: Json) -> Step | None:
        return min(_due(self._account, about, self._moment), key=lambda step: step[:2], default=None)


def renew_now(account: Account, subscription: Json) -> None:
    """Let one subscription reach its period's end, and nobody else's."""
    now = account.clock.now()
    if subscription["status"] not in subscriptions.RENEWED | {"trialing"}:
        raise ApiError(400, f"This subscription is {subscription['status']}: it is not renewed.")
    with account.clock.stopped_at(now):
        subscriptions.bring_forward(subscription, invoices.period_of(subscription)[1] - now)
        turn = 0
        while turn != PERIOD_ENDS and subscription["status"] not in invoices.ENDED:
            _, turn, step = min(_due_of_subscription(account, subscription, now), key=lambda step: step[:2])
            step()


def _due(account: Account, about: Json, moment: int) -> Iterator[Step]:
    kind, status = about["object"], about["status"]
    if kind == "subscription" and status not in invoices.ENDED:
        yield from _due_of_subscription(account, about, moment)
    elif kind == "checkout.session" and status == "open" and about["expires_at"] <= moment:
        yield about["expires_at"], 0, _call(checkout.expire, account, about)
    elif kind == "invoice" and status == "open" and (about["next_payment_attempt"] or moment + 1) <= moment:
        yield about["next_payment_attempt"], RETRY, _call(invoices.collect, account, about)


def _due_of_subscription(account: Account, subscription: Json, moment: int) -> Iterator[Step]:
    status = subscription["status"]
    steps: list[tuple[int | None, int, Callable[[Account, Json], object]]] = [
        (subscription["cancel_at"], 1, invoices.end_subscription),
        ((subscription["pause_collection"] or {}).get("resumes_at"), 2, _resume_collection),
    ]
    _, period_end = invoices.period_of(subscription)
    if status == "trialing":
        if not account.private.get(subscription["id"], {}).get("is_warned"):
            steps.append((period_end - subscriptions.TRIAL_WARNING_SECONDS, 0, _warn_of_trial_end))
        steps.append((subscription["trial_end"], PERIOD_ENDS, subscriptions.end_trial))
    elif status in subscriptions.RENEWED:
        steps.append((period_end, PERIOD_ENDS, subscriptions.renew))
    elif status == "incomplete":
        end = subscription["created"] + subscriptions.FIRST_PAYMENT_SECONDS
        steps.append((end, PERIOD_ENDS, subscriptions.expire_incomplete))
    for due_at, turn, step in steps:
        if due_at is not None and due_at <= moment:
            yield max(due_at, subscription["created"]), turn, _call(step, account, subscription)


def _call(step: Callable[[Account, Json], object], account: Account, about: Json) -> Callable[[], object]:
    return lambda: step(account, about)


def _resume_collection(account: Account, subscription: Json) -> None:
    with account.updating(subscription, "customer.subscription.updated"):
        subscription["pause_collection"] = None


def _warn_of_trial_end(account: Account, subscription: Json) -> None:
    account.secret_of(subscription["id"])["is_warned"] = True
    account.emit("customer.subscription.trial_will_end", subscription)
