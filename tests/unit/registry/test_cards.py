"""Cards: what they may say, and that a bad one is refused with a reason."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.registry.cards import MAX_CARD_BYTES, CardError, parse_card, read_card
from serve_app.types import ModelCard, Task

FULL = b"""
description: Screws and nuts
architecture: yolo11n
task: segment
classes: [bolt, nut]
imgsz: 640
training: {scenes: 2400, start: scratch, date: 2026-01-31, lr: 0.01, cos: true, note: null}
evaluation: {map50: 0.97}
license: AGPL-3.0-only
"""


def test_a_full_card_is_typed() -> None:
    """Every key lands in its field; a date becomes text."""
    assert parse_card(FULL) == ModelCard(
        description="Screws and nuts",
        architecture="yolo11n",
        task=Task.SEGMENT,
        classes=("bolt", "nut"),
        imgsz=640,
        training={
            "scenes": 2400,
            "start": "scratch",
            "date": "2026-01-31",
            "lr": 0.01,
            "cos": True,
            "note": None,
        },
        evaluation={"map50": 0.97},
        license="AGPL-3.0-only",
    )
    hash(parse_card(FULL))


@pytest.mark.parametrize("text", [b"", b"{}", b"# nothing\n", b"---\n"])
def test_an_empty_card_is_a_card(text: bytes) -> None:
    """Everything is optional."""
    assert parse_card(text) == ModelCard()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"task: [", "expected"),
        (b"- a", "valid dictionary"),
        (b"tasks: detect", "unknown key 'tasks'; known are description"),
        (b"task: fly", "task: "),
        (b"imgsz: big", "imgsz: "),
        (b"imgsz: 0", "imgsz: "),
        (b"classes: bolt", "classes: "),
        (b"classes: [1, 2]", "classes.0: "),
        (b"description: [a]", "description: "),
        (b"evaluation: {map50: .nan}", "evaluation.map50"),
        (b"evaluation: {map50: {a: 1}}", "evaluation.map50"),
        (b"a: &x 1\nb: *x", "alias"),
        (b"training: " + b"[" * 20, "nested more than 8 deep"),
        (b"training: " + b"[" * 60_000, "nested more than 8 deep"),
        (b"- " * 30_000, "nested more than 8 deep"),
        (b"description: " + b"a" * MAX_CARD_BYTES, "longer than 65536 bytes"),
        (b"description: !!python/object/apply:os.system ['true']", "could not determine"),
        (b"training: {date: 2026-99-99}", "month must be in"),
        (b"training: {a: " + b"9" * 6000 + b"}", "digits"),
        (b"\xff\xfe\xff", "."),
        (b'description: "\\ud800"', "."),
    ],
)
def test_a_bad_card_is_refused_with_a_reason(text: bytes, reason: str) -> None:
    """One line that tells where."""
    with pytest.raises(CardError, match=reason) as caught:
        parse_card(text)
    assert "\n" not in str(caught.value)


def test_a_bad_card_reads_as_an_empty_one(tmp_path: Path) -> None:
    """It never stops its model from being served."""
    path = tmp_path / "model.yaml"
    path.write_bytes(b"task: [")
    assert read_card(path) == ModelCard()
    assert read_card(tmp_path / "none.yaml") == ModelCard()


@given(st.one_of(st.binary(max_size=200), st.text("[]{}-:&*!|>'\"\n ab0?#%", max_size=60)))
def test_any_bytes_are_a_card_or_refused(text: bytes | str) -> None:
    """No file an author can write gets past CardError."""
    try:
        parse_card(text if isinstance(text, bytes) else text.encode())
    except CardError:
        return
