"""Parameters: what is accepted, and what the refusal says."""

import httpx
import pytest

from serve_app.errors import InvalidParameterError
from serve_app.ingress.parameters import COMMON, WITH_MODEL, parse_options, parse_values
from tests.unit.ingress.fakes import FakeBackend, picture

URL = "/v1/models/parts/predict"


_NUMBERS = (
    "",
    "nan",
    "inf",
    "-0.1",
    "1.01",
    "1_0",
    " 0.5",
    "0.5 ",
    "\u0660.\u0665",
    "0x1",
    "1e999",
)
_SIZES = (
    "",
    "31",
    "1921",
    "640x",
    "x640",
    "640x31",
    "640.0",
    "-640",
    "[640]",
    "64x64x3",
    "9" * 5000,
)
WRONG = {
    "conf": _NUMBERS,
    "iou": (*_NUMBERS, "9" * 400),
    "imgsz": _SIZES,
    "max_det": ("", "0", "301", "1.5", "-1", "9" * 5000),
    "classes": ("", "-1", "1,,2", "a", "0;1", "1.0"),
    "normalize": ("", "2", "maybe"),
    "format": ("", "xml", "JSON "),
    "timeout_s": ("", "0", "-1", "nan", "inf", "61"),
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts]
)
def test_a_wrong_value_is_refused_by_name(name: str, text: str) -> None:
    """The message names the parameter; Python's lenient number syntax does not count."""
    with pytest.raises(InvalidParameterError, match=name):
        parse_options([(name, text)], COMMON, 60.0)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("conf", "0", 0.0),
        ("conf", "1.", 1.0),
        ("conf", ".5", 0.5),
        ("conf", "5e-2", 0.05),
        ("imgsz", "640", (640, 640)),
        ("imgsz", "32X1920", (32, 1920)),
        ("max_det", "300", 300),
        ("classes", "2, 0,2", (2, 0)),
    ],
)
def test_a_right_value_is_understood(name: str, text: str, value: object) -> None:
    """The edges of each range belong to it."""
    options = parse_options([(name, text)], COMMON, 60.0)
    assert getattr(options.params, name) == value


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    """A misspelt parameter must not silently do nothing."""
    with pytest.raises(InvalidParameterError, match="'confidence'.*conf, iou, imgsz"):
        parse_options([("confidence", "0.5")], COMMON, 60.0)


def test_two_different_values_are_refused() -> None:
    """The same value twice is no contradiction."""
    assert parse_options([("conf", "0.5"), ("conf", "0.50")], COMMON, 60.0).params.conf == 0.5
    with pytest.raises(InvalidParameterError, match="conf is given twice"):
        parse_options([("conf", "0.5"), ("conf", "0.4")], COMMON, 60.0)
    with pytest.raises(InvalidParameterError, match="imgsz is given twice"):
        parse_options([("imgsz", "320"), ("image_size", "640x640")], WITH_MODEL, 60.0)


async def test_the_refusal_reaches_the_client(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """The query and the form are held to the same rules."""
    files = {"file": ("a", picture())}
    for answer in (
        await client.post(f"{URL}?conf=high", content=picture()),
        await client.post(URL, files=files, data={"conf": "high"}),
        await client.post(f"{URL}?source=http://x", content=picture()),
        await client.post(f"{URL}?model=parts", content=picture()),
        await client.get("/v1/models?page=2"),
        await client.get("/v1/models?limit=0"),
        await client.post("/v1/models/parts/load?timeout_s=1000"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert not backend.predicted


def test_a_flood_of_parameters_is_refused_at_once() -> None:
    """Each costs time on the event loop that all requests share."""
    pairs = [("classes", str(number)) for number in range(1000)]
    assert parse_values(pairs, COMMON)["classes"] == tuple(range(1000))
    with pytest.raises(InvalidParameterError, match="1001 parameters were given: at most 1000"):
        parse_values([*pairs, ("classes", "1000")], COMMON)
