"""The main job over real HTTP: cold and warm, eviction, right answers under load."""

import asyncio
import io
import random
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.integration.server import DEMO_MODELS, Server, wait_until

CLASSES = {
    "fasteners-n": {"washer", "nut", "bolt", "pin"},
    "fasteners-s": {"washer", "nut", "bolt", "pin"},
    "components-n": {"resistor", "capacitor", "chip", "led"},
    "codes-n": {"qr", "barcode", "datamatrix"},
}


@pytest.fixture(autouse=True)
def _empty_cache(server: Server) -> None:
    """Each test begins with the default limits and nothing in memory."""
    server.reset()


def _findings(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["images"][0]["results"]
    return results


def _pixels(answer: httpx.Response) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_first_request_is_cold_and_says_so(server: Server, scenes: dict[str, bytes]) -> None:
    """The first request loads the model, the second finds it."""
    first = server.predict("fasteners-n", scenes["fasteners-1"])
    assert first.headers["x-model-id"] == "fasteners-n@1"
    assert first.headers["x-model-cold-start"] == "true"
    assert float(first.headers["x-model-load-time-ms"]) > 0
    assert "load;dur=" in first.headers["server-timing"]

    second = server.predict("fasteners-n", scenes["fasteners-1"])
    assert second.headers["x-model-cold-start"] == "false"
    assert "x-model-load-time-ms" not in second.headers
    assert _findings(first) == _findings(second) != []


@pytest.mark.parametrize("model", DEMO_MODELS)
def test_each_demo_model_finds_its_own_parts(
    server: Server, scenes: dict[str, bytes], model: str
) -> None:
    """A sample scene holds parts of its line, and its model names them."""
    line = model.rpartition("-")[0]
    found = _findings(server.predict(model, scenes[f"{line}-1"]))
    assert len(found) >= 3
    assert {finding["name"] for finding in found} <= CLASSES[model]


def test_a_third_model_evicts_the_least_recently_used(
    server: Server, scenes: dict[str, bytes]
) -> None:
    """With a budget for two models in bytes, the one that waited longest goes."""
    scene = scenes["line"]
    for model in ("components-n", "codes-n"):
        assert server.predict(model, scene).status_code == 200
    # Two models of four classes, which share a graph, take less than these two with a graph each.
    budget = server.replica()["used_bytes"] + 2**20
    server.reconfigure(memory_budget=budget, eviction_policy="lru")
    wait_until(lambda: server.replica()["budget_bytes"] == budget, what="new budget")
    assert server.resident() == {"components-n@1", "codes-n@1"}

    # The one that was loaded first is used again: not the oldest goes, but the least recently used.
    assert server.predict("components-n", scene).headers["x-model-cold-start"] == "false"
    assert server.predict("fasteners-n", scene).headers["x-model-cold-start"] == "true"
    replica = server.replica()
    assert server.resident() == {"components-n@1", "fasteners-n@1"}
    assert replica["used_bytes"] <= replica["budget_bytes"]


def test_mixed_load_over_more_models_than_fit(server: Server, scenes: dict[str, bytes]) -> None:
    """200 requests at once, four models, bytes for fewer: each answer is its own model's."""
    work = [(model, scene) for model in DEMO_MODELS for scene in ("line", "codes-1")]
    expected = {item: _findings(server.predict(item[0], scenes[item[1]])) for item in work}
    assert len({str(findings) for findings in expected.values()}) == len(work)
    budget = server.replica()["used_bytes"] * 8 // 10
    server.reconfigure(memory_budget=budget)
    wait_until(lambda: server.replica()["budget_bytes"] == budget, what="the small budget")

    chosen = random.Random(7).choices(work, k=200)  # noqa: S311

    async def send_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(chosen))
        async with httpx.AsyncClient(base_url=server.url, timeout=120.0, limits=limits) as client:
            return await asyncio.gather(
                *(
                    client.post(f"/v1/models/{model}/predict", files={"file": scenes[scene]})
                    for model, scene in chosen
                )
            )

    answers = asyncio.run(send_all())
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    for item, answer in zip(chosen, answers, strict=True):
        assert answer.headers["x-model-id"] == f"{item[0]}@1"
        assert _agree(_findings(answer), expected[item])
    cold = [answer for answer in answers if answer.headers["x-model-cold-start"] == "true"]
    assert len(cold) > len(DEMO_MODELS), "models came back after an eviction"
    replica = server.replica()
    assert replica["used_bytes"] <= budget
    assert len(server.resident()) < len(DEMO_MODELS)
    assert set(replica["advertised"]) == {model["key"] for model in replica["models"]}


