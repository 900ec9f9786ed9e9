"""The table and the text of docs/benchmarks/faults.md. Pure."""

from collections.abc import Iterator, Sequence

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.strikes import BURST, FOLDER_GONE_S, LOADED, NEW_NODE_S, UNLOADED
from benchmarks.machine import Machine
from benchmarks.report import table

_HEADER = (
    "fault",
    "requests",
    "failed",
    "all back after",
    "median before / since",
    "p99 before / since",
    "slowest",
    "over 1 s",
    "loads before / since",
    "fullest replica",
)
_MOST_SHOWN = 10


def compose(outcomes: Sequence[Outcome], machine: Machine, rate: float) -> str:
    """Return the report as markdown.

    rate: requests per second of the steady load
    """
    lines = [*_head(outcomes, machine, rate), *table(_HEADER, map(_row, outcomes))]
    for outcome in outcomes:
        lines += _details(outcome)
    return "\n".join([*lines, *_limits()]).rstrip() + "\n"


def _head(outcomes: Sequence[Outcome], machine: Machine, rate: float) -> Iterator[str]:
    fronts = ", ".join(sorted({outcome.front for outcome in outcomes}))
    yield "# Faults under load"
    yield ""
    yield "Written by `python -m benchmarks.faults --report docs/benchmarks/faults.md`, about two"
    yield "minutes for each fault."
    yield ""
    yield f"{machine.date}, {machine.cpu}, {machine.cores} cores, Ray {machine.versions['ray']}."
    yield "Each fault has a fresh Ray cluster of four nodes on this one machine: a head without"
    yield "CPUs (controller, front, ingress) and three nodes of one CPU, each with a detector."
    yield f"In front: {fronts}; pictures travel by gRPC, as `make serve` sets it."
    yield f"{LOADED} models, which no single budget holds and the three together do, are asked for"
    yield f"by Zipf at {rate:g} requests per second in open loop: nobody waits for another's"
    yield "answer, and the client never tries again. `/v1/replicas` is read four times a second."
    yield ""
    yield "*failed*: whatever was not answered with 200. *all back after*: from the fault until all"
    yield "three detectors answer, none of the lost among them. *before / since*: the fault, in ms."
    yield "*over 1 s*: answers that took longer, and how long after the fault the last was sent."
    yield "*loads*: requests that found their model not loaded. *fullest replica*: the largest"
    yield "share of its budget that any replica ever held; over 100 % would be a failure."
    yield ""


def _row(outcome: Outcome) -> Sequence[str]:
    back = "never" if outcome.recovered_s is None else f"{outcome.recovered_s:.1f} s"
    return (
        outcome.what,
        f"{outcome.requests:,}",
        f"{outcome.failed}" if outcome.passed else f"**{outcome.failed}**",
        back,
        f"{1000 * outcome.p50_before_s:.0f} / {1000 * outcome.p50_s:.0f}",
        f"{1000 * outcome.p99_before_s:.0f} / {1000 * outcome.p99_s:.0f}",
        f"{outcome.worst_s:.2f} s",
        _slow(outcome),
        f"{outcome.cold_before} / {outcome.cold - outcome.cold_before}",
        f"{outcome.largest_share:.0%}",
    )


def _slow(outcome: Outcome) -> str:
    if outcome.slow_until_s is None:
        return "0"
    return f"{outcome.slow}, until {outcome.slow_until_s:.0f} s"


def _details(outcome: Outcome) -> Iterator[str]:
    """Say what the table has no room for."""
    said = [_ABOUT.get(outcome.name, "")]
    if outcome.probed:
        answers = ", ".join(f"{n} x {status}" for status, n in sorted(outcome.probed.items()))
        said.append(f"Requests for models in no memory: {answers}.")
    if not outcome.spares_under_way:
        later = f"{outcome.failed_later} of them sent after the end of the process"
        if outcome.failed_until_s is not None:
            later += f", the last {outcome.failed_until_s:.2f} s after it"
        said.append(
            f"{outcome.under_way} requests were under way to both, {outcome.failed} failed, "
            f"{later}."
        )
    if outcome.looks_failed:
        said.append(f"{outcome.looks_failed} of {outcome.looks} looks at /v1/replicas failed.")
    said += [f"Over budget: {found}." for found in outcome.over_budget[:_MOST_SHOWN]]
    said += [f"{note[:1].upper()}{note[1:]}." for note in outcome.notes]
    yield f"**{outcome.name}**: " + " ".join(text for text in said if text)
    yield ""
    if outcome.errors:
        yield "```"
        yield from outcome.errors[:_MOST_SHOWN]
        yield "```"
        yield ""


_ABOUT = {
    "replica": f"the detector that holds most is killed while {BURST} more requests for its models "
    "are under way to it; Serve starts another on the same node.",
    "node": "raylet, agents and detector of the fullest node are killed together, amid the same "
    f"burst; {NEW_NODE_S:g} s later a new node joins, as from an autoscaler, and gets a detector.",
    "hung": "the process of the detector that holds most is stopped amid the same burst: it is "
    "there, its connections are open, and it answers nothing, as a machine that vanishes. Its "
    "requests go elsewhere when it gives no sign of life (docs/failures.md); Serve's health check "
    "replaces it.",
    "stuck": "from then on no pass of the detector that holds most ends, in an engine that the "
    "benchmark puts before the real one (`benchmarks/faults/stuck.py`). The replica lives, and "
    "says that its engine is late: its requests go elsewhere. After `stuck_after_s`, 30 s by "
    "default, it ends itself.",
    "ingress": "amid a burst of as many requests to both. What it was working on breaks off, and "
    "so does what HAProxy still sends its way in the next moment; only the client can ask again.",
    "controller": "Ray starts it again; it finds the replicas as they are.",
    "rollout": "`serve deploy` of other `args`: Serve replaces every replica of both "
    "deployments, detectors one at a time, each with an empty memory.",
    "folder": f"renamed away for {FOLDER_GONE_S:g} s. What is in memory goes on; {UNLOADED} "
    "further models are asked for all the time, until each has answered again.",
}


def _limits() -> Iterator[str]:
    yield "What this does not show: the loss of the head node (docs/cluster.md); a network that"
    yield "loses some packets, or lets them through in one direction only."
