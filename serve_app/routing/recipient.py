"""Which replica a call went to, told to whoever waits for its answer. Pure.

Ray makes the router and hides it, and a call's answer does not say who owes it. What a caller and
the router do share is the context that the call is made in: the caller opens a `Sent` there, and
the router notes in it.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

Ask = Callable[[], Awaitable[object]]


class StalledError(Exception):
    """The replica is there, but has not got on with its work for too long."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """A replica that a call was sent to.

    ask: asks it for a sign of life, outside the queue of its requests; may raise StalledError
    is_silent: tells the router that it gave none
    everybody: returns what asks each replica whether it is there, this one included, by id
    """

    id: str
    ask: Ask
    is_silent: Callable[[], object]
    everybody: Callable[[], Mapping[str, Ask]]


@dataclass(slots=True)
class Sent:
    """Where a call is now; None while it waits for a place."""

    to: Recipient | None = None


_SENT: ContextVar[Sent | None] = ContextVar("sent", default=None)


@contextmanager
def following() -> Iterator[Sent]:
    """Return what will say where a call goes that is made in this block."""
    sent = Sent()
    token = _SENT.set(sent)
    try:
        yield sent
    finally:
        _SENT.reset(token)


def note(recipient: Recipient | None) -> None:
    """Note where the call of this context was sent, or that it waits, if anybody follows it."""
    sent = _SENT.get()
    if sent is not None:
        sent.to = recipient