def test_a_client_that_leaves_during_a_load_takes_nothing_with_it(
    server: Server, scenes: dict[str, bytes]
) -> None:
    """A disconnect while the model loads leaves the load to the others."""

    async def leave_and_stay() -> httpx.Response:
        async with httpx.AsyncClient(base_url=server.url, timeout=60.0) as client:

            def send() -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(
                    client.post("/v1/models/codes-n/predict", files={"file": scenes["codes-1"]})
                )

            leaver, stayer = send(), send()
            await asyncio.sleep(0.05)
            leaver.cancel()
            return await stayer

    assert _findings(asyncio.run(leave_and_stay()))
    wait_until(
        lambda: all(model["leases"] == 0 for model in server.replica()["models"]), what="no leases"
    )


def test_several_pictures_and_an_annotated_one(server: Server, scenes: dict[str, bytes]) -> None:
    """A form may hold several pictures; format=image returns one with its findings drawn."""
    files = [("file", scenes["fasteners-1"]), ("file", scenes["fasteners-2"])]
    answer = server.client.post("/v1/predict", files=files, data={"model": "fasteners-n"})
    assert answer.status_code == 200
    alone = _findings(server.predict("fasteners-n", scenes["fasteners-2"]))
    assert _agree(answer.json()["images"][1]["results"], alone)

    drawn = server.predict("fasteners-n", scenes["fasteners-1"], {"format": "image"})
    assert drawn.headers["content-type"] == "image/jpeg"
    plain = server.predict("fasteners-n", scenes["fasteners-1"], {"format": "image", "conf": 1})
    changed = _pixels(drawn) != _pixels(plain)
    assert changed.any(axis=2).mean() > 0.01, "boxes are drawn"


def test_load_and_unload(server: Server, scenes: dict[str, bytes]) -> None:
    """A preloaded model answers warm; a released one is gone."""
    assert server.client.post("/v1/models/codes-n/load").status_code == 200
    assert "codes-n@1" in server.resident()
    warm = server.predict("codes-n", scenes["codes-1"])
    assert warm.headers["x-model-cold-start"] == "false"
    assert server.client.post("/v1/models/codes-n/unload").status_code == 200
    assert "codes-n@1" not in server.resident()
    shown = server.client.get("/v1/models/codes-n").json()
    assert shown["name"] == "codes-n"


def test_limits_and_pins_change_in_place(server: Server, scenes: dict[str, bytes]) -> None:
    """Budget, cap and pins change without a restart; a wrong config is refused and reported."""
    pid = server.replica()["pid"]
    server.reconfigure(memory_budget="700MiB", max_models=2, pinned=["codes-n"])
    wait_until(lambda: server.resident() == {"codes-n@1"}, what="the pinned model")
    for model in ("fasteners-n", "components-n", "fasteners-s"):
        assert server.predict(model, scenes["line"]).status_code == 200
        assert "codes-n@1" in server.resident()
    state = server.replica()
    assert (state["budget_bytes"], state["max_models"]) == (700 * 2**20, 2)
    assert [m["pinned"] for m in state["models"] if m["key"] == "codes-n@1"] == [True]

    server.reconfigure(memory_budget="700MiB", pined=["codes-n"])
    wait_until(lambda: server.replica()["config_error"], what="the refusal")
    assert "pined: unknown key" in server.replica()["config_error"]
    assert server.replica()["max_models"] == 2
    assert server.replica()["pid"] == pid


def test_a_new_folder_is_found_without_a_restart(
    server: Server, scenes: dict[str, bytes], repository: Path
) -> None:
    """A model that is put into the repository can be asked for at once."""
    assert server.predict("newcomer", scenes["codes-1"]).status_code == 404
    (repository / "newcomer").symlink_to(repository / "codes-n")
    try:
        found = wait_until(
            lambda: (
                _findings(answer)
                if (answer := server.predict("newcomer", scenes["codes-1"])).status_code == 200
                else None
            ),
            what="the new folder",
        )
        assert found == _findings(server.predict("codes-n", scenes["codes-1"]))
    finally:
        (repository / "newcomer").unlink()


def test_an_onnx_export_answers_like_its_checkpoint(
    server: Server, scenes: dict[str, bytes]
) -> None:
    """The same model as `.onnx`, through loader, cache and HTTP; 4:3 is letterboxed to a square."""
    native = _findings(server.predict("codes-n", scenes["codes-1"], {"conf": 0.5}))
    answer = server.predict("codes-onnx", scenes["codes-1"], {"conf": 0.5})
    exported = _findings(answer)
    assert answer.headers["x-model-cold-start"] == "true"
    assert sorted(f["name"] for f in exported) == sorted(f["name"] for f in native) != []
    (held,) = [m for m in server.replica()["models"] if m["key"] == "codes-onnx@1"]
    assert held["bytes"] > 5_000_000


def _agree(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether two answers are the same but for rounding: a shape's later passes run traced."""
    return [one["name"] for one in found] == [one["name"] for one in expected] and all(
        one["confidence"] == pytest.approx(other["confidence"], abs=1e-3)
        and one["box"] == pytest.approx(other["box"], abs=0.05)
        for one, other in zip(found, expected, strict=True)
    )
