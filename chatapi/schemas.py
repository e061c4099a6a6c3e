"""Schema base and fields shared by all features: strict text, numbers, times."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cached_property
from types import NoneType
from typing import Any, ClassVar
from unicodedata import category

from marshmallow import INCLUDE, RAISE, Schema, ValidationError, fields, missing
from marshmallow.validate import Length, Range

MAX_EMAIL_LENGTH = 254
"""RFC 5321, 4.5.3.1.3, less the angle brackets."""

_BIDI_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SHOWN_CONTROLS = r"\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_DIGITS = re.compile(r"[0-9]{1,9}", re.ASCII)
_MOBILE_NUMBER = re.compile(r"\+?[1-9][0-9]{1,14}", re.ASCII)


class ApiSchema(Schema):
    """Base of all schemas: unknown fields are refused, members keep their order."""

    class Meta:
        unknown = RAISE

    LEFT_OUT_WHEN_NULL: ClassVar[frozenset[str]] = frozenset()
    """Members that are there only when there is something to say."""

    def _serialize(self, obj: Any, *, many: bool = False) -> Any:
        """Return `obj` as marshmallow would, in a fifth of the time: half of a page of messages was spent here.

        What is shown is a dict or has attributes, of exactly a field's name; marshmallow looks for dotted names, for
        items and for attributes, in five calls for each field of each message. Text is shown as it is.
        """
        if many and obj is not None:
            return [self._serialize(each) for each in obj]
        shown = self.dict_class()
        is_dict = isinstance(obj, dict)
        for name, key, field, as_it_is, is_left_out_when_null in self._members:
            value = obj.get(name, missing) if is_dict else getattr(obj, name, missing)
            if type(value) in as_it_is:
                pass
            elif value is missing:  # It may have a default, or not be read at all.
                value = field.serialize(name, obj, accessor=self.get_attribute)
            else:
                value = field._serialize(value, name, obj)  # noqa: SLF001 - it is what fields define
            if value is None and is_left_out_when_null:
                continue
            if value is not missing:
                shown[key] = value
        return shown

    @cached_property
    def _members(self) -> list[tuple[str, str, fields.Field[Any], Collection[type], bool]]:
        """What there is to know of each field that is shown: it is the same for as long as the schema is."""
        return [
            (name, field.data_key or name, field, AS_IT_IS.get(type(field), ()), name in self.LEFT_OUT_WHEN_NULL)
            for name, field in self.dump_fields.items()
        ]


class Text(fields.String):
    """Text that PostgreSQL can hold and UTF-8 can carry: no NUL, no lone surrogate.

    With `trim`, surrounding white space goes before the length is checked.
    """

    default_error_messages = {  # noqa: RUF012 - marshmallow declares it so
        "nul": "Must not contain NUL.",
        "surrogate": "Must not contain lone surrogates.",
    }

    refused = r"\u0000"
    """What must not be in it, as a class of characters in the OpenAPI document."""

    def __init__(self, *, shortest: int = 0, longest: int, trim: bool = False, **kwargs: Any) -> None:
        some = f"[^{self.refused}]*"
        # Those that Python takes for white space too, and ECMA-262's \s (OpenAPI's dialect) does not.
        blank = r"\s\u001c-\u001f\u0085"
        pattern = rf"^{some}[^{blank}{self.refused}]{some}$" if trim and shortest else f"^{some}$"
        metadata = {"pattern": pattern, **kwargs.pop("metadata", {})}
        super().__init__(validate=Length(min=shortest or None, max=longest), metadata=metadata, **kwargs)
        self.trim = trim

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = str(super()._deserialize(value, attr, data, **kwargs))
        if "\x00" in text:
            raise self.make_error("nul")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.make_error("surrogate") from error
        return text.strip() if self.trim else text


class Name(Text):
    """Text shown beside other text, such as a title, so of one line, with something to see, and without controls.

    Bidirectional controls among them: they could garble what follows.
    """

    refused = _SHOWN_CONTROLS

    default_error_messages = {  # noqa: RUF012
        "control": "Must not contain control characters.",
        "invisible": "Must contain something visible.",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if _BIDI_CONTROLS.search(text) or any(category(character) == "Cc" for character in text):
            raise self.make_error("control")
        if text and not any(character.isprintable() and not character.isspace() for character in text):
            raise self.make_error("invisible")
        return text


class Email(fields.Email):
    """An e-mail address, of visible characters only, and of a length that mail systems take."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate=Length(max=MAX_EMAIL_LENGTH), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        address = str(super()._deserialize(value, attr, data, **kwargs))
        if not address.isprintable() or " " in address:
            raise self.make_error("invalid")
        return address


