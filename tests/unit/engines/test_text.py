"""Untrusted text is fit for a terminal and for an answer."""

import pytest

from serve_app.engines.text import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch.nn.Linear", "torch.nn.Linear"),
        ("Schraube für 8 mm", "Schraube für 8 mm"),
        ("\x1b[31m\n", "\\x1b[31m\\n"),
        ("a" * 101, "a" * 97 + "..."),
        ("\x00" * 30, "\\x00" * 24 + "\\..."),
        (3, "3"),
    ],
)
def test_text_is_printable_and_short(text: object, expected: str) -> None:
    """Escapes for what is not printable; 100 characters."""
    assert printable(text) == expected
