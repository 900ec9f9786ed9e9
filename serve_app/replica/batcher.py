"""Takes pictures through decoding and the model, in batches, fairly and in time.

Two stages, each with a queue of its own and the same fairness: decoder threads make inputs ahead,
as far as a bound in bytes allows, and streams run them. Threads pull their work from the queues
and hand it on to each other, so a late event loop holds up nobody's picture but the next.
"""

import asyncio
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from serve_app.engines.base import Answer, EngineModel, ModelInput
from serve_app.engines.decoding import decode_guarded
from serve_app.engines.streams import Streams, Work
from serve_app.engines.worker import outlast
from serve_app.errors import DeadlineExceededError, OverloadedError, ReplicaFailingError
from serve_app.replica.passes import run_pass
from serve_app.replica.scheduler import FairScheduler, Ticket, Turn
from serve_app.replica.timings import Shape, Timings
from serve_app.types import ImageArray, ImageResult, ModelKey, PredictParams

logger = logging.getLogger(__name__)

MAX_DECODED_BYTES = 256 * 2**20
"""Decoded pictures held at once; the largest JPEG takes 190 MB."""
_DECODERS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Encoded pictures for one model, all to be answered by `deadline` (of the batcher's clock).

    The caller keeps `model` open until `Batcher.answer` has returned or raised.
    """

    key: ModelKey
    model: EngineModel
    images: tuple[bytes, ...]
    params: PredictParams
    annotate: bool
    deadline: float


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What was found in one picture; `waited_s`: seconds in the queues of both stages."""

    result: ImageResult
    waited_s: float


@dataclass(slots=True, eq=False)
class _Job:
    """One picture on its way. It waits with a `ticket` of `queue`, or a thread has it, or it ended.

    since: when it began to wait; waited_s: what it has waited before
    held_bytes: what it takes of the bound
    """

    of: Pictures
    data: bytes | None
    timings: Timings
    answered: "asyncio.Future[Answered]"
    since: float
    ticket: "Ticket[_Job] | None" = None
    queue: "FairScheduler[_Job] | None" = None
    withdrawn: bool = False
    waited_s: float = 0.0
    decode_s: float = 0.0
    held_bytes: int = 0
    input: ModelInput | None = None

    @property
    def each_s(self) -> float:
        """Seconds that a stream takes for it in a batch of the best size; 0: nobody knows."""
        shape = self.input.shape if self.input else self.of.params.imgsz or self.of.model.info.imgsz
        return self.timings.expected_s(shape, self.timings.max_batch) / self.timings.max_batch


_Outcome = tuple[_Job, Answered | Exception]


class Batcher:
    """Answers pictures with models on streams; belongs to one event loop."""

    def __init__(
        self,
        streams: Streams,
        decode: Callable[[bytes], ImageArray],
        decoded_bytes: Callable[[bytes], int],
        *,
        max_decoded_bytes: int = MAX_DECODED_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Feed `streams`, which stay the caller's to close.

        Args:
            streams: run the models
            decode: makes a picture of its bytes (decoder thread)
            decoded_bytes: about what that takes, by the header (decoder thread)
            max_decoded_bytes: what decoded pictures may take; one is always allowed
            clock: seconds, also of the deadlines
        """
        self._streams = streams
        self._decode = decode
        self._decoded_bytes = decoded_bytes
        self._max_bytes = max_decoded_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._undecoded: FairScheduler[_Job] = FairScheduler()
        self._ready: FairScheduler[_Job] = FairScheduler()
        self._timings: WeakKeyDictionary[EngineModel, Timings] = WeakKeyDictionary()
        self._room = threading.Condition(self._lock)
        self._room_line: deque[_Job] = deque()
        self._held_bytes = 0
        self._decoding = 0
        self._closed = False
        self._decoders = Streams(_DECODERS, 1, name="decoder")
        self._decoders.pull_from(self._take_undecoded, lambda: len(self._undecoded) > 0)
        streams.pull_from(self._take_ready, self._has_more)

    @property
    def undecoded(self) -> int:
        """How many pictures wait for a decoder thread."""
        return len(self._undecoded)

    @property
    def ready(self) -> int:
        """How many pictures wait for a stream."""
        return len(self._ready)

    @property
    def held_bytes(self) -> int:
        """What decoded pictures take, and the inputs made of them."""
        return self._held_bytes

    async def answer(self, pictures: Pictures) -> list[Answered]:
        """Answer all pictures, in their order; after this no thread uses the model for them.

        Raises:
            DeadlineExceededError: there is not enough time left for one of them
            ReplicaFailingError: the batcher is closed
            OverloadedError: too many of its model's pictures wait already, or the memory ran out
            ServeAppError: whatever else is wrong with the first that failed
        """
        jobs = self._admit(pictures)
        if not jobs:
            return []
        try:
            await asyncio.wait([job.answered for job in jobs], return_when=asyncio.FIRST_EXCEPTION)
            for job in jobs:
                if job.answered.done() and (error := job.answered.exception()) is not None:
                    raise error
            return [job.answered.result() for job in jobs]
        finally:
            await self._withdraw(jobs)

    async def aclose(self) -> None:
        """Refuse what waits and end the decoder threads; batches that run are answered."""
        with self._lock:
            self._closed = True
            waiting = [t.work for t in (*self._undecoded.drain(), *self._ready.drain())]
            outcomes = [self._end(job, _ENDING.copy()) for job in waiting]
            self._room.notify_all()
        _deliver(outcomes)
        await asyncio.to_thread(self._decoders.close)

    # --- in the event loop ----------------------------------------------------------------------

    def _admit(self, pictures: Pictures) -> list[_Job]:
        """Queue the pictures for decoding."""
        loop, now = asyncio.get_running_loop(), self._clock()
        with self._lock:
            if self._closed:
                raise _ENDING.copy()
            model = pictures.model
            timings = self._timings.get(model)
            if timings is None:
                timings = self._timings[model] = Timings(model.profile, model.info.imgsz)
            jobs = [
                _Job(pictures, data, timings, loop.create_future(), now) for data in pictures.images
            ]
            shape = pictures.params.imgsz or model.info.imgsz
            self._check_time(pictures, timings.expected_s(shape, 1), now)
            for job in jobs:
                self._queue(job, self._undecoded, shape, max_batch=1)
        self._decoders.wake()
        return jobs

    def _check_time(self, pictures: Pictures, own_s: float, now: float) -> None:
        """Refuse what would still wait for its model's earlier pictures when its time is over."""
        waiting = [*self._undecoded.of(pictures.key), *self._ready.of(pictures.key)]
        ahead_s = sum(ticket.work.each_s for ticket in waiting) / self._streams.count
        spare_s = pictures.deadline - now - own_s
        if 0 <= spare_s < ahead_s:
            late_s = ahead_s - spare_s
            raise OverloadedError(
                f"{len(waiting)} pictures wait for model {pictures.key} already, which would take "
                f"{late_s:.2f} s longer than there is time: ask again later",
                retry_after_s=late_s,
            )

    async def _withdraw(self, jobs: Sequence[_Job]) -> None:
        """Drop the pictures that still wait, and wait for the threads that have one."""
        with self._lock:
            for job in jobs:
                job.withdrawn = True
                if job.ticket is not None and job.queue is not None:
                    job.queue.cancel(job.ticket)
                    self._release(job)
                    job.answered.cancel()
            self._room.notify_all()  # those that waited for room need none
        await outlast(job.answered for job in jobs)

    # --- in decoder threads ---------------------------------------------------------------------

    def _take_undecoded(self) -> Work | None:
        turn = self._take(self._undecoded)
        if turn is None:
            return None
        return functools.partial(self._prepare, turn)

    def _prepare(self, turn: Turn[_Job]) -> None:
        """Decode a picture, make a model's input of it and queue that."""
        (job,) = (ticket.work for ticket in turn.tickets)
        error: Exception = _ENDING.copy()
        made: ModelInput | None = None
        try:
            made = self._make_input(job)
        except Exception as raised:  # told to the one who waits for it
            error = raised
        outcome: list[_Outcome] = []
        with self._lock:
            self._decoding -= 1
            self._undecoded.done(turn, turn.charged_s)
            job.data = None
            if made is None or job.withdrawn or self._closed:
                outcome = [self._end(job, error)]
            else:
                job.input, job.since = made, self._clock()
                self._hold(job, job.held_bytes + made.pixels.nbytes)
                self._queue(job, self._ready, made.shape, job.timings.max_batch)
        if outcome:
            _deliver(outcome)
        else:
            self._streams.wake()

    def _make_input(self, job: _Job) -> ModelInput | None:
        """Return the input made of a picture once there is room for it; None if withdrawn."""
        assert job.data is not None  # noqa: S101 - it was not decoded yet
        if not self._reserve(job, decode_guarded(self._decoded_bytes, job.data)):
            return None
        started = self._clock()
        # Not watched: how long it takes is up to whoever sent the picture, and it does end.
        image = decode_guarded(self._decode, job.data)
        job.decode_s = self._clock() - started
        with self._lock:
            self._hold(job, image.nbytes)
        with self._streams.watch.step("a preprocessing"):  # which brings it to the device
            return job.of.model.preprocess(image, job.of.params, annotate=job.of.annotate)

    def _reserve(self, job: _Job, nbytes: int) -> bool:
        """Wait for room for a picture, in turn; return whether it is still wanted."""
        started = self._clock()
        with self._room:
            # In line, or small pictures would pass a large one for ever.
            self._room_line.append(job)
            self._room.wait_for(lambda: self._may_decode(job, nbytes))
            self._room_line.remove(job)
            self._room.notify_all()
            job.waited_s += self._clock() - started
            if job.withdrawn or self._closed:
                return False
            self._hold(job, nbytes)
        return True

    def _may_decode(self, job: _Job, nbytes: int) -> bool:
        if job.withdrawn or self._closed:
            return True
        fits = not self._held_bytes or self._held_bytes + nbytes <= self._max_bytes
        return fits and self._room_line[0] is job

    # --- in streams -----------------------------------------------------------------------------

    def _has_more(self) -> bool:
        return len(self._ready) + len(self._undecoded) + self._decoding > 0

    def _take_ready(self) -> Work | None:
        turn = self._take(self._ready)
        return None if turn is None else functools.partial(self._predict, turn)

    def _predict(self, turn: Turn[_Job]) -> None:
        """Run a batch and tell the answers."""
        jobs = [ticket.work for ticket in turn.tickets]
        inputs = [job.input for job in jobs if job.input is not None]
        started = self._clock()
        with self._streams.watch.step("a pass", turn.charged_s):
            answers = run_pass(jobs[0].of.model, inputs)
        seconds = self._clock() - started
        with self._lock:
            self._ready.done(turn, seconds)
            if _is_typical(jobs, answers):
                jobs[0].timings.observe(inputs[0].shape, len(jobs), seconds)
            outcomes = [self._end(job, a) for job, a in zip(jobs, answers, strict=True)]
        _deliver(outcomes)

    # --- in any thread, with the lock -----------------------------------------------------------

    def _queue(self, job: _Job, queue: FairScheduler[_Job], shape: Shape, max_batch: int) -> None:
        expected_s = functools.partial(job.timings.expected_s, shape)
        # The model too: a batch is of one model, whatever is known by its key.
        lane = (shape, id(job.of.model))
        ticket = Ticket(job, job.of.key, lane, job.of.deadline, max_batch, expected_s)
        job.ticket, job.queue = ticket, queue
        queue.add(ticket)

    def _take(self, queue: FairScheduler[_Job]) -> Turn[_Job] | None:
        """Return the next batch of a queue; tell those that come too late."""
        with self._lock:
            now = self._clock()
            turn, expired = queue.take(now)
            late = [self._expire(ticket, now) for ticket in expired]
            for ticket in turn.tickets if turn is not None else ():
                job = ticket.work
                job.ticket = job.queue = None
                job.waited_s += now - job.since
                self._decoding += queue is self._undecoded
        _deliver(late)
        return turn

    def _expire(self, ticket: Ticket[_Job], now: float) -> _Outcome:
        job = ticket.work
        if now < ticket.deadline:
            shape = job.input.shape if job.input else job.of.params.imgsz or job.of.model.info.imgsz
            job.timings.doubt(shape)
        return self._end(
            job,
            DeadlineExceededError(
                f"model {job.of.key} could not answer in the time that was left after "
                f"{job.waited_s + now - job.since:.2f} s in the queue; allow more time, send fewer "
                "pictures at once, or ask again later"
            ),
        )

    def _end(self, job: _Job, answer: ImageResult | Exception) -> _Outcome:
        """Free what a picture holds, and return what is to be told."""
        self._release(job)
        if isinstance(answer, Exception):
            return job, answer
        preprocess_ms = answer.speed_ms.get("preprocess", 0.0) + 1000 * job.decode_s
        result = replace(answer, speed_ms={**answer.speed_ms, "preprocess": preprocess_ms})
        return job, Answered(result, job.waited_s)

    def _release(self, job: _Job) -> None:
        job.ticket = job.queue = job.input = job.data = None
        self._hold(job, 0)

    def _hold(self, job: _Job, nbytes: int) -> None:
        if nbytes < job.held_bytes:
            self._room.notify_all()
        self._held_bytes += nbytes - job.held_bytes
        job.held_bytes = nbytes


_ENDING = ReplicaFailingError("this replica is shutting down: try again later")


def _is_typical(jobs: Sequence[_Job], answers: Sequence[Answer]) -> bool:
    """Whether the time of a batch tells that of the next: drawing takes longer, failing is odd."""
    failed = any(isinstance(answer, Exception) for answer in answers)
    return not failed and not any(job.of.annotate for job in jobs)


def _deliver(outcomes: Sequence[_Outcome]) -> None:
    """Tell the outcomes to their event loop (any thread)."""
    if not outcomes:
        return
    try:
        outcomes[0][0].answered.get_loop().call_soon_threadsafe(_tell, outcomes)
    except RuntimeError:
        logger.warning("an event loop ended before its requests were answered")


def _tell(outcomes: Sequence[_Outcome]) -> None:
    for job, outcome in outcomes:
        if job.answered.done():
            continue
        if isinstance(outcome, Exception):
            job.answered.set_exception(outcome)
        else:
            job.answered.set_result(outcome)
