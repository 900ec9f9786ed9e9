"""Predict calls: what reaches the backend, what comes back."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from serve_app.errors import ModelBrokenError, OverloadedError
from serve_app.types import PredictParams
from tests.unit.ingress.fakes import Clock, FakeBackend, detection, picture

URL = "/v1/models/parts/predict"
Files = list[tuple[str, tuple[str, bytes]]]


async def test_a_raw_picture_is_answered(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The plainest call: one picture as the body."""
    answer = await client.post(URL, content=picture(), headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200
    content = answer.json()
    assert content["images"][0]["shape"] == [48, 64]
    assert content["images"][0]["results"][0] == {
        "name": "nut",
        "class": 1,
        "confidence": 0.9,
        "box": {"x1": 1.0, "y1": 2.0, "x2": 30.0, "y2": 40.0},
    }
    assert content["metadata"]["model"] == "parts@2"
    assert content["metadata"]["imageCount"] == 1
    assert backend.predicted[0].images == (picture(),)
    assert backend.predicted[0].params == PredictParams()
    assert 0 < backend.predicted[0].timeout_s <= 5.0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
async def test_all_formats_pass_whatever_the_content_type_says(
    client: httpx.AsyncClient, kind: str
) -> None:
    """The picture's own bytes tell its format; curl's default content type is a form's."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.post(URL, content=picture(kind), headers=headers)
    assert answer.status_code == 200


async def test_a_form_holds_several_pictures_and_parameters(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """Pictures keep their order, parameters may stand in the form and in the query."""
    pictures = [picture(), picture("PNG")]
    files: Files = [("file", (f"{index}", data)) for index, data in enumerate(pictures)]
    data = {"conf": "0.1", "classes": ["0", "1,5"], "imgsz": "480x640"}
    answer = await client.post(f"{URL}?iou=.5&max_det=7", files=files, data=data)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["images"]) == 2
    assert backend.predicted[0].images == tuple(pictures)
    assert backend.predicted[0].params == PredictParams(0.1, 0.5, (480, 640), 7, (0, 1, 5))


async def test_normalize_gives_shares(client: httpx.AsyncClient) -> None:
    """Coordinates are divided by width and height."""
    answer = await client.post(f"{URL}?normalize=true", content=picture())
    box = answer.json()["images"][0]["results"][0]["box"]
    assert box == {"x1": 0.01562, "y1": 0.04167, "x2": 0.46875, "y2": 0.83333}


async def test_format_image_answers_with_a_jpeg(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """The drawn picture comes with the same headers."""
    answer = await client.post(f"{URL}?format=image", content=picture())
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content == picture()
    assert answer.headers["x-model-id"] == "parts@2"
    assert backend.predicted[0].annotate


async def test_format_image_takes_one_picture(client: httpx.AsyncClient) -> None:
    """A JPEG cannot hold two answers."""
    files: Files = [("file", ("a", picture())), ("file", ("b", picture()))]
    answer = await client.post(f"{URL}?format=image", files=files)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_parameter"


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("model=parts@1", {}),
        ("model_type=parts@1&image_size=640x640", {}),
        ("", {"serve_multiplexed_model_id": "parts@1"}),
        ("", {"Serve-Multiplexed-Model-Id": "parts@1"}),
        ("model=parts@1&model_type=parts@1", {"serve_multiplexed_model_id": "parts@1"}),
    ],
)
async def test_the_model_can_be_named_in_other_ways(
    client: httpx.AsyncClient, backend: FakeBackend, query: str, headers: dict[str, str]
) -> None:
    """Parameter, the article's parameter, Ray Serve's header."""
    answer = await client.post(f"/v1/predict?{query}", content=picture(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert str(backend.predicted[0].key) == "parts@1"


async def test_the_model_can_be_named_in_the_form(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """The article's client sends all of it as a form."""
    data = {"model_type": "codes", "image_size": "320"}
    answer = await client.post("/v1/predict", files={"file": ("a", picture())}, data=data)
    assert answer.status_code == 200, answer.text
    assert str(backend.predicted[0].key) == "codes@1"
    assert backend.predicted[0].params.imgsz == (320, 320)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {}),
        ("model=parts&model_type=codes", {}),
        ("model=parts", {"serve_multiplexed_model_id": "codes"}),
    ],
)
async def test_the_model_is_named_once(
    client: httpx.AsyncClient, backend: FakeBackend, query: str, headers: dict[str, str]
) -> None:
    """None, or two that differ, is refused rather than guessed."""
    answer = await client.post(f"/v1/predict?{query}", content=picture(), headers=headers)
    assert answer.status_code == 422
    assert "model" in answer.json()["detail"]
    assert not backend.predicted


