"""The pages that Stripe hosts: checkout, the customer portal, and a last one for those without a front end.

Plain HTML: no scripts, nothing from elsewhere.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from html import escape

from chatapi.dev.stripe import checkout, invoices
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.subscriptions import schedule_end
from chatapi.dev.stripe.wire import ApiError, Json

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem;color:#1a1f36}"
    "button{font:inherit;padding:.5rem 1rem;margin:.2rem .4rem .2rem 0}form{display:inline}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem 1rem .2rem 0;text-align:left}"
    ".note{color:#697386}.error{color:#b3093c}"
)
NO_CENTS = frozenset({"clp", "jpy", "krw", "vnd"})
CLOSED = "<h1>Payment page closed</h1><p>Your service knows by now, or will in a moment. You can close this page.</p>"
WELCOME = (
    "<h1>Stripe stand-in</h1><p>This server stands in for Stripe: no money moves here. "
    "Checkout and the customer portal have their pages here; their addresses come from the API.</p>"
)


@dataclass(frozen=True)
class Page:
    """What a browser is answered: a page, or the address to go on to."""

    status: int
    html: str = ""
    location: str | None = None


def open_page(account: Account, path: str) -> Page:
    """Answer GET."""
    first, _, rest = path.removeprefix("/").partition("/")
    if first == "checkout" and rest:
        return _checkout_page(account, rest)
    if first == "portal" and rest:
        return _portal_page(account, rest)
    if first == "frontend":
        return _page("Done", CLOSED)
    return _page("Stripe stand-in", WELCOME) if path == "/" else _nothing_here()


def press_button(account: Account, path: str, form: Json) -> Page:
    """Answer POST: do what the button says."""
    first, _, rest = path.removeprefix("/").partition("/")
    try:
        if first == "checkout" and rest in account.kinds["checkout.session"]:
            return _act_on_session(account, account.find("checkout.session", rest), form)
        if first == "portal" and f"portal/{rest}" in account.private:
            return _act_in_portal(account, rest, form)
    except ApiError as error:
        return _page("Not possible", f'<h1>Not possible</h1><p class="error">{escape(str(error))}</p>', 400)
    return _nothing_here()


def _nothing_here() -> Page:
    return _page("Not found", "<h1>There is nothing here</h1>", 404)


def _page(title: str, body: str, status: int = 200) -> Page:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width">'
    foot = '<p class="note">Stripe stand-in: no money moves here.</p>'
    return Page(status, f'<!doctype html><html lang="en"><head>{head}{view}</head><body>{body}{foot}</body></html>')


def _button(action: str, label: str, **fields: str) -> str:
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">'
        for name, value in {"action": action, **fields}.items()
    )
    return f'<form method="post">{hidden}<button>{escape(label)}</button></form>'


def money(amount: int, currency: str) -> str:
    """Write an amount, which is in the currency's smallest unit."""
    digits = str(amount) if currency in NO_CENTS else f"{amount / 100:.2f}"
    return f"{digits} {currency.upper()}"


def _date(moment: int) -> str:
    return dt.datetime.fromtimestamp(moment, dt.UTC).strftime("%d %B %Y, %H:%M UTC")


def _checkout_page(account: Account, session_id: str, error: str = "", status: int = 200) -> Page:
    session = account.kinds["checkout.session"].get(session_id)
    if session is None:
        return _nothing_here()
    if session["status"] != "open":
        what = "has been paid" if session["status"] == "complete" else "has expired"
        return _page("Checkout", f"<h1>This page {what}</h1><p>There is nothing more to do here.</p>", status)
    rows = "".join(_checkout_row(line) for line in checkout.lines_of(account, session))
    buttons = _button("pay", "Pay") + _button("decline", "Pay with a card that is declined")
    if session["cancel_url"]:
        buttons += _button("cancel", "Cancel")
    shown_error = f'<p class="error">{escape(error)}</p>' if error else ""
    due = f"<p>Due today: <b>{money(session['amount_total'], session['currency'])}</b></p>"
    return _page("Checkout", f"<h1>Subscribe</h1><table>{rows}</table>{due}{shown_error}{buttons}", status)