class MobileNumber(fields.String):
    """A mobile number, kept as `+` and its digits: `+15551234567` and `15551234567` are one (E.164)."""

    def __init__(self, **kwargs: Any) -> None:
        shown = {"pattern": f"^{_MOBILE_NUMBER.pattern}$", "example": "+15551234567"}
        super().__init__(metadata=shown, **kwargs)

    default_error_messages = {"number": "Must be an optional + and 2 to 15 digits, not beginning with 0."}  # noqa: RUF012

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        number = str(super()._deserialize(value, attr, data, **kwargs))
        if not _MOBILE_NUMBER.fullmatch(number):
            raise self.make_error("number")
        return "+" + number.removeprefix("+")


class Flag(fields.Boolean):
    """True or false, and nothing that may be taken for it, such as 1 or "yes"."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return bool(super()._deserialize(value, attr, data, **kwargs))


class QueryCount(fields.Integer):
    """A whole number in a query string, in plain ASCII digits, from 1 to `most`."""

    def __init__(self, *, most: int, default: int) -> None:
        shown = {"description": "How many there may be in the answer"}
        super().__init__(load_default=default, validate=Range(1, most), metadata=shown)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, str) and not _DIGITS.fullmatch(value):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class Timestamp(fields.DateTime):
    """A time as RFC 3339 in UTC with `Z`."""

    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:  # noqa: ARG002
        return None if value is None else rfc3339(value)


def rfc3339(value: datetime) -> str:
    """Return `value` as RFC 3339 in UTC with `Z` and microseconds."""
    in_utc = value if value.tzinfo is UTC else value.astimezone(UTC)
    # `isoformat` takes twice as long, half of it for the offset.
    return "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ" % (  # noqa: UP031 - an f-string takes as long as `isoformat`
        in_utc.year,
        in_utc.month,
        in_utc.day,
        in_utc.hour,
        in_utc.minute,
        in_utc.second,
        in_utc.microsecond,
    )


AS_IT_IS: Mapping[type, tuple[type, ...]] = {
    **dict.fromkeys((fields.String, fields.UUID, Text, Name), (str, NoneType)),
    **dict.fromkeys((fields.Nested, Timestamp), (NoneType,)),
}
"""Of which types the values are that these fields show as they are."""


class NothingSchema(ApiSchema):
    """No member at all; there need be no body either."""


class DoneSchema(ApiSchema):
    """What was done."""

    message = fields.String(required=True)


class ErrorSchema(Schema):
    """The one envelope of every error; some have more to say, such as when a limit ends."""

    class Meta:
        unknown = INCLUDE

    code = fields.Integer(required=True, metadata={"description": "HTTP status", "example": 404})
    status = fields.String(required=True, metadata={"description": "Its phrase", "example": "Not Found"})
    error = fields.String(required=True, metadata={"description": "Stable name for programs", "example": "not_found"})
    message = fields.String(required=True, metadata={"description": "A sentence for people"})
    errors = fields.Dict(metadata={"description": "What is wrong per field, on 422"})


__all__ = [
    "ApiSchema",
    "DoneSchema",
    "ErrorSchema",
    "Flag",
    "MobileNumber",
    "Name",
    "NothingSchema",
    "QueryCount",
    "Text",
    "Timestamp",
    "ValidationError",
    "rfc3339",
]
