"""Whose turn it is, and what is remembered of each file."""

from serve_app.engines.files import FileIdentity
from serve_app.loading.prepare_queue import PrepareQueue

A, B, C = "a.pt", "b.pt", "c.pt"


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _identity(path: str, change: int = 0) -> FileIdentity:
    return path, 1, change, 1


def _drain(queue: PrepareQueue) -> list[str]:
    order = []
    while queue:
        (path,) = queue.peek()
        order.append(path)
        queue.settle(_identity(path))
    return order


def test_opened_files_go_first_and_nothing_twice() -> None:
    """The rest in the order of the registry."""
    queue = PrepareQueue(_Clock())
    assert not queue
    queue.want([A, B, C])
    queue.urge(C)
    queue.urge(B)
    queue.want([A, B, C])
    assert queue
    assert _drain(queue) == [C, B, A]
    assert not queue


def test_new_list_replaces_the_old_but_not_what_was_urged() -> None:
    """A version that was taken away is not waited for."""
    queue = PrepareQueue(_Clock())
    queue.want([A, B])
    queue.urge(C)
    queue.want([B])
    assert _drain(queue) == [C, B]


def test_several_can_be_looked_at() -> None:
    """In their order, without taking any out."""
    queue = PrepareQueue(_Clock())
    assert queue.peek(5) == []
    queue.want([A, B])
    queue.urge(C)
    assert queue.peek(2) == [C, A]
    assert queue.peek(5) == [C, A, B]


def test_what_is_only_wanted_can_be_dropped_at_once() -> None:
    """What was urged stays, also if it is wanted as well."""
    queue = PrepareQueue(_Clock())
    queue.want([A, B, C])
    queue.urge(C)
    assert queue.is_urged(C)
    assert not queue.is_urged(A)
    assert queue.want_no_more() == 2
    assert _drain(queue) == [C]


def test_unchanged_files_are_not_due_again() -> None:
    """Changed ones are."""
    queue = PrepareQueue(_Clock())
    queue.settle(_identity(A))
    queue.refuse(_identity(B))
    queue.want([A, B])
    assert not queue.is_due(_identity(A))
    assert not queue.is_due(_identity(B))
    assert queue.is_due(_identity(A, change=1))
    assert queue.is_due(_identity(B, change=1))
    assert queue.is_due(_identity(C))


def test_prepared_file_that_opens_plainly_is_due_again_after_a_while() -> None:
    """Its prepared weights were evicted; one that was refused stays so."""
    clock = _Clock()
    queue = PrepareQueue(clock)
    queue.settle(_identity(A))
    queue.refuse(_identity(B))
    queue.urge(A)
    queue.urge(B)
    clock.now = 599
    assert not queue.is_due(_identity(A))
    clock.now = 600
    assert queue.is_due(_identity(A))
    assert not queue.is_due(_identity(B))
    queue.drop(A)
    queue.want([A])
    assert not queue.is_due(_identity(A))


def test_failed_file_tries_once_more_after_the_others() -> None:
    """Then it is set aside, until it changes."""
    queue = PrepareQueue(_Clock())
    queue.want([A, B])
    assert not queue.fail(_identity(A))
    assert queue.peek() == [B]
    queue.settle(_identity(B))
    assert queue.peek() == [A]
    assert queue.is_due(_identity(A))
    assert queue.fail(_identity(A))
    assert not queue
    assert not queue.is_due(_identity(A))
    assert not queue.fail(_identity(A, change=1))
