"""The models that one scan found, and how a reference finds its version."""

import difflib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from serve_app.errors import ModelNotFoundError
from serve_app.types import ModelKey, ModelRef, ModelSpec

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_NUMERIC = re.compile(r"[vV]?([0-9]+(?:\.[0-9]+)*)")
_NEAR_NAMES = 5
_COMPARED_ON_EACH_SIDE = 100
"""Comparing a name with 10,000 others would hold up the event loop for 0.1 s."""


def version_order(version: str) -> tuple[int, tuple[int, ...], str]:
    """Return a key that sorts versions from the lowest to the highest.

    `3`, `1.10` and `v8.4.0` compare as numbers, part by part. Anything else (`dev`, `2026-01-31`)
    compares as text and lies below every number, so that a folder named `old` never takes over.
    """
    match = _NUMERIC.fullmatch(version)
    if match is None:
        return (0, (), version)
    return (1, tuple(int(part) for part in match[1].split(".")), version)


class Snapshot:
    """The registered models as they were at one moment; it never changes.

    Sources are given in order of precedence: where two hold the same name, a bare reference stays
    within the first, so that the operator's own `yolo11n` is never replaced by the official one.
    """

    def __init__(self, sources: Iterable[Sequence[ModelSpec]]) -> None:
        self._specs: dict[ModelKey, ModelSpec] = {}
        self._by_name: dict[str, list[ModelSpec]] = {}
        self._latest: dict[str, ModelKey] = {}
        for specs in sources:
            self._add(specs)
        self._names = sorted(self._latest)
        self.specs: tuple[ModelSpec, ...] = tuple(
            spec for name in self._names for spec in _in_order(self._by_name[name])
        )

    def _add(self, specs: Sequence[ModelSpec]) -> None:
        latest: dict[str, ModelKey] = {}
        for spec in specs:
            if self._specs.setdefault(spec.key, spec) is spec:
                self._by_name.setdefault(spec.key.name, []).append(spec)
            best = latest.get(spec.key.name)
            if best is None or version_order(best.version) < version_order(spec.key.version):
                latest[spec.key.name] = spec.key
        self._latest = latest | self._latest

    def with_name(self, name: str, sources: Iterable[Sequence[ModelSpec]]) -> "Snapshot":
        """Return the same models, but of one name those in `sources`: quick, however many others.

        sources: in the order of precedence, with entries of this name only
        """
        of_name, changed = Snapshot(sources), Snapshot(())
        changed._by_name = _replaced(self._by_name, [name], of_name._by_name)
        changed._latest = _replaced(self._latest, [name], of_name._latest)
        old = [spec.key for spec in self.of_name(name)]
        changed._specs = _replaced(self._specs, old, of_name._specs)
        place = bisect_left(self._names, name)
        rest = place + (name in self._latest)
        changed._names = [*self._names[:place], *of_name._names, *self._names[rest:]]
        begin = bisect_left(self.specs, name, key=_name_of)
        end = bisect_right(self.specs, name, key=_name_of)
        changed.specs = (*self.specs[:begin], *of_name.specs, *self.specs[end:])
        return changed

    def of_name(self, name: str) -> Sequence[ModelSpec]:
        """Return the entries of a name in the order of the sources; none where it is unknown."""
        return tuple(self._by_name.get(name, ()))

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a name from the lowest to the highest."""
        return tuple(spec.key.version for spec in _in_order(self.of_name(name)))

    def resolve(self, ref: ModelRef) -> ModelKey:
        """Return the version that `ref` means; a bare name means the highest.

        Raises:
            ModelNotFoundError: it does not exist; the message tells what does
        """
        if ref.name not in self._latest:
            raise ModelNotFoundError(self._unknown_name(ref.name))
        if ref.version is None:
            return self._latest[ref.name]
        key = ModelKey(ref.name, ref.version)
        if key not in self._specs:
            raise ModelNotFoundError(self._unknown_version(key))
        return key

    def spec(self, key: ModelKey) -> ModelSpec:
        """Return the entry of `key`.

        Raises:
            ModelNotFoundError: it does not exist; the message tells what does
        """
        self.resolve(ModelRef(key.name, key.version))
        return self._specs[key]

    def _unknown_name(self, name: str) -> str:
        if not self._names:
            return (
                f"no model {name!r}: no model at all is registered; put one at "
                f"<repository>/{name}/1/model.pt, a restart is not needed"
            )
        total = len(self._names)
        count = "1 name is" if total == 1 else f"{total} names are"
        near = self._near(name)
        hint = f" did you mean {', '.join(near)}?" if near else ""
        return f"no model {name!r} is registered:{hint} {count} listed at GET /v1/models"

    def _unknown_version(self, key: ModelKey) -> str:
        versions = self.versions(key.name)
        shown = ", ".join(versions[-_NEAR_NAMES:])
        more = f" ({len(versions)} in all)" if len(versions) > _NEAR_NAMES else ""
        return (
            f"model {key.name!r} has no version {key.version!r}: it has {shown}{more}; "
            f"{key.name!r} alone means {self._latest[key.name]}"
        )

    def _near(self, name: str) -> list[str]:
        place = bisect_left(self._names, name)
        window = self._names[
            max(0, place - _COMPARED_ON_EACH_SIDE) : place + _COMPARED_ON_EACH_SIDE
        ]
        return difflib.get_close_matches(name, window, n=_NEAR_NAMES)


def _name_of(spec: ModelSpec) -> str:
    return spec.key.name


def _replaced(known: Mapping[K, V], old: Iterable[K], new: Mapping[K, V]) -> dict[K, V]:
    """Return a copy without the keys `old` and with all of `new`."""
    copy = dict(known)
    for key in old:
        copy.pop(key, None)
    copy.update(new)
    return copy


def _in_order(entries: Sequence[ModelSpec]) -> Sequence[ModelSpec]:
    """Return one name's entries from the lowest version to the highest; mostly there is one."""
    if len(entries) == 1:
        return entries
    return sorted(entries, key=lambda spec: version_order(spec.key.version))
