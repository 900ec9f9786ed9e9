"""The parameters of a predict call: one table parses, explains and documents them."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve_app.errors import InvalidParameterError
from serve_app.types import MAX_COPIES, MAX_DET, MAX_IMGSZ, MIN_IMGSZ, Copies, PredictParams

Pairs = Sequence[tuple[str, str]]

# Python's own float() and int() also take nan, 1_000, surrounding space and digits of any script.
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][+-]?[0-9]{1,2})?"
)
_INTEGER = re.compile(r"[0-9]{1,9}")
_SIZE = re.compile(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?")
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
MAX_PAGE = 1000
"""Models on one page of the listing."""
_MAX_PAIRS = 1000
_DEFAULTS = PredictParams()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `parse` raises ValueError; `expected` completes 'expected ...'."""

    name: str
    parse: Callable[[str], object]
    expected: str
    schema: Mapping[str, Any]
    description: str

    def value(self, text: str) -> object:
        """Return what `text` means; raise InvalidParameterError when it is not possible."""
        try:
            return self.parse(text)
        except ValueError:
            raise InvalidParameterError(
                f"{self.name}={text[:100]!r}: expected {self.expected}"
            ) from None


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text)


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _count(text: str, maximum: int) -> int:
    value = _integer(text)
    if not 1 <= value <= maximum:
        raise ValueError(text)
    return value


def _copies(text: str) -> Copies:
    return None if text == "all" else _count(text, MAX_COPIES)


def _size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    size = int(match[1]), int(match[2] or match[1])
    if not all(MIN_IMGSZ <= side <= MAX_IMGSZ for side in size):
        raise ValueError(text)
    return size


def _classes(text: str) -> tuple[int, ...]:
    return tuple(_integer(part.strip()) for part in text.split(","))


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text.lower()]


def _format(text: str) -> str:
    if text not in ("json", "image"):
        raise ValueError(text)
    return text


