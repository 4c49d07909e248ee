"""The one door between pages and models: submit, events, cancel, result.

A lane is a device with a worker thread of its own; it runs one job at a time, and takes turns between people. A job has an id, by which
a page that was closed finds it again. Pages read snapshots: what a job is doing now, the newest only, so a slow page cannot hold up a run,
and a run cannot flood a page.
"""

import logging
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from core import catalog, latents, models, room
from core.attention import Record
from core.models import StableDiffusion
from core.sampling import Request, denoise
from core.trace import Trace, to_uint8

log = logging.getLogger(__name__)
T = TypeVar("T")

KEPT_PER_OWNER = 8  # finished runs that a person can come back to
KEPT_BYTES = 2 * 2**30  # finished runs in all: some 300 of the embedded model's
LOADED = 3  # models in memory, beside the embedded ones; and as many private ones
IDLE = 600.0  # seconds after which a private model that nobody uses leaves the memory
OFFERED_PER_OWNER = 24  # private models that a person can choose from
WAITING_PER_OWNER = 3
WAITING = 60
ENDED = ("done", "stopped", "failed")
EMBEDDED = {name: entry.role for name, entry in catalog.CATALOG.items() if entry.embedded}


@dataclass(frozen=True)
class Snapshot:
    """What a job is doing."""

    job: str  # its id
    state: str  # "queued", "loading", "running", "decoding", then one of ENDED
    version: int = 0  # goes up with every change
    place: int = 0  # 1 = first in line, the run that is going on counted; 0 = not waiting
    i: int = 0  # steps done
    count: int = 0  # steps in all
    preview: Tensor | None = None  # (3, h, w) uint8, what x0 looks like now
    noisy: Tensor | None = None  # (3, h, w) uint8, the latents x_in that it was guessed from
    seconds_left: float | None = None
    message: str = ""  # why it failed, in one sentence


@dataclass(frozen=True)
class Part:
    """What a work hands over on its way: the i-th of count values, i from 0."""

    i: int
    count: int
    value: object


Work = Callable[[StableDiffusion], Iterator[Part]]  # it is stopped between two parts, so each should be short


@dataclass(eq=False)
class Job:
    id: str
    owner: str
    model: str
    kind: str  # "run", or what its tab calls such a work
    snapshot: Snapshot
    request: Request | None = None  # of a run
    record: Record | None = None
    work: Work | None = None  # of anything else
    trace: Trace | None = None
    values: list = field(default_factory=list)  # a work's parts so far
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def nbytes(self) -> int:
        return sum(getattr(v, "nbytes", 0) for v in (self.trace, *self.values))

    @property
    def empty(self) -> bool:
        return self.trace is None and not self.values


@dataclass(frozen=True)
class Private:
    """A model that one person trained, and that nobody else sees."""

    role: str  # one of catalog.ROLES
    load: Callable[[], StableDiffusion]
    owner: str


