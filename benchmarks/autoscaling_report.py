"""The text of docs/benchmarks/autoscaling.md. Pure."""

import textwrap

from benchmarks.autoscaling_parts import Misses, Outcome, Plan
from benchmarks.machine import Machine
from benchmarks.report import table


def report(plan: Plan, outcome: Outcome, machine: Machine, model_bytes: int) -> str:
    """Return what was measured as Markdown."""
    spare = "null" if plan.spare_s is None else f"{plan.spare_s:g}"
    held = plan.models * model_bytes / 1e6
    room = plan.room * model_bytes / 1e6
    text = (
        "Written by `python -m benchmarks.autoscaling docs/benchmarks/autoscaling.md`: Ray's own "
        "autoscaler over its fake multi-node provider and real detectors, all of them and the "
        f"client on the {machine.cores} cores of one machine ({machine.cpu}, {machine.date[:10]}).",
        f"{plan.models} models of {model_bytes / 1e6:.1f} MB ({held:.0f} MB), each as often asked "
        "for as any other, in a closed loop of one request after the other, so there is never a "
        f"queue. A replica has room for {room:.0f} MB of models: the working set is "
        f"{held / room:.1f} times that. `min_replicas: 0`, a window of {plan.window_s:g} s, delays "
        f"of 2 s (up) and {plan.down_s:g} s (down), `settle_s: {plan.settle_s:g}`, "
        f"`spare_copies_after_s: {spare}`; a node goes after 5 s without work. Nodes are as the "
        "dashboard tells them, which learns of new ones late.",
        f"Then one model is pinned (one copy) and nobody asks for it, and {plan.hot} others are "
        "all that is asked for, from that moment until the fleet has shrunk to one replica and "
        f"{plan.settle_s:g} s more. Ray chooses who goes; what is hot or pinned and has no copy on "
        "those that remain would be a miss.",
        f"The ingress has `target_ongoing_requests: {plan.ingress_target}` here (shipped: 400), so "
        f"that {plan.ingress_clients} clients are many; nothing else about it differs.",
    )
    steps = table(["step", "s"], ((name, f"{seconds:.1f}") for name, seconds in outcome.steps))
    misses = table(
        ["", "requests", "misses per 100", "failed"],
        [
            _row("one replica", outcome.before),
            _row(f"{outcome.replicas} replicas on {outcome.workers} nodes", outcome.after),
            _row(f"{outcome.replicas} replicas become 1, {plan.hot} models", outcome.shrinking),
            _row("the pinned model, after that", outcome.pinned),
            _row("1 ingress becomes 2, then 1", outcome.many),
        ],
    )
    paragraphs = [line for part in text for line in (*textwrap.wrap(part, 100), "")]
    lines = ["# Autoscaling by working set", "", *paragraphs, *steps, *misses]
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, misses: Misses) -> list[str]:
    return [name, str(misses.requests), f"{misses.per_100:.1f}", str(misses.failed)]