@pytest.mark.parametrize(
    ("reference", "status", "code"),
    [
        ("nothing", 404, "model_not_found"),
        ("parts@9", 404, "model_not_found"),
        ("@1", 422, "invalid_parameter"),
        ("..%2F..%2Fetc", 404, "not_found"),
        ("%00", 422, "invalid_parameter"),
        ("parts@1@2", 422, "invalid_parameter"),
        ("a" * 200, 422, "invalid_parameter"),
    ],
)
async def test_a_wrong_reference_never_reaches_the_backend(
    client: httpx.AsyncClient, backend: FakeBackend, reference: str, status: int, code: str
) -> None:
    """Ray keeps every model id it has ever seen: only real ones may pass."""
    answer = await client.post(f"/v1/models/{reference}/predict", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not backend.predicted


async def test_a_new_model_is_found_and_a_removed_one_is_not(
    client: httpx.AsyncClient, repository: Path, clock: Clock
) -> None:
    """Folders come and go without a restart."""
    url = "/v1/models/new/predict"
    assert (await client.post(url, content=picture())).status_code == 404
    (repository / "new/1").mkdir(parents=True)
    (repository / "new/1/model.onnx").touch()
    clock.now += 0.3
    assert (await client.post(url, content=picture())).status_code == 200
    shutil.rmtree(repository / "new")
    clock.now += 10
    assert (await client.post(url, content=picture())).status_code == 404


async def test_headers_tell_model_and_timing(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """A warm answer has no load time, a cold one has."""
    warm = (await client.post(URL, content=picture())).headers
    assert warm["x-model-id"] == "parts@2"
    assert warm["x-model-cold-start"] == "false"
    assert "x-model-load-time-ms" not in warm
    assert warm["server-timing"] == (
        "queue;dur=3.25, load;dur=0.00, preprocess;dur=1.00, inference;dur=20.00, "
        "postprocess;dur=0.50"
    )
    backend.cold = True
    cold = (await client.post(URL, content=picture())).headers
    assert cold["x-model-cold-start"] == "true"
    assert cold["x-model-load-time-ms"] == "12.5"


async def test_the_backend_errors_become_problems(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """Status, code and Retry-After come from the error itself."""
    backend.error = ModelBrokenError("no YOLO")
    answer = await client.post(URL, content=picture())
    assert (answer.status_code, answer.json()["detail"]) == (424, "no YOLO")
    backend.error = OverloadedError("full", retry_after_s=1.2)
    answer = await client.post(URL, content=picture())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_the_deadline_ends_and_cancels_the_call(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """The client's own time limit holds, and nothing runs on behind it."""
    backend.delay_s = 30
    answer = await client.post(f"{URL}?timeout_s=0.05", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert backend.cancelled == 1


async def test_a_client_that_leaves_cancels_the_call(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """Cancelling the request cancels what it started."""
    backend.delay_s = 30
    call = asyncio.create_task(client.post(URL, content=picture()))
    await asyncio.wait_for(backend.asked.wait(), 5)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert backend.cancelled == 1


async def test_many_findings_are_answered_in_full(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """They are turned into JSON in a thread; the answer is the same."""
    one = detection()
    assert one.boxes is not None
    many = replace(
        one,
        class_id=np.tile(one.class_id, 150),
        confidence=np.tile(one.confidence, 150),
        boxes=np.tile(one.boxes, (150, 1)),
    )
    backend.answer = lambda: many
    content = (await client.post(URL, content=picture())).json()
    assert len(content["images"][0]["results"]) == 300
    assert content["images"][0]["results"][298]["name"] == "nut"


async def test_a_picture_that_was_not_drawn_is_a_defect(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """An empty JPEG would look like an answer."""
    backend.draws = False
    answer = await client.post(f"{URL}?format=image", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")


async def test_findings_that_are_no_numbers_break_the_model(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """JSON cannot hold NaN; the model is to blame, not the server."""
    result = detection()
    result.confidence[0] = float("nan")
    backend.answer = lambda: result
    answer = await client.post(URL, content=picture())
    assert (answer.status_code, answer.json()["code"]) == (424, "model_broken")
