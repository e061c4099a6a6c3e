"""Customers, products, prices, and the account itself."""

from __future__ import annotations

from chatapi.dev.stripe import checkout, invoices, objects
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.lists import FILTERED_PAGING, check_filters, page, without_deleted
from chatapi.dev.stripe.params import (
    Checker,
    Params,
    array,
    boolean,
    choice,
    hash_of,
    merge_metadata,
    metadata,
    text,
    url,
    whole,
)
from chatapi.dev.stripe.routes import Route
from chatapi.dev.stripe.wire import ApiError, Json, invalid

MAX_UNIT_AMOUNT = 99999999
CUSTOMER_FIELDS: dict[str, Checker] = {
    "description": text(max_length=350),
    "email": text(max_length=512),
    "metadata": metadata(),
    "name": text(max_length=256),
    "phone": text(),
    "preferred_locales": array(text()),
}
RECURRING = hash_of(
    {"interval": choice("day", "week", "month", "year"), "interval_count": whole(1, 1095)},
    "interval",
)
PRODUCT_FIELDS: dict[str, Checker] = {
    "active": boolean(),
    "description": text(),
    "images": array(text()),
    "metadata": metadata(),
    "name": text(),
    "statement_descriptor": text(max_length=22),
    "tax_code": text(),
    "unit_label": text(),
    "url": url(),
}
PRICE_FIELDS: dict[str, Checker] = {
    "active": boolean(),
    "lookup_key": text(max_length=200),
    "metadata": metadata(),
    "nickname": text(),
    "tax_behavior": choice("exclusive", "inclusive", "unspecified"),
    "transfer_lookup_key": boolean(),
}
AMOUNT_FIELDS: dict[str, Checker] = {
    "currency": text(max_length=3),
    "recurring": RECURRING,
    "unit_amount": whole(0, MAX_UNIT_AMOUNT),
}


def change(account: Account, held: Json, params: Json, event_type: str | None) -> Json:
    """Set what `params` names, metadata merged, and tell of it by `event_type`, if any."""
    merged = dict(params)
    if "metadata" in params:
        merged["metadata"] = merge_metadata(held["metadata"], params["metadata"])
    with account.updating(held, event_type):
        held |= merged
    return held


def _create_customer(account: Account, _: str, params: Json) -> Json:
    return checkout.create_customer(account, params)


def _get_customer(account: Account, object_id: str, _: Json) -> Json:
    return without_deleted(account.find("customer", object_id))


def find_customer(account: Account, object_id: str) -> Json:
    """Return a customer that was not deleted."""
    found = account.find("customer", object_id)
    if found.get("deleted"):
        raise ApiError(404, f"No such customer: '{object_id}'", code="resource_missing", param="id")
    return found


def _update_customer(account: Account, object_id: str, params: Json) -> Json:
    return change(account, find_customer(account, object_id), params, "customer.updated")


def _delete_customer(account: Account, object_id: str, _: Json) -> Json:
    customer = find_customer(account, object_id)
    for subscription in account.all_of("subscription"):
        if subscription["customer"] == object_id and subscription["status"] not in invoices.ENDED:
            invoices.end_subscription(account, subscription)
    account.emit("customer.deleted", customer)
    customer["deleted"] = True
    account.touch()
    return without_deleted(customer)


def _list_customers(account: Account, _: str, params: Json) -> Json:
    def is_wanted(customer: Json) -> bool:
        return "email" not in params or customer["email"] == params["email"]

    return page(account, "customer", "/v1/customers", params, is_wanted)


def _create_product(account: Account, _: str, params: Json) -> Json:
    fields = dict(params)
    product_id, price = fields.pop("id", None), fields.pop("default_price_data", None)
    if product_id in account.kinds["product"]:
        message = f"Product already exists with the id: {product_id}"
        raise ApiError(400, message, code="resource_already_exists", param="id")
    made = objects.product(account.head("product", product_id), fields["name"])
    made |= {**fields, "metadata": merge_metadata({}, fields.get("metadata"))}
    account.add(made, "product.created")
    if price:
        default = _new_price(account, made["id"], price)
        with account.updating(made, "product.updated"):
            made["default_price"] = default["id"]
    return made


def _get_product(account: Account, object_id: str, _: Json) -> Json:
    return account.find("product", object_id)


def _update_product(account: Account, object_id: str, params: Json) -> Json:
    held = account.find("product", object_id)
    if params.get("default_price"):
        account.find("price", params["default_price"], param="default_price")
    return change(account, held, {**params, "updated": account.clock.now()}, "product.updated")


def _list_products(account: Account, _: str, params: Json) -> Json:
    def is_wanted(product: Json) -> bool:
        is_active = "active" not in params or product["active"] == params["active"]
        return is_active and ("ids" not in params or product["id"] in params["ids"])

    return page(account, "product", "/v1/products", params, is_wanted)


