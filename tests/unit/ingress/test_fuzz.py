"""No input of any kind gives a 500."""

import asyncio
import io
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.ingress.app import create_api
from serve_app.ingress.limits import IngressLimits
from serve_app.ingress.parameters import WITH_MODEL
from serve_app.registry.catalog import Registry
from serve_app.registry.folder import FolderScanner
from serve_app.settings import AppArgs
from tests.unit.ingress.fakes import FakeBackend, picture

PICTURES = [picture(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")]
KNOWN = [parameter.name for parameter in WITH_MODEL]
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a picture with a few bytes changed and its end cut off."""
    data = bytearray(draw(st.sampled_from(PICTURES)))
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=8)):
        data[place] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


content = st.one_of(damaged(), st.sampled_from(PICTURES), st.binary(max_size=300))
forms = st.builds(
    lambda head, data, tail: head + data + tail,
    st.sampled_from([FORM, FORM[:-4], b"--b", b"--b\r\n", FORM + b"x\r\n" + FORM]),
    content,
    st.sampled_from([b"\r\n--b--\r\n", b"--b--", b"", b"\r\n--b\r\n"]),
)
latin = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30)
media_types = st.one_of(
    st.sampled_from(["image/jpeg", "", "application/json", "text/plain", "multipart/form-data"]),
    st.builds("multipart/form-data; boundary=b; {}".format, latin),
    st.builds("multipart/form-data; {}=b; charset={}".format, latin, latin),
    latin,
)
values = st.one_of(
    st.sampled_from(["0.5", "640", "1", "true", "json", "image", "nan", "", "1e400", "parts"]),
    st.text(max_size=20),
)
names = st.one_of(
    st.sampled_from(KNOWN), st.sampled_from(["source", "copies"]), st.text(max_size=8)
)
query = st.lists(st.tuples(names, values), max_size=4)
header_names = [
    "X-Request-Id",
    "Host",
    "Content-Encoding",
    "Content-Length",
    "serve_multiplexed_model_id",
    "Accept",
]
headers = st.dictionaries(st.sampled_from(header_names), latin, max_size=2)
plain_paths = ["/v1/models/parts/predict", "/v1/predict", "/v1/models", "/docs", "/v1/replicas"]
paths = st.one_of(
    st.sampled_from(plain_paths),
    st.builds("/v1/models/{}/predict".format, st.text(max_size=12)),
    st.builds("/v1/models/{}".format, st.text(max_size=12)),
    st.builds("/v1/models/parts/{}".format, st.sampled_from(["load", "pin", "unpin", "unload"])),
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> httpx.ASGITransport:
    """Return the API; hypothesis calls it in many event loops, one after the other."""
    repository: Path = tmp_path_factory.mktemp("models")
    (repository / "parts/1").mkdir(parents=True)
    (repository / "parts/1/model.pt").touch()
    args = AppArgs.parse({"max_body_bytes": 2000, "request_timeout_s": 5.0})
    limits = IngressLimits.from_settings(args)
    registry = Registry(FolderScanner(repository))
    return httpx.ASGITransport(create_api(FakeBackend(), registry, limits))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["POST", "POST", "POST", "POST", "GET", "PUT"]),
    path=paths,
    pairs=query,
    media_type=media_types,
    body=st.one_of(content, forms),
    more=headers,
)
def test_no_input_gives_a_server_error(
    api: httpx.ASGITransport,
    method: str,
    path: str,
    pairs: list[tuple[str, str]],
    media_type: str,
    body: bytes,
    more: dict[str, str],
) -> None:
    """Whatever is sent, the answer is a result or a problem that tells what was wrong."""
    sent = {**more, "Content-Type": media_type}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    url = httpx.URL("http://server" + quote(path)).copy_merge_params(
        httpx.QueryParams(tuple(pairs))
    )

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=api) as client:
            return await client.request(method, url, content=body, headers=encoded)

    answer = asyncio.run(call())
    assert answer.status_code < 500, answer.text
    assert answer.headers["x-request-id"]
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["detail"]
        assert io.StringIO(problem["detail"]).readline() == problem["detail"]
