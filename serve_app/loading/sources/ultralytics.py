"""Ultralytics' published weights, downloaded once per node."""

import asyncio
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import IO

import httpx

from serve_app.engines import downloads_are_forbidden
from serve_app.errors import ModelNotFoundError, SourceUnavailableError
from serve_app.loading.node_lock import node_lock
from serve_app.types import ModelSpec

_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 30.0
_CHUNK_BYTES = 2**20
_DOWNLOAD_TIMEOUT_S = 600.0
_ADVICE = "put the file into the model repository, or give this machine access to the network"


class UltralyticsSource:
    """Downloads `spec.location`, a URL, into `cache_dir/<name>/<version>.<format>`."""

    def __init__(
        self, cache_dir: Path, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Keep files under `cache_dir`; `transport` replaces the network in tests."""
        self._cache_dir = cache_dir
        self._transport = transport

    async def fetch(self, spec: ModelSpec) -> Path:
        """Return the cached file, downloaded first when there is none.

        Raises:
            ModelNotFoundError: there is no such file at the other end
            SourceUnavailableError: offline, unreachable, cut short, or no room on the disk
        """
        path = self._cache_dir / spec.key.name / f"{spec.key.version}.{spec.format}"
        if path.exists():
            return path
        if downloads_are_forbidden():
            raise SourceUnavailableError(
                f"{spec.key} is not on this machine and YOLO_OFFLINE forbids downloading; {_ADVICE}"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            async with node_lock(path.with_suffix(".lock")):
                if not path.exists():  # another replica may have been quicker
                    await self._download(spec, path)
        except OSError as error:
            raise SourceUnavailableError(
                f"{spec.key} cannot be stored ({error.strerror}); check the cache folder's disk"
            ) from None
        return path

    async def _download(self, spec: ModelSpec, path: Path) -> None:
        partial = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            with partial.open("wb") as file:
                async with asyncio.timeout(_DOWNLOAD_TIMEOUT_S):
                    await self._stream(spec, file)
                await asyncio.to_thread(_sync, file)
            os.replace(partial, path)
        except TimeoutError:
            raise SourceUnavailableError(
                f"the download of {spec.key} took longer than {_DOWNLOAD_TIMEOUT_S:g} s; {_ADVICE}"
            ) from None
        except httpx.HTTPError as error:
            # The error's text may hold the URL with its credentials: only its kind is told.
            raise SourceUnavailableError(
                f"{spec.key} cannot be downloaded ({type(error).__name__}); {_ADVICE}"
            ) from None
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()

    async def _stream(self, spec: ModelSpec, file: IO[bytes]) -> None:
        timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        async with (
            httpx.AsyncClient(
                timeout=timeout, follow_redirects=True, transport=self._transport
            ) as client,
            client.stream("GET", spec.location, headers={"Accept-Encoding": "identity"}) as answer,
        ):
            _check_status(spec, answer.status_code)
            received = 0
            async for chunk in answer.aiter_bytes(_CHUNK_BYTES):
                received += len(chunk)
                await asyncio.to_thread(file.write, chunk)
            declared = answer.headers.get("Content-Length")
        if received == 0 or (declared is not None and received != int(declared)):
            raise SourceUnavailableError(
                f"the download of {spec.key} was cut short after {received} bytes; ask again"
            )


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_status(spec: ModelSpec, status: int) -> None:
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise ModelNotFoundError(f"{spec.key} is not among Ultralytics' published weights")
    if status != httpx.codes.OK:
        raise SourceUnavailableError(
            f"{spec.key} cannot be downloaded: the server answered {status}; {_ADVICE}"
        )
