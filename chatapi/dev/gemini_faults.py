"""Which faults the Gemini stand-in is to show, for which prompt and how often."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

STATUS_KINDS = frozenset({"400", "401", "403", "404", "429", "500", "503", "504"})
CONNECTION_KINDS = frozenset({"hang", "hang_in_stream", "drip", "cut"})
ANSWER_KINDS = frozenset(
    {
        *("empty", "empty_text", "blocked", "safety", "max_tokens", "no_finish"),
        *("bad_json", "error_in_stream", "too_long"),
    }
)
KINDS = STATUS_KINDS | CONNECTION_KINDS | ANSWER_KINDS

DIRECTIVE = re.compile(r"\[\[([^\[\]]{1,200})\]\]")
DIRECTIVE_WORD = re.compile(r"(fault|times|latency_ms|chunk_ms|retry_after_ms|chunks|words)=(\w{1,20})")
MAX_REMEMBERED_DIRECTIVES = 1000


@dataclass(frozen=True)
class Fault:
    """One way to misbehave; kind None answers well, only as late as `latency_ms` and `chunk_ms` say.

    `times` None means always. `match` limits it to prompts whose last user text holds that substring. `chunks` is how
    many elements of a stream come before hang_in_stream or cut, `words` how long the reply is, 0 for its usual length.
    """

    kind: str | None = None
    times: int | None = None
    latency_ms: int = 0
    chunk_ms: int = 0
    retry_after_ms: int | None = None
    match: str | None = None
    chunks: int | None = None
    words: int = 0

    def __post_init__(self) -> None:
        if self.kind is not None and (not isinstance(self.kind, str) or self.kind not in KINDS):
            raise ValueError(f"kind must be one of {', '.join(sorted(KINDS))}")
        for name in ("times", "latency_ms", "chunk_ms", "retry_after_ms", "chunks", "words"):
            value = getattr(self, name)
            if value is None and name in {"times", "retry_after_ms", "chunks"}:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a whole number from 0")
        if self.match is not None and not isinstance(self.match, str):
            raise ValueError("match must be a text")

    @classmethod
    def from_fields(cls, fields: object) -> Fault:
        """Build one from parsed JSON; ValueError says what is wrong with it."""
        if not isinstance(fields, Mapping):
            raise ValueError("A fault is a JSON object")  # noqa: TRY004 - callers answer any ValueError with 400.
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(f"Unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
        return cls(**fields)


WELL_BEHAVED = Fault()


class FaultBook:
    """The faults asked for, with what is left of each; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[tuple[Fault, list[int]]] = []
        self._directives_used: OrderedDict[str, int] = OrderedDict()

    def add(self, fault: Fault) -> None:
        """Show `fault` from now on, after those asked for before it are used up."""
        with self._lock:
            self._entries.append((fault, [0]))

    def clear(self) -> None:
        """Behave well again."""
        with self._lock:
            self._entries.clear()
            self._directives_used.clear()

    def take(self, text: str) -> Fault:
        """Return what applies to a prompt whose last user text is `text`, and count it as shown.

        A directive within the text goes before what was added.
        """
        directive = directive_in(text)
        with self._lock:
            if directive is not None:
                used = self._directives_used.pop(text, 0)
                self._directives_used[text] = used + 1
                while len(self._directives_used) > MAX_REMEMBERED_DIRECTIVES:
                    self._directives_used.popitem(last=False)
                if directive.times is None or used < directive.times:
                    return directive
            for fault, used_times in self._entries:
                is_left = fault.times is None or used_times[0] < fault.times
                if is_left and (fault.match is None or fault.match in text):
                    used_times[0] += 1
                    return fault
        return WELL_BEHAVED


def directive_in(text: str) -> Fault | None:
    """Read directives such as `[[fault=503 times=2]]`; anything else in brackets is ordinary text."""
    fields: dict[str, object] = {}
    for match in DIRECTIVE.finditer(text):
        words = [DIRECTIVE_WORD.fullmatch(word) for word in match[1].split()]
        if not words:
            continue
        for word in words:
            if word is None:
                return None
            name, value = word[1], word[2]
            if name == "fault":
                fields["kind"] = value
            elif value.isascii() and value.isdigit():
                fields[name] = int(value)
            else:
                return None
    try:
        return Fault.from_fields(fields) if fields else None
    except ValueError:
        return None
