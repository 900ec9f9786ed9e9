"""Requests that this router has sent and that replicas' statistics may not show yet. Pure.

Everything here ends by itself: a request when it completes or after a long while, the expectation
that a model is loading somewhere after a short one. So what is never reported cannot pile up.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass

_OTHERS_S = 2.0
"""What is known of others' requests counts for so long: nobody tells of a replica that is left out
because of it."""
_NOWHERE: Mapping[str, float] = {}


@dataclass(slots=True)
class _Sent:
    model: str
    replica_id: str
    request_id: str
    at: float
    serial: int


class InFlight:
    """Counts requests by replica and by model, and knows where models must be loading."""

    def __init__(self, visible_s: float, in_flight_s: float) -> None:
        """Expect a load for `visible_s`; forget a request after `in_flight_s`. Both in seconds."""
        self._visible_s = visible_s
        self._in_flight_s = in_flight_s
        self._by_request: dict[str, list[_Sent]] = {}
        self._by_age: OrderedDict[int, _Sent] = OrderedDict()
        self._serial = 0
        self._by_replica: dict[str, int] = {}
        self._by_model: dict[str, int] = {}
        self._others: dict[str, tuple[int, float]] = {}
        self._expected: dict[str, dict[str, float]] = {}
        self._expected_by_age: deque[tuple[float, str, str]] = deque()

    def at_replica(self, replica_id: str) -> int:
        """Return how many of this router's requests a replica has."""
        return self._by_replica.get(replica_id, 0)

    def others_at(self, replica_id: str, now: float) -> int:
        """Return how many requests of others a replica has, as far as that was told lately."""
        others, at = self._others.get(replica_id, (0, now))
        return others if now - at <= _OTHERS_S else 0

    def told(self, replica_id: str, count: int, own: int, at: float) -> None:
        """Take in that a replica had `count` requests at that time, `own` of them ours."""
        if at >= self._others.get(replica_id, (0, at))[1]:
            self._others[replica_id] = max(0, count - own), at

    def of_model(self, model: str) -> int:
        """Return how many of this router's requests for a model are open."""
        return self._by_model.get(model, 0)

    def expected(self, model: str) -> Mapping[str, float]:
        """Return where a model must be loading, with the time when it was asked for there."""
        return self._expected.get(model, _NOWHERE)

    def sent(self, model: str, replica_id: str, request_id: str, now: float, *, new: bool) -> None:
        """Take in a request; `new` where the replica did not advertise the model."""
        self.expire(now)
        self._serial += 1
        record = _Sent(model, replica_id, request_id, now, self._serial)
        self._by_request.setdefault(request_id, []).append(record)
        self._by_age[record.serial] = record
        self._by_replica[replica_id] = self._by_replica.get(replica_id, 0) + 1
        self._by_model[model] = self._by_model.get(model, 0) + 1
        if new and replica_id not in self.expected(model):
            self._expected.setdefault(model, {})[replica_id] = now
            self._expected_by_age.append((now, model, replica_id))

    def completed(self, request_id: str, replica_id: str | None = None) -> None:
        """End a request. Calls that share an id end in any order, each at its own replica."""
        records = self._by_request.get(request_id, ())
        for record in records:
            if replica_id is None or record.replica_id == replica_id:
                self._end(record)
                return

    def away(self, replica_id: str) -> None:
        """Expect no load of a replica any more; its requests end by themselves, as all do."""
        self._others.pop(replica_id, None)
        for model in [model for model, at in self._expected.items() if replica_id in at]:
            self._arrive(model, replica_id)

    def arrived(self, model: str, replica_id: str) -> None:
        """Take in that a replica advertises a model: what it says of it counts from now on."""
        if replica_id in self.expected(model):
            self._arrive(model, replica_id)

    def expecting(self) -> list[tuple[str, str]]:
        """Return every (model, replica) that is expected to load."""
        return [(model, id_) for model, at in self._expected.items() for id_ in at]

    def expire(self, now: float) -> None:
        """Forget what is too old; costs nothing while nothing is."""
        while self._by_age:
            oldest = next(iter(self._by_age.values()))
            if now - oldest.at <= self._in_flight_s:
                break
            self._end(oldest)
        expected = self._expected_by_age
        while expected and now - expected[0][0] > self._visible_s:
            at, model, replica_id = expected.popleft()
            if self.expected(model).get(replica_id) == at:
                self._arrive(model, replica_id)

    def __len__(self) -> int:
        """Return how many records are kept in all."""
        return len(self._by_age) + len(self._expected_by_age)

    def _end(self, record: _Sent) -> None:
        del self._by_age[record.serial]
        records = self._by_request[record.request_id]
        records.remove(record)
        if not records:
            del self._by_request[record.request_id]
        _count_down(self._by_replica, record.replica_id)
        _count_down(self._by_model, record.model)

    def _arrive(self, model: str, replica_id: str) -> None:
        places = self._expected[model]
        del places[replica_id]
        if not places:
            del self._expected[model]


def _count_down(counts: dict[str, int], key: str) -> None:
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
