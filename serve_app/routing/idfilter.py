"""A small set of ids that may say yes by mistake, never no: a Bloom filter."""

import base64
import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

_BITS_PER_ID = 10
"""With the best number of hashes, one id in a hundred is taken for another."""
_LARGEST_BYTES = 4096
"""Every router gets the filters of all replicas with every change; 10,000 ids are still told
apart four times in five."""
_SMALLEST_BYTES = 16
_MOST_HASHES = 16


@dataclass(frozen=True, slots=True)
class IdFilter:
    """Ids in `len(bits)` bytes, each marked in `hashes` places."""

    bits: bytes
    hashes: int

    @classmethod
    def of(cls, ids: Collection[str]) -> Self:
        """Make the filter of `ids`; the same ids give the same filter."""
        # A power of two: a set that grows slowly keeps its size for long.
        wanted = max(_SMALLEST_BYTES, math.ceil(len(ids) * _BITS_PER_ID / 8))
        nbytes = min(_LARGEST_BYTES, 1 << (wanted - 1).bit_length())
        hashes = max(1, round(nbytes * 8 / max(1, len(ids)) * math.log(2)))
        bits = bytearray(nbytes)
        made = cls(b"", min(hashes, 7))
        for id_ in ids:
            for place in _places(id_, made.hashes, nbytes * 8):
                bits[place >> 3] |= 1 << (place & 7)
        return cls(bytes(bits), made.hashes)

    def __contains__(self, id_: str) -> bool:
        bits = self.bits
        return all(
            bits[place >> 3] >> (place & 7) & 1
            for place in _places(id_, self.hashes, len(bits) * 8)
        )

    def to_wire(self) -> dict[str, Any]:
        """Return plain data that `from_wire` reads."""
        return {"hashes": self.hashes, "bits": base64.b85encode(self.bits).decode()}

    @classmethod
    def from_wire(cls, wire: object) -> Self | None:
        """Read what `to_wire` made; None for anything else."""
        if not isinstance(wire, dict):
            return None
        bits, hashes = wire.get("bits"), wire.get("hashes")
        if not isinstance(bits, str) or not isinstance(hashes, int):
            return None
        if not 1 <= hashes <= _MOST_HASHES or len(bits) > 2 * _LARGEST_BYTES:
            return None
        try:
            raw = base64.b85decode(bits)
        except ValueError:
            return None
        return cls(raw, hashes) if raw else None


def _places(id_: str, hashes: int, nbits: int) -> list[int]:
    digest = hashlib.blake2b(id_.encode(), digest_size=16).digest()
    first = int.from_bytes(digest[:8], "little")
    step = int.from_bytes(digest[8:], "little") | 1
    return [(first + turn * step) % nbits for turn in range(hashes)]
