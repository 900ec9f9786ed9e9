"""The bridge to Ray Serve's multiplexing wrapper; the only module that touches its private names.

`@serve.multiplexed` keeps a dictionary of the models that a replica holds and tells the routers
of it. Our cache decides what is loaded and evicted, so that dictionary is made to follow the
cache: an id is advertised exactly while its model is resident or loading. Written against Ray
2.60 (`ray/serve/multiplex.py`); tests/contracts/test_multiplex_wrapper.py holds it to that.
"""

from collections.abc import Callable, Collection
from typing import Any

_WRAPPER = "__serve_multiplex_wrapper"

PUSH_INTERVAL_S = 0.5
"""How often routers are told of changes at most. Each time goes through the controller to every
router and costs tens of milliseconds of processor time; Ray's own 0.1 s, while models are swapped
all the time, costs more than the swaps."""


class _SilentGauge:
    """Stands in for Ray's gauge of one series per model id, which is never removed."""

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        """Record nothing: thousands of models would leave thousands of series behind."""


class MultiplexBridge:
    """Keeps the ids that Ray advertises equal to what the cache holds."""

    def __init__(self, owner: object, make_slot: Callable[[], object]) -> None:
        """Bridge to the wrapper of the method of `owner` that returns what `make_slot` makes."""
        self._owner = owner
        self._make_slot = make_slot

    def attach(self) -> None:
        """Take hold of the wrapper as soon as there is one; Ray's own gauge must not come first."""
        self._wrapper()

    @property
    def advertised(self) -> frozenset[str]:
        """The ids that routers are told of."""
        wrapper = self._wrapper()
        if wrapper is None:
            return frozenset()
        return frozenset(wrapper._get_loading_and_loaded_model_ids())

    def follow(self, ids: Collection[str]) -> None:
        """Advertise exactly `ids` from now on; before the first request there is no wrapper."""
        wrapper = self._wrapper()
        if wrapper is None or wrapper.models.keys() == set(ids):
            return
        for id_ in wrapper.models.keys() - set(ids):
            del wrapper.models[id_]
        for id_ in ids:
            wrapper.models.setdefault(id_, self._make_slot())
        wrapper._push_multiplexed_replica_info = True

    def _wrapper(self) -> Any:  # noqa: ANN401 (a class of Ray's that has no public name)
        """Return Ray's wrapper, None before the decorated method was first called."""
        wrapper = getattr(self._owner, _WRAPPER, None)
        if wrapper is not None and not isinstance(wrapper.registered_model_gauge, _SilentGauge):
            wrapper.registered_model_gauge = _SilentGauge()
            wrapper.metrics_pusher.register_or_update_task(
                wrapper._PUSH_MULTIPLEXED_MODEL_IDS_TASK_NAME,
                wrapper._push_model_ids_info,
                PUSH_INTERVAL_S,
            )
        return wrapper