def _checkout_row(line: Json) -> str:
    recurring = line["price"]["recurring"]
    count = recurring["interval_count"]
    rhythm = f"per {recurring['interval']}" if count == 1 else f"every {count} {recurring['interval']}s"
    price = money(line["amount_total"], line["currency"])
    return f"<tr><td>{line['quantity']} x {escape(line['description'])}</td><td>{price} {rhythm}</td></tr>"


def _act_on_session(account: Account, session: Json, form: Json) -> Page:
    action = form.get("action")
    if session["status"] != "open":
        return _checkout_page(account, session["id"], status=409)
    if action == "pay":
        checkout.complete(account, session)
        return Page(303, location=session["success_url"].replace("{CHECKOUT_SESSION_ID}", session["id"]))
    if action == "cancel" and session["cancel_url"]:
        return Page(303, location=session["cancel_url"])
    if action == "decline":
        checkout.decline(session)
        return _checkout_page(account, session["id"], "Your card was declined. Try another one.", 402)
    return _nothing_here()


def _portal_page(account: Account, token: str) -> Page:
    portal = account.private.get(f"portal/{token}")
    if portal is None:
        return _nothing_here()
    customer_id = portal["customer"]
    held = [made for made in account.all_of("subscription")[::-1] if made["customer"] == customer_id]
    body = "<h1>Your subscription</h1>" + "".join(map(_subscription_part, held)) + ("" if held else "<p>None.</p>")
    card = invoices.card_of(account, customer_id) or "none"
    body += f"<h2>Card</h2><p>Now: {escape(card)}.</p>" + _button("card", "Use a good card", card=invoices.GOOD_CARD)
    body += _button("card", "Use a card that is declined", card=invoices.DECLINING_CARD)
    rows = [_invoice_row(made) for made in account.all_of("invoice")[::-1] if made["customer"] == customer_id]
    body += f"<h2>Invoices</h2><table>{''.join(rows)}</table>"
    if portal["return_url"]:
        body += f'<p><a href="{escape(portal["return_url"])}">Back</a></p>'
    return _page("Customer portal", body)


def _subscription_part(subscription: Json) -> str:
    status = subscription["status"]
    text = f"<p>{escape(subscription['id'])}: <b>{status}</b>"
    if status in invoices.ENDED:
        return text + "</p>"
    if subscription["cancel_at"]:
        text += f", ends on {_date(subscription['cancel_at'])}</p>"
        return text + _button("resume", "Do not cancel", subscription=subscription["id"])
    text += f", renews on {_date(invoices.period_of(subscription)[1])}</p>"
    return text + _button("cancel", "Cancel at the period's end", subscription=subscription["id"])


def _invoice_row(invoice: Json) -> str:
    pay = _button("pay", "Pay", invoice=invoice["id"]) if invoice["status"] == "open" else ""
    total = money(invoice["total"], invoice["currency"])
    return f"<tr><td>{_date(invoice['created'])}</td><td>{total}</td><td>{invoice['status']}</td><td>{pay}</td></tr>"


def _act_in_portal(account: Account, token: str, form: Json) -> Page:
    customer_id = account.private[f"portal/{token}"]["customer"]
    action = form.get("action")
    if action == "card" and form.get("card") in invoices.CARDS:
        account.secret_of(customer_id)["card"] = form["card"]
    elif action == "pay":
        invoices.pay(account, _own(account, "invoice", form, customer_id))
    elif action in {"cancel", "resume"}:
        _schedule_end(account, _own(account, "subscription", form, customer_id), is_wanted=action == "cancel")
    else:
        return _nothing_here()
    return Page(303, location=f"{account.base_url}/portal/{token}")


def _own(account: Account, kind: str, form: Json, customer_id: str) -> Json:
    """Return what a button is about; another customer's is as good as none."""
    found = account.find(kind, str(form.get(kind)))
    if found["customer"] != customer_id:
        raise ApiError(404, f"No such {kind}: '{found['id']}'", code="resource_missing")
    return found


def _schedule_end(account: Account, subscription: Json, *, is_wanted: bool) -> None:
    """Cancel as the portal does with flexible billing: by the date, `cancel_at_period_end` stays false."""
    if subscription["status"] in invoices.ENDED:
        raise ApiError(400, "This subscription has ended.")
    ends_at = invoices.period_of(subscription)[1] if is_wanted else ""
    with account.updating(subscription, "customer.subscription.updated"):
        schedule_end(subscription, {"cancel_at": ends_at}, account.clock.now())
