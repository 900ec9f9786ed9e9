"""Hashes that are the same in every process, so that all who ask find the same place. Pure."""

from hashlib import blake2b


def hash64(text: str) -> int:
    """Return 64 bits of a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def rendezvous(key: object, place: str) -> int:
    """Return how much a key, by its text, belongs to a place; the greatest has it."""
    return hash64(f"{key}\n{place}")
