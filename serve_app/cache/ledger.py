"""The byte ledger: who holds how much device memory, with shared parts counted once."""

from typing import Self

from serve_app.types import Footprint, ModelKey


class ByteLedger:
    """The footprints of a set of models and the bytes that they take together.

    A shared part (a graph) is counted once, however many models hold it, and is free when its last
    holder is removed. Where holders disagree on its size (one measured it, another estimated it)
    the largest word counts, so the sum depends on who holds it and never on the order in which they
    came.
    """

    def __init__(self) -> None:
        self._footprints: dict[ModelKey, Footprint] = {}
        self._parts: dict[str, dict[int, int]] = {}  # part -> size -> holders that say so
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """Bytes that all models in the ledger take together."""
        return self._used

    def __len__(self) -> int:
        return len(self._footprints)

    def __contains__(self, key: ModelKey) -> bool:
        return key in self._footprints

    def __getitem__(self, key: ModelKey) -> Footprint:
        return self._footprints[key]

    def extra_bytes(self, footprint: Footprint) -> int:
        """Return the bytes that `footprint` would add: parts that are already held cost nothing."""
        parts = footprint.shared.items()
        return footprint.own_bytes + sum(max(0, size - self._size(part)) for part, size in parts)

    def add(self, key: ModelKey, footprint: Footprint) -> None:
        """Count `footprint` under `key`, which must not be in the ledger yet."""
        if key in self._footprints:
            raise ValueError(f"{key} is in the ledger already")
        self._used += self.extra_bytes(footprint)
        self._footprints[key] = footprint
        for part, size in footprint.shared.items():
            sizes = self._parts.setdefault(part, {})
            sizes[size] = sizes.get(size, 0) + 1

    def remove(self, key: ModelKey) -> None:
        """Take `key` out, and with it the parts that it held last."""
        footprint = self._footprints.pop(key)
        self._used -= footprint.own_bytes
        for part, size in footprint.shared.items():
            self._used -= self._size(part)
            sizes = self._parts[part]
            sizes[size] -= 1
            if not sizes[size]:
                del sizes[size]
            if not sizes:
                del self._parts[part]
            self._used += self._size(part)

    def replace(self, key: ModelKey, footprint: Footprint) -> None:
        """Correct what `key` holds, as after a measurement."""
        self.remove(key)
        self.add(key, footprint)

    def copy(self) -> Self:
        """Return a ledger that can be changed without changing this one."""
        twin = type(self)()
        twin._footprints = self._footprints.copy()
        twin._parts = {part: sizes.copy() for part, sizes in self._parts.items()}
        twin._used = self._used
        return twin

    def _size(self, part: str) -> int:
        return max(self._parts.get(part, ()), default=0)
