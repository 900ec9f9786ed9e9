"""Which servers run, and what each is asked, for the scenarios that were chosen. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MODELS = 24
ROOM = 6
TURN_MODELS = 12
TURN_ROOM = 3

AUTO, FP32 = "ours auto", "ours fp32"
STOCK, DOCUMENTED, ARTICLE = "stock", "stock as documented", "article"
ALL = "ours all resident"
BUDGET = "ours in stock's bytes"
TURN_AUTO, TURN_FP32, TURN_STOCK = "ours room 3", "ours fp32 room 3", "stock room 3"
BARE_AUTO, BARE_FP32, PLAIN, MANY = "bare auto", "bare fp32", "plain YOLO", "many"

ORDER = (
    BARE_AUTO,
    BARE_FP32,
    AUTO,
    STOCK,
    FP32,
    ARTICLE,
    DOCUMENTED,
    ALL,
    BUDGET,
    TURN_AUTO,
    TURN_STOCK,
    TURN_FP32,
    PLAIN,
    MANY,
)
"""In which order servers run: the ceiling first, whose latency is the yardstick of goodput."""

STEPS = ("grow", "hot1", "hot8", "zipf", "storm", "lag", "turn", "open", "loads", "measure")
"""In which order one server is asked; `measure` is a script's own, which needs no requests."""

OPEN_LOOPS = ("W1", "W2", "W3", "W4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long and how much; *_s are seconds.

    loads: of the capacity, that the workload W2 is offered at
    fleet: models of the open-loop workloads, `many` those that are kept resident in one process
    passes: how often the closest ratios are measured, in alternating order of the servers
    skipped: servers that are left out
    """

    hot1_s: float
    hot8_s: float
    zipf_s: float
    storm_s: float
    lag_s: float
    open_s: float
    bare_s: float
    turn_rounds: int
    loads: tuple[float, ...]
    fleet: int
    many: int
    passes: int
    skipped: frozenset[str] = frozenset()


FULL = Scale(
    hot1_s=8,
    hot8_s=12,
    zipf_s=25,
    storm_s=20,
    lag_s=8,
    open_s=15,
    bare_s=8,
    turn_rounds=4,
    loads=(0.3, 0.9),
    fleet=64,
    many=200,
    passes=2,
)
QUICK = Scale(
    hot1_s=3,
    hot8_s=4,
    zipf_s=8,
    storm_s=6,
    lag_s=3,
    open_s=6,
    bare_s=3,
    turn_rounds=3,
    loads=(),
    fleet=MODELS,
    many=40,
    passes=1,
    skipped=frozenset({FP32, BARE_FP32, DOCUMENTED, ARTICLE, TURN_FP32}),
)

SCENARIOS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "hot": {
        BARE_AUTO: ("measure",),
        BARE_FP32: ("measure",),
        AUTO: ("hot1", "hot8"),
        FP32: ("hot1", "hot8"),
        STOCK: ("hot1", "hot8"),
        DOCUMENTED: ("hot1", "hot8"),
        ARTICLE: ("hot1", "hot8"),
    },
    "zipf": dict.fromkeys((AUTO, FP32, STOCK, DOCUMENTED, ARTICLE, ALL), ("grow", "zipf")),
    "budget": {STOCK: ("grow",), BUDGET: ("grow", "zipf")},
    "cold": dict.fromkeys((TURN_AUTO, TURN_FP32, TURN_STOCK), ("turn",)),
    "memory": {ALL: ("grow",), TURN_AUTO: ("turn",), TURN_STOCK: ("turn",), PLAIN: ("measure",)},
    "many": {MANY: ("measure",)},
    "storm": {AUTO: ("storm",), STOCK: ("storm",)},
    "lag": {AUTO: ("lag",)},
    "open": {
        BARE_FP32: ("measure",),
        BARE_AUTO: ("measure",),
        AUTO: ("hot8", "open", "loads"),
        STOCK: ("open", "loads"),
    },
}

REPEATED: Mapping[str, frozenset[str]] = {
    BARE_AUTO: frozenset({"measure"}),
    AUTO: frozenset({"hot1", "hot8", "zipf"}),
    STOCK: frozenset({"zipf"}),
    DOCUMENTED: frozenset({"zipf"}),
    ALL: frozenset({"zipf"}),
}
"""What further passes measure again: the ratios with the narrowest targets."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One start of one server: the steps in the order in which they are taken."""

    server: str
    steps: tuple[str, ...]


def make_plan(chosen: Iterable[str], scale: Scale) -> list[list[Visit]]:
    """Return the visits of each pass; every second pass runs the servers in reverse order.

    Raises:
        ValueError: a scenario that does not exist
    """
    wanted: dict[str, set[str]] = {}
    for name in chosen:
        if name not in SCENARIOS:
            raise ValueError(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}")
        for server, asked in SCENARIOS[name].items():
            wanted.setdefault(server, set()).update(asked)
    passes: list[list[Visit]] = []
    for number in range(scale.passes):
        visits = []
        for server in ORDER:
            steps = wanted.get(server, set())
            if number:
                steps = steps & REPEATED.get(server, frozenset())
            if steps and server not in scale.skipped:
                visits.append(Visit(server, tuple(step for step in STEPS if step in steps)))
        passes.append(visits[::-1] if number % 2 else visits)
    return passes