def _create_price(account: Account, _: str, params: Json) -> Json:
    if ("product" in params) == ("product_data" in params):
        message = "You must provide exactly one of these parameters: product, product_data."
        raise invalid(message, code="parameter_missing", param="product")
    if "product" in params:
        product_id = account.find("product", params["product"], param="product")["id"]
    else:
        product_id = _create_product(account, "", params["product_data"])["id"]
    fields = {name: value for name, value in params.items() if name not in {"product", "product_data"}}
    return _new_price(account, product_id, fields)


def _new_price(account: Account, product_id: str, params: Json) -> Json:
    fields = dict(params)
    recurring = fields.pop("recurring", None)
    if recurring:
        recurring = {"interval": recurring["interval"], "interval_count": recurring.get("interval_count", 1)}
    currency, amount = fields.pop("currency").lower(), fields.pop("unit_amount")
    _take_lookup_key(account, fields)
    made = objects.price(account.head("price"), product_id, currency, amount, recurring)
    made |= {**fields, "metadata": merge_metadata({}, fields.get("metadata"))}
    return account.add(made, "price.created")


def _take_lookup_key(account: Account, fields: Json, own_id: str | None = None) -> None:
    is_transfer = fields.pop("transfer_lookup_key", False)
    key = fields.get("lookup_key")
    for price in account.all_of("price") if key else []:
        if price["lookup_key"] == key and price["id"] != own_id:
            if not is_transfer:
                message = f"A price (`{price['id']}`) already uses that lookup key."
                raise ApiError(400, message, param="lookup_key")
            with account.updating(price, "price.updated"):
                price["lookup_key"] = None


def _get_price(account: Account, object_id: str, _: Json) -> Json:
    return account.find("price", object_id)


def _update_price(account: Account, object_id: str, params: Json) -> Json:
    held, fields = account.find("price", object_id), dict(params)
    _take_lookup_key(account, fields, object_id)
    return change(account, held, fields, "price.updated")


def _list_prices(account: Account, _: str, params: Json) -> Json:
    check_filters(account, params, "product")
    same = [name for name in ("active", "currency", "product", "type") if name in params]

    def is_wanted(price: Json) -> bool:
        is_same = all(price[name] == params[name] for name in same)
        return is_same and ("lookup_keys" not in params or price["lookup_key"] in params["lookup_keys"])

    return page(account, "price", "/v1/prices", params, is_wanted)


def _get_account(account: Account, _: str, __: Json) -> Json:
    return objects.account(account.clock.now(), is_live=account.livemode)


NEW_PRODUCT = {
    name: check for name, check in PRODUCT_FIELDS.items() if name in {"active", "metadata", "name", "tax_code"}
}
PRODUCT_LIST = Params(FILTERED_PAGING | {"active": boolean(), "ids": array(text())})
PRICE_LIST = Params(
    FILTERED_PAGING
    | {"active": boolean(), "currency": text(), "lookup_keys": array(text()), "product": text()}
    | {"type": choice("recurring", "one_time")},
)
NEW_PRICE = Params(
    PRICE_FIELDS | AMOUNT_FIELDS | {"product": text(), "product_data": hash_of(NEW_PRODUCT, "name")},
    ("currency", "unit_amount"),
)
DEFAULT_PRICE = hash_of(AMOUNT_FIELDS | {"metadata": metadata()}, "currency", "unit_amount")

ROUTES = (
    Route("GET", "/v1/account", _get_account),
    Route("POST", "/v1/customers", _create_customer, Params(CUSTOMER_FIELDS)),
    Route("GET", "/v1/customers", _list_customers, Params(FILTERED_PAGING | {"email": text()})),
    Route("GET", "/v1/customers/{id}", _get_customer),
    Route("POST", "/v1/customers/{id}", _update_customer, Params(CUSTOMER_FIELDS)),
    Route("DELETE", "/v1/customers/{id}", _delete_customer),
    Route(
        "POST",
        "/v1/products",
        _create_product,
        Params(PRODUCT_FIELDS | {"id": text(), "default_price_data": DEFAULT_PRICE}, ("name",)),
    ),
    Route("GET", "/v1/products", _list_products, PRODUCT_LIST),
    Route("GET", "/v1/products/{id}", _get_product),
    Route("POST", "/v1/products/{id}", _update_product, Params(PRODUCT_FIELDS | {"default_price": text()})),
    Route("POST", "/v1/prices", _create_price, NEW_PRICE),
    Route("GET", "/v1/prices", _list_prices, PRICE_LIST),
    Route("GET", "/v1/prices/{id}", _get_price),
    Route("POST", "/v1/prices/{id}", _update_price, Params(PRICE_FIELDS)),
)