_SIZES = f"{MIN_IMGSZ} to {MAX_IMGSZ} pixels, such as 640 or 480x640 (height x width)"
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
TIMEOUT = Parameter(
    "timeout_s",
    _seconds,
    "a number of seconds more than 0, such as 2.5",
    {"type": "number", "exclusiveMinimum": 0},
    "Answer within this time or give up (504). The server's own limit is the default.",
)
LIMIT = Parameter(
    "limit",
    partial(_count, maximum=MAX_PAGE),
    f"a whole number from 1 to {MAX_PAGE}",
    {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": MAX_PAGE},
    "At most so many models.",
)
OFFSET = Parameter(
    "offset",
    _integer,
    "a whole number from 0",
    {"type": "integer", "minimum": 0, "default": 0},
    "Leave out so many models at the beginning.",
)
COPIES = Parameter(
    "copies",
    _copies,
    f"a whole number from 1 to {MAX_COPIES}, or all",
    {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_COPIES}, {"const": "all"}]},
    "On how many replicas, 1 by default; `all`: on every replica.",
)
MODEL = Parameter("model", str, "name or name@version", {"type": "string"}, "The model reference.")
COMMON = (
    Parameter(
        "conf",
        _share,
        "a number from 0 to 1, such as 0.25",
        {**_PROBABILITY, "default": _DEFAULTS.conf},
        "Leave out findings of lower confidence.",
    ),
    Parameter(
        "iou",
        _share,
        "a number from 0 to 1, such as 0.7",
        {**_PROBABILITY, "default": _DEFAULTS.iou},
        "Of boxes that overlap more than this, keep the most confident.",
    ),
    Parameter(
        "imgsz",
        _size,
        _SIZES,
        {"type": "string", "pattern": "^[0-9]+(x[0-9]+)?$", "example": "640"},
        f"Input size in pixels, one side or HEIGHTxWIDTH, {MIN_IMGSZ} to {MAX_IMGSZ}; "
        "the model's own by default.",
    ),
    Parameter(
        "max_det",
        partial(_count, maximum=MAX_DET),
        f"a whole number from 1 to {MAX_DET}",
        {"type": "integer", "minimum": 1, "maximum": MAX_DET, "default": _DEFAULTS.max_det},
        "At most so many findings in one picture.",
    ),
    Parameter(
        "classes",
        _classes,
        "class numbers such as 0 or 0,2,5",
        {"type": "string", "pattern": "^[0-9]+(,[0-9]+)*$", "example": "0,2"},
        "Only these class numbers, separated by commas or given repeatedly.",
    ),
    Parameter(
        "normalize",
        _boolean,
        "true or false",
        {"type": "boolean", "default": False},
        "Give coordinates as shares of width and height.",
    ),
    Parameter(
        "format",
        _format,
        "json or image",
        {"type": "string", "enum": ["json", "image"], "default": "json"},
        "`image` answers with the one picture as JPEG, its findings drawn.",
    ),
    TIMEOUT,
)
WITH_MODEL = (
    MODEL,
    Parameter("model_type", str, MODEL.expected, MODEL.schema, "Another name of `model`."),
    *COMMON,
    Parameter("image_size", _size, _SIZES, {"type": "string"}, "Another name of `imgsz`."),
)
_OTHER_NAMES = {"model_type": "model", "image_size": "imgsz"}
_REPEATABLE = "classes"


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What a client asked for, checked."""

    params: PredictParams
    normalize: bool
    annotate: bool
    timeout_s: float
    model: str | None


def parse_values(pairs: Pairs, known: Iterable[Parameter]) -> dict[str, Any]:
    """Return each given parameter's value by its proper name.

    Raises:
        InvalidParameterError: one is unknown, malformed, out of range or contradicts another
    """
    if len(pairs) > _MAX_PAIRS:
        raise InvalidParameterError(f"{len(pairs)} parameters were given: at most {_MAX_PAIRS}")
    table = {parameter.name: parameter for parameter in known}
    values: dict[str, Any] = {}
    repeated: dict[int, None] = {}  # keeps the order, drops what is named twice
    for given, text in pairs:
        if given not in table:
            raise InvalidParameterError(_unknown(given, table))
        value: Any = table[given].value(text)
        name = _OTHER_NAMES.get(given, given)
        if name == _REPEATABLE:
            repeated.update(dict.fromkeys(value))
        elif values.setdefault(name, value) != value:
            raise InvalidParameterError(f"{name} is given twice, with different values: drop one")
    if repeated:
        values[_REPEATABLE] = tuple(repeated)
    return values


def parse_options(pairs: Pairs, known: Iterable[Parameter], max_timeout_s: float) -> PredictOptions:
    """Return the options that the parameters of a predict call spell out.

    Raises:
        InvalidParameterError: one is unknown, malformed, out of range or contradicts another
    """
    values = parse_values(pairs, known)
    timeout_s = timeout_of(values, max_timeout_s)
    model = values.pop("model", None)
    normalize = values.pop("normalize", False)
    annotate = values.pop("format", "json") == "image"
    return PredictOptions(PredictParams(**values), normalize, annotate, timeout_s, model)


def timeout_of(values: dict[str, Any], max_timeout_s: float) -> float:
    """Take timeout_s out of `values`; the longest time is the default.

    Raises:
        InvalidParameterError: it is longer than that
    """
    timeout_s: float = values.pop(TIMEOUT.name, max_timeout_s)
    if timeout_s > max_timeout_s:
        raise InvalidParameterError(
            f"timeout_s={timeout_s:g}: this server gives a request at most {max_timeout_s:g} s"
        )
    return timeout_s


def _unknown(name: str, table: Mapping[str, Parameter]) -> str:
    hint = f"known are {', '.join(table)}" if table else "there are none here"
    if name in ("source", "url"):
        hint += "; pictures by URL or base64 are not supported, send the picture's own bytes"
    return f"unknown parameter {name[:100]!r}: {hint}"
