"""Reads `model.yaml`, what a model's author says of the model.

A card never stops a model from being served: one that cannot be read is logged and left out.
"""

import datetime
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from serve_app.types import ModelCard, Task

logger = logging.getLogger(__name__)

MAX_CARD_BYTES = 64 * 1024
_MAX_DEPTH = 8
# The C parser is ten times as fast and constructs the same plain values.
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _date_as_text(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime.date) else value


_Fact = Annotated[str | int | FiniteFloat | bool | None, BeforeValidator(_date_as_text)]


class _CardFile(BaseModel):
    """The keys that a card may have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    description: str | None = None
    architecture: str | None = None
    task: Annotated[Task | None, Field(strict=False)] = None
    classes: list[str] = []
    imgsz: Annotated[int | None, Field(gt=0)] = None
    training: dict[str, _Fact] = {}
    evaluation: dict[str, _Fact] = {}
    license: str | None = None


class CardError(ValueError):
    """A card does not say what it should; the message tells where."""


def read_card(path: Path) -> ModelCard:
    """Return the card in `path`, an empty one when it is broken, which is logged."""
    try:
        with path.open("rb") as file:
            return parse_card(file.read(MAX_CARD_BYTES + 1))
    except (OSError, CardError) as error:
        logger.warning("the card %s is ignored: %s", path, error)
        return ModelCard()


def parse_card(text: bytes) -> ModelCard:
    """Return the card that `text` holds.

    Raises:
        CardError: it is too long, no YAML, or has unknown keys or wrong types
    """
    if len(text) > MAX_CARD_BYTES:
        raise CardError(f"it is longer than {MAX_CARD_BYTES} bytes")
    try:
        _check_structure(text)
        content = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader, see above
        card = _CardFile.model_validate({} if content is None else content)
    except ValidationError as error:
        raise CardError(_explain(error)) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise CardError(" ".join(str(error).split())) from error
    return ModelCard(**{**_fields(card), "classes": tuple(card.classes)})


def _fields(card: _CardFile) -> Mapping[str, Any]:
    return {name: getattr(card, name) for name in _CardFile.model_fields}


def _check_structure(text: bytes) -> None:
    """Refuse what makes a small YAML file expensive: deep nesting crashes the C parser."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise CardError("it uses a YAML alias (*name): write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise CardError(f"it is nested more than {_MAX_DEPTH} deep")


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}; known are {', '.join(_CardFile.model_fields)}"
    return f"{where}: {first['msg']}"