class LocalEngine:
    """Runs jobs in this process, on one device.

    load: name -> StableDiffusion, called on the worker's thread the first time a model is asked for. allowed: the names that requests may
    ask for (a forged menu value is refused), and the role of each; names alone are base models. All methods may be called from any thread.
    """

    def __init__(
        self, load: Callable[[str], StableDiffusion] = models.load, allowed: Iterable[str] | Mapping[str, str] = EMBEDDED
    ):
        self._load = load
        self.allowed: dict[str, str] = dict(allowed) if isinstance(allowed, Mapping) else dict.fromkeys(allowed, "base")
        self._private: OrderedDict[str, Private] = OrderedDict()  # oldest offer first
        self._models: OrderedDict[str, StableDiffusion] = OrderedDict()  # the one used last stands last
        self._used: dict[str, float] = {}  # when each was asked for last
        self._loading = threading.RLock()  # a private model's load asks for the model that it grew from
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # oldest first
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # owner -> jobs; the first owner is next
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    # --- the four verbs -------------------------------------------------------------------------------------------------------

    def submit(self, request: Request, owner: str = "", record: Record | None = None) -> str:
        """Queues a run and returns its id at once. Raises ValueError for an unknown model or a full queue."""
        return self._queue(owner, request.model, "run", request=request, record=record)

    def submit_work(self, model: str, work: Work, owner: str = "", kind: str = "work") -> str:
        """Queues anything else that needs a model, under the same rules: work(sd) yields its parts, and is stopped between two of
        them. `events` tells how far it is, `values` what it has made."""
        return self._queue(owner, model, kind, work=work)

    def ask(self, model: str, question: Callable[[StableDiffusion], T], owner: str = "") -> T:
        """Waits for a turn of the model, and for the answer: a picture decoded, a prompt encoded, one prediction.

        Raises ValueError with one sentence if it failed."""
        job_id = self.submit_work(model, lambda sd: iter([Part(0, 1, question(sd))]), owner, "question")
        try:
            for _ in self.events(job_id):
                pass
            if not (values := self.values(job_id)):
                raise ValueError("The app was closed before it could answer; start it again.")
            return values[0]
        finally:
            self._drop(job_id)

    def keep(self, trace: Trace, owner: str) -> str:
        """Takes in a run that was made elsewhere (a cell of a sweep, a fork) as one of this person's, and returns its id."""
        job_id = uuid.uuid4().hex
        job = Job(job_id, owner, trace.request.model, "run", Snapshot(job_id, "done"), request=trace.request, trace=trace)
        with self._changed:
            self._jobs[job_id] = job
        return job_id

    def events(self, job_id: str, rate: float = 10.0) -> Iterator[Snapshot]:
        """The job's state now and after each change, the newest only, at most `rate` times a second; ends with the job."""
        with self._changed:
            job = self._job(job_id)
        snapshot = None
        while snapshot is None or snapshot.state not in ENDED:
            with self._changed:
                while job.snapshot is snapshot:
                    self._changed.wait()
                snapshot = job.snapshot
            yield snapshot
            with self._changed:  # not too often, but the end at once
                self._changed.wait_for(lambda: job.snapshot.state in ENDED, 1 / rate)

    def snapshot(self, job_id: str) -> Snapshot | None:
        """What the job is doing now; None if it is no longer kept."""
        with self._changed:
            job = self._jobs.get(job_id)
            return job.snapshot if job else None

    def request(self, job_id: str) -> Request:
        """What a run was asked for."""
        with self._changed:
            request = self._job(job_id).request
        assert request is not None
        return request

    def cancel(self, job_id: str) -> None:
        """Stops a job within one step. Returns at once; a job that has ended stays as it is."""
        with self._changed:
            job = self._job(job_id)
            job.stop.set()
            if job.snapshot.state == "queued":
                self._waiting[job.owner].remove(job)
                if not self._waiting[job.owner]:
                    del self._waiting[job.owner]
                self._tell(job, state="stopped", place=0)
                self._tell_places()

    def values(self, job_id: str, start: int = 0) -> list:
        """What a work has made so far, from the start-th part on. Raises ValueError with its own sentence if it failed."""
        with self._changed:
            job = self._job(job_id)
            if job.snapshot.state == "failed":
                raise ValueError(job.snapshot.message)
            return job.values[start:]

    def result(self, job_id: str, timeout: float | None = None) -> Trace:
        """Waits for the job's end and returns its trace (`stopped` and without a picture if it was stopped).

        Raises ValueError with the job's own sentence if it failed, TimeoutError after `timeout` seconds.
        """
        with self._changed:
            job = self._job(job_id)
            if not self._changed.wait_for(lambda: job.snapshot.state in ENDED, timeout):
                raise TimeoutError(f"The run was not finished after {timeout:g} seconds.")
            if job.snapshot.state == "failed":
                raise ValueError(job.snapshot.message)
            if job.trace is None:
                raise ValueError("The run was stopped before it began.")
            return job.trace

    # --- what pages also ask --------------------------------------------------------------------------------------------------

    def model(self, name: str) -> StableDiffusion:
        """The loaded model; the first call loads it, later ones wait for that or return at once. For reading, not for running."""
        with self._changed:
            if name not in self.allowed and name not in self._private:
                raise self._unknown(name)
            self._used[name] = time.monotonic()
            if (sd := self._models.get(name)) is not None:  # not waiting for `_loading`: another model may be loading for a while
                self._models.move_to_end(name)
                return sd
        with self._loading:
            with self._changed:
                private, sd = self._private.get(name), self._models.get(name)
            if sd is None:
                if private is None and name not in self.allowed:  # withdrawn while we waited
                    raise self._unknown(name)
                self._make_room(name)
                sd = private.load() if private else self._load(name)
                with self._changed:
                    if private is self._private.get(name):  # not offered anew meanwhile
                        self._models[name] = sd
            return sd

    def _make_room(self, name: str) -> None:
        """Lets go of the model of its kind, private or not, that was used least recently; whoever still reads it keeps it."""
        with self._changed:
            kind = [one for one in self._models if one not in EMBEDDED and (one in self._private) == (name in self._private)]
            if len(kind) >= LOADED and name not in EMBEDDED:
                del self._models[kind[0]]

    def _rest(self) -> None:
        """Lets go of private models that nobody has used for a while: a large one has gigabytes."""
        with self._changed:
            for name in [one for one in self._models if one in self._private and time.monotonic() - self._used[one] > IDLE]:
                del self._models[name]

    def check(self, name: str, owner: str | None = None) -> None:
        """Raises ValueError if this is no model of everyone's, nor this owner's own."""
        with self._changed:
            if name not in self.allowed and (name not in self._private or self._private[name].owner != owner):
                raise self._unknown(name)

    def _unknown(self, name: str) -> ValueError:
        return ValueError(f"There is no model {str(name)[:40]!r} in this app; choose one of {', '.join(self.allowed)}.")

    def offer(self, name: str, role: str, load: Callable[[], StableDiffusion], owner: str) -> None:
        """Adds a model that this owner alone can choose and run. load is called on first use; offering a name again replaces it.
        Of too many of one owner's, the oldest goes."""
        with self._changed:
            if name in self.allowed or (name in self._private and self._private[name].owner != owner):
                raise ValueError(f"The name {name[:40]!r} is taken; choose another.")
            self.withdraw(name)
            self._private[name] = Private(role, load, owner)
            for old in [n for n, its in self._private.items() if its.owner == owner][:-OFFERED_PER_OWNER]:
                self.withdraw(old)

    def withdraw(self, name: str) -> None:
        """Takes a private model away; one that is not there is none to take."""
        with self._changed:
            if self._private.pop(name, None):
                self._models.pop(name, None)
                self._used.pop(name, None)

    def for_role(self, role: str, owner: str | None = None) -> list[str]:
        """The models for one of catalog.ROLES: those of everyone, then this owner's own, newest first."""
        with self._changed:
            own = [name for name, its in self._private.items() if its.role == role and its.owner == owner]
            return [name for name, its in self.allowed.items() if its == role] + own[::-1]

    def loaded(self, name: str) -> StableDiffusion | None:
        """The model if it is in memory already, else None; never loads, never waits."""
        return self._models.get(name)

    def busy(self) -> int:
        """How many runs wait or run now, everyone's."""
        with self._changed:
            return (self._running is not None) + sum(map(len, self._waiting.values()))

    def mine(self, owner: str, kind: str = "run") -> list[str]:
        """Ids of this person's jobs of one kind that are still kept, oldest first."""
        with self._changed:
            return [job.id for job in self._jobs.values() if job.owner == owner and job.kind == kind]

    def forget(self, owner: str) -> None:
        """Stops and lets go of everything of this person's."""
        for job_id in [job.id for job in list(self._jobs.values()) if job.owner == owner]:
            with suppress(ValueError):
                self.cancel(job_id)
            self._drop(job_id)
        for name in [name for name, its in list(self._private.items()) if its.owner == owner]:
            self.withdraw(name)

    def close(self) -> None:
        """Stops the worker at its next step. Jobs that wait are stopped."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
                if job.snapshot.state == "queued":
                    self._tell(job, state="stopped", place=0)
            self._waiting.clear()
            self._changed.notify_all()
        self._worker.join()

    # --- the worker -----------------------------------------------------------------------------------------------------------

    def _queue(self, owner: str, model: str, kind: str, **what: object) -> str:
        with self._changed:
            self.check(model, owner)
            if self._closed:
                raise ValueError("The app is closing; start it again to draw.")
            mine = self._waiting.setdefault(owner, deque())
            if len(mine) >= WAITING_PER_OWNER:
                raise ValueError(f"You have {len(mine)} runs waiting already; let one finish, or stop one.")
            if sum(map(len, self._waiting.values())) >= WAITING:
                raise ValueError(f"{WAITING} runs are waiting; try again in a minute.")
            job_id = uuid.uuid4().hex
            job = Job(job_id, owner, model, kind, Snapshot(job_id, "queued"), **what)  # pyright: ignore[reportArgumentType]
            mine.append(job)
            self._jobs[job_id] = job
            self._tell_places()
        return job_id

    def _drop(self, job_id: str) -> None:
        with self._changed:
            self._jobs.pop(job_id, None)

    def _job(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise ValueError("This run is no longer kept; make it again from its settings.")
        return self._jobs[job_id]

    def _tell(self, job: Job, **changes: object) -> None:
        with self._changed:
            job.snapshot = replace(job.snapshot, version=job.snapshot.version + 1, **changes)  # pyright: ignore[reportArgumentType]
            self._changed.notify_all()

    def _order(self) -> list[Job]:
        """Everyone's first job, then everyone's second: whoever asked for ten waits no less than whoever asked for one."""
        queues = [list(q) for q in self._waiting.values()]
        return [q[k] for k in range(max(map(len, queues), default=0)) for q in queues if k < len(q)]

    def _tell_places(self) -> None:
        ahead = 1 if self._running else 0
        for place, job in enumerate(self._order(), 1 + ahead):
            if job.snapshot.place != place:
                self._tell(job, place=place)

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            self._forget()
            while not self._closed and not any(self._waiting.values()):
                self._changed.wait(IDLE)
                self._rest()
            if self._closed:
                return None
            job = self._order()[0]
            queue = self._waiting.pop(job.owner)
            queue.popleft()
            if queue:
                self._waiting[job.owner] = queue  # to the end of the round
            self._running = job
            self._tell(job, state="loading" if job.model not in self._models else "running", place=0)
            self._tell_places()
            return job

    def _forget(self) -> None:
        """Lets go of the oldest ended runs: of each person beyond a number, of all beyond a size."""
        ended = [j for j in self._jobs.values() if j.snapshot.state in ENDED]
        empty = [j for j in ended if j.empty]  # failed, or stopped in the queue: kept for whoever still asks why
        full = [j for j in ended if not j.empty]
        gone = empty[:-WAITING]
        for owner, kind in {(j.owner, j.kind) for j in full}:
            gone += [j for j in full if (j.owner, j.kind) == (owner, kind)][:-KEPT_PER_OWNER]
        size = sum(j.nbytes for j in full if j not in gone)
        for job in [j for j in full if j not in gone]:
            if size > KEPT_BYTES:
                size -= job.nbytes
                gone.append(job)
        for job in gone:
            self._jobs.pop(job.id, None)
        for owner in [o for o, q in self._waiting.items() if not q]:
            del self._waiting[owner]

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._run(job)
            except ValueError as error:
                self._tell(job, state="failed", message=str(error))
            except torch.OutOfMemoryError:
                self._tell(
                    job, state="failed", message="The device ran out of memory; choose a smaller size or wait for other runs."
                )
            except Exception as error:  # a fault of ours must not end the lane; the page gets its name, the log the rest
                log.exception("Run %s failed", job.id)
                why = f"The run failed ({type(error).__name__}, {job.id[:8]}); the server's log says more."
                self._tell(job, state="failed", message=why)

    def _run(self, job: Job) -> None:
        sd = self.model(job.model)
        if job.stop.is_set():  # stopped while its model was loading
            self._tell(job, state="stopped")
        elif job.work:
            self._do(job, sd, job.work)
        else:
            assert job.request is not None
            self._draw(job, sd, job.request)

    def _do(self, job: Job, sd: StableDiffusion, work: Work) -> None:
        began, part = time.perf_counter(), None
        self._tell(job, state="running")
        for part in work(sd):
            job.values.append(part.value)
            done = part.i + 1
            left = (time.perf_counter() - began) / done * (part.count - done)
            self._tell(job, i=done, count=part.count, seconds_left=left)
            if job.stop.is_set():
                break
        self._tell(job, state="done" if part is None or part.i + 1 == part.count else "stopped")

    def _draw(self, job: Job, sd: StableDiffusion, request: Request) -> None:
        room.check(sd, request)
        began = time.perf_counter()
        trace = Trace.start(sd, request)
        self._tell(job, state="running")
        last = None
        for last in trace.follow(denoise(sd, request, job.record)):
            done, took = last.i + 1, time.perf_counter() - began
            preview, noisy = (to_uint8(latents.preview(sd, z))[0].cpu() for z in (last.x0, last.x_in))
            left = took / done * (last.count - done)
            self._tell(job, i=done, count=last.count, preview=preview, noisy=noisy, seconds_left=left)
            if job.stop.is_set():
                break
        assert last is not None  # a request has at least one step
        trace.stopped = last.i + 1 < last.count
        if not trace.stopped:
            self._tell(job, state="decoding", seconds_left=None)
            trace.finish(sd, last.x_next)
        trace.seconds = time.perf_counter() - began
        job.trace = trace
        self._tell(job, state="stopped" if trace.stopped else "done")
