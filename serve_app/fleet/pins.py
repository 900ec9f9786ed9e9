"""What was pinned and unpinned while the fleet runs. Pure.

Every replica and every ingress holds a copy of this table and tells the others, so it lives as long
as one of them. Of two writes on one model the later one holds, whatever the order they arrive in.
"""

from collections.abc import Collection, Iterable, Mapping

from serve_app.types import Copies, Pin

FORGET_S = 3600.0
"""An unpinning is remembered for so long, so that who slept through it does not undo it."""
_STEP_S = 1e-6


class PinTable:
    """The last write on each model, over what `user_config` wants."""

    def __init__(self, pins: Iterable[Pin] = ()) -> None:
        """Begin with `pins`."""
        self._pins: dict[str, Pin] = {}
        self.merge(pins)

    def __contains__(self, key: str) -> bool:
        return key in self._pins

    @property
    def pins(self) -> tuple[Pin, ...]:
        """All writes that hold, sorted by key."""
        return tuple(self._pins[key] for key in sorted(self._pins))

    def merge(self, pins: Iterable[Pin]) -> None:
        """Take what is later than what is known; the order of merges makes no difference."""
        for pin in pins:
            known = self._pins.get(pin.key)
            if known is None or _age(pin) > _age(known):
                self._pins[pin.key] = pin

    def covers(self, pins: Iterable[Pin], now_s: float, configured: Collection[str] = ()) -> bool:
        """Tell whether nothing among `pins` is news.

        An old unpinning is none: who wrote this table may have forgotten it, and by clocks that
        differ by up to FORGET_S / 2 not all forget it at the same time.
        """

        def is_known(pin: Pin) -> bool:
            known = self._pins.get(pin.key)
            if known is None:
                return _is_old(pin, now_s, FORGET_S / 2) and pin.key not in configured
            return _age(known) >= _age(pin)

        return all(map(is_known, pins))

    def write(self, key: str, copies: Copies, now_s: float, author: str) -> None:
        """Want `copies` of `key` from now on; holds over all writes seen so far, whatever `now_s`.

        Clocks of several machines differ, and what someone decided knowing of an earlier write must
        not lose against it.
        """
        known = self._pins.get(key)
        time_s = now_s if known is None else max(now_s, known.time_s + _STEP_S)
        self._pins[key] = Pin(key, copies, time_s, author)

    def wanted(self, configured: Mapping[str, Copies]) -> dict[str, Copies]:
        """Return the copies of each pinned model, the longest pinned first.

        Args:
            configured: what `user_config` wants; a write in the table holds over it
        """
        wanted = {key: copies for key, copies in configured.items() if key not in self._pins}
        for pin in sorted(self._pins.values(), key=lambda pin: (pin.time_s, pin.key)):
            if pin.copies != 0:
                wanted[pin.key] = pin.copies
        return wanted

    def forget(self, now_s: float, configured: Mapping[str, Copies]) -> None:
        """Drop old unpinnings, but for those that hold over `configured`."""
        self._pins = {
            key: pin
            for key, pin in self._pins.items()
            if not _is_old(pin, now_s, FORGET_S) or key in configured
        }


def _is_old(pin: Pin, now_s: float, age_s: float) -> bool:
    """Whether it is an unpinning of so long ago."""
    return pin.copies == 0 and pin.time_s <= now_s - age_s


def _age(pin: Pin) -> tuple[float, str]:
    return pin.time_s, pin.author


def more_of(first: Copies, second: Copies) -> Copies:
    """Return the greater number of copies."""
    return None if first is None or second is None else max(first, second)
