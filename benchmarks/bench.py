"""Carries out a plan: starts each server in turn, takes its steps, keeps what they gave."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks import machine, plan, steps
from benchmarks.fleet import model_name, model_path
from benchmarks.plan import Scale, Visit
from benchmarks.serving import Server, ServerError, ServerSpec, run_script, running
from serve_app.tuning import detector_environment

Json = dict[str, Any]

_FAILURES = (ServerError, httpx.HTTPError, subprocess.SubprocessError, OSError, KeyError)
_SCRIPTS = {plan.BARE_AUTO, plan.BARE_FP32, plan.PLAIN, plan.MANY}
_FLEET_LIMIT_S = 900.0
_SCRIPT_LIMIT_S = 300.0


class Bench:
    """One run of the benchmarks; `results` is complete after `run`, and saved after each visit."""

    def __init__(
        self,
        scale: Scale,
        work: Path,
        image: Path,
        check_image: Path,
        say: Callable[[str], None],
    ) -> None:
        """Keep fleets, logs and results in `work`; send `image` to the servers."""
        self._scale = scale
        self._work = work
        self._say = say
        self._context = steps.Context(
            scale=scale,
            names=tuple(model_name(number) for number in range(scale.fleet)),
            image=image.resolve(),
            check_image=check_image.resolve(),
        )
        self.results: Json = {
            "machine": machine.describe().as_json(),
            "scale": {**asdict(scale), "skipped": sorted(scale.skipped)},
            "image": image.name,
            "passes": [],
            "failures": [],
        }

    def run(self, chosen: Iterable[str]) -> Json:
        """Run the scenarios; a server that fails is noted, and the others go on."""
        start = time.monotonic()
        chosen = tuple(chosen)
        passes = plan.make_plan(chosen, self._scale)
        self.results["scenarios"] = chosen
        for number, visits in enumerate(passes):
            seen: Json = {}
            self.results["passes"].append(seen)
            for visit in visits:
                self._say(f"pass {number + 1} of {len(passes)}: {visit.server}")
                before = time.monotonic()
                data = seen.setdefault(visit.server, {})
                try:
                    self._visit(visit, data)
                except _FAILURES as error:
                    self._note(visit.server, error)
                self._say(f"  took {time.monotonic() - before:.0f} s")
                self.results["took_s"] = time.monotonic() - start
                self.save()
        return self.results

    def save(self) -> Path:
        """Write what is known so far."""
        path = self._work / "results.json"
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.results))
        unfinished.replace(path)
        return path

    def _visit(self, visit: Visit, data: Json) -> None:
        if visit.server in _SCRIPTS:
            data["measure"] = self._measure(visit.server)
            return
        folder = self._fleet("fleet", self._scale.fleet)
        with running(self._spec(visit.server), folder, self._work) as server:
            data["prepare"] = steps.prepare(self._context, server, visit.steps)
            for step in visit.steps:
                if step != "grow":
                    self._say(f"  {step}")
                    self._take(step, visit.server, data, server)
                    self._learn(visit.server, step, data)
            self._take("check", visit.server, data, server)

    def _take(self, step: str, name: str, data: Json, server: Server) -> None:
        """Take one step; one that fails is noted, and the next is taken."""
        try:
            data[step] = steps.STEPS[step](self._context, server)
        except _FAILURES as error:
            self._note(f"{name}, {step}", error)

    def _learn(self, name: str, step: str, data: Json) -> None:
        """Keep the figure that later steps build on."""
        if name == plan.AUTO and step == "hot8" and step in data and not self._context.capacity:
            self._context = replace(self._context, capacity=steps.run_of(data[step]).rate)
            self.results["capacity"] = self._context.capacity

    def _note(self, what: str, error: Exception) -> None:
        self._say(f"  failed: {error}")
        self.results["failures"].append(f"{what}: {type(error).__name__}: {str(error)[-500:]}")

    def _spec(self, name: str) -> ServerSpec:
        if name in {plan.STOCK, plan.TURN_STOCK}:
            room = plan.TURN_ROOM if name == plan.TURN_STOCK else plan.ROOM
            return ServerSpec(name=name, module="stock_multiplexed", room=room)
        if name == plan.DOCUMENTED:
            return ServerSpec(
                name=name,
                module="stock_multiplexed",
                room=plan.ROOM,
                options=("--as-documented",),
            )
        if name == plan.ARTICLE:
            return ServerSpec(name=name, module="article_manager", room=plan.ROOM)
        room_of = {plan.AUTO: plan.ROOM, plan.FP32: plan.ROOM}
        room_of |= dict.fromkeys((plan.TURN_AUTO, plan.TURN_FP32), plan.TURN_ROOM)
        options = ["--precision", "fp32" if name in {plan.FP32, plan.TURN_FP32} else "auto"]
        options += ["--cache-dir", str(self._work / "cache")]
        if name == plan.BUDGET:
            options += ["--budget", str(self._stock_growth())]
        return ServerSpec(
            name=name,
            module="ours",
            room=room_of.get(name),
            options=tuple(options),
            interrupt_group=True,
        )

    def _stock_growth(self) -> int:
        """Return the bytes by which stock's replica grew with as many models as it has room for."""
        memory = self.results["passes"][0][plan.STOCK]["prepare"]["grow"]["memory"]
        grown = int(memory[-1]["rss"] - memory[0]["rss"])
        self.results["budget_bytes"] = grown
        return grown

    def _measure(self, name: str) -> Any:  # noqa: ANN401 - what the script prints
        image = ("--image", str(self._context.image))
        variables = detector_environment(os.environ)  # the ceiling allocates as a replica does
        if name == plan.PLAIN:
            folder = self._fleet("fleet", self._scale.fleet)
            module = "benchmarks.servers.plain_yolo"
            variables = {}
            arguments = ["--models", str(folder), "--count", str(plan.TURN_MODELS)]
        elif name == plan.MANY:
            module = "benchmarks.servers.in_process"
            arguments = ["many", "--models", str(self._fleet("many", self._scale.many))]
        else:
            module = "benchmarks.servers.in_process"
            model = model_path(self._fleet("fleet", self._scale.fleet), model_name(0))
            precision = "fp32" if name == plan.BARE_FP32 else "auto"
            arguments = ["loop", "--model", str(model), "--seconds", str(self._scale.bare_s)]
            arguments += ["--precision", precision]
        printed = run_script(
            module, *arguments, *image, limit_s=_SCRIPT_LIMIT_S, variables=variables
        )
        return json.loads(printed)

    def _fleet(self, name: str, count: int) -> Path:
        """Return a folder of `count` models, made now where it is not there yet."""
        folder = self._work / f"{name}-{count}"
        if not model_path(folder, model_name(count - 1)).exists():
            self._say(f"  making {count} models in {folder}")
            run_script(
                "benchmarks.fleet", str(folder), "--count", str(count), limit_s=_FLEET_LIMIT_S
            )
        return folder
