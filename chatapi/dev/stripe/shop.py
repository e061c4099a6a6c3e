"""What `make run` has its Stripe stand-in sell and tell: the same over restarts, and made once."""

from __future__ import annotations

from chatapi.dev.stripe import notices, objects
from chatapi.dev.stripe.account import Account

PRODUCT_NAME = "Pro"
AMOUNT, CURRENCY = 900, "usd"
RECURRING = {"interval": "month", "interval_count": 1}
EVENTS = ["checkout.session.*", "customer.deleted", "customer.subscription.*", "invoice.*"]
NOTED = {"made_by": "make run"}


def sell(account: Account, price_id: str) -> None:
    """Have a price with this id, of a product of its own."""
    with account.changing():
        if price_id not in account.kinds["price"]:
            product = account.add(objects.product(account.head("product"), PRODUCT_NAME), "product.created")
            head = account.head("price", price_id)
            account.add(objects.price(head, product["id"], CURRENCY, AMOUNT, RECURRING), "price.created")


def tell(account: Account, url: str, secret: str) -> None:
    """Deliver to `url`, signed with `secret`; what an earlier run did not get delivered goes there too."""
    with account.changing():
        ours = [endpoint for endpoint in account.all_of("webhook_endpoint") if endpoint["metadata"] == NOTED]
        if not ours:
            wanted = {"url": url, "enabled_events": EVENTS, "metadata": NOTED}
            notices.create_endpoint(account, wanted, secret)
        for endpoint in ours:
            endpoint["url"] = url
            account.secret_of(endpoint["id"])["secrets"] = [secret]
