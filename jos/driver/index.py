"""An index: one Ray actor that holds one worker and does leases of spans for the driver.

Three threads, so that reading, computing and writing of neighbouring spans overlap; small queues between them, so
that memory stays flat. Only ids, counts and digests go back to the driver; bytes go to object storage.
May import: jos.core, jos.storage, jos.worker.
Tests: tests/unit/test_index.py (without Ray), tests/integration/test_driver.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from jos.core.errors import JobImpossible, JosError, StorageUnavailable
from jos.core.ledger import MAX_FAILURES, STEPS, Blob, Commit
from jos.core.model import Distribute, JobSpec
from jos.core.plan import InputPlan, PlanWork, SpanWork, Work
from jos.core.stimuli import SpanFault
from jos.driver.contract import checked_output, checked_plan, load_worker
from jos.driver.messages import IndexConfig, LeaseReply, Ready, WorkerEvent
from jos.driver.prepared import prepared
from jos.storage import open_storage
from jos.storage.source import FileSource, source_of
from jos.worker import Context, InputInvalid, Output, Span, Trainer, Worker

MAX_MESSAGE = 2000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass
class _Lease:
    """A lease in hand: how many works are still open, and what became of the others."""

    reply: LeaseReply
    open: int
    done: asyncio.Future[LeaseReply]
    loop: asyncio.AbstractEventLoop


@dataclass
class _Item:
    """A span on its way through the threads."""

    lease: _Lease
    work: SpanWork
    span: Span
    data: Any = None
    results: list[Any] = field(default_factory=list)
    output: Output | None = None
    state: bytes | None = None
    model: bytes | None = None
    stopped: int | None = None  # of a training's steps: it stopped early after so many
    begun: float = 0.0


def _short(error: BaseException) -> str:
    """One error as one line for people; the traceback goes to the index's log."""
    text = str(error) if isinstance(error, JosError) else f"{type(error).__name__}: {error}"
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + " …"


def _out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, without importing torch


def _sick(error: BaseException) -> bool:
    """After a CUDA fault the process's context is unusable: every later call fails too."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks for the next batch instead of giving them back to the kernel, which
    then has to clear each page again: batches come and go in one size. Elsewhere there is nothing to tell."""
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 << 20)  # the most that glibc takes
        libc.mallopt(trim_threshold, 256 << 20)


class Index:
    """The actor. `ready` sets the worker up; `run` does one lease; `stop` asks it to finish soon."""

    def __init__(self, config: IndexConfig) -> None:
        self.config = config
        self.spec = JobSpec.stored(config.spec_json)
        self.storage = open_storage(config.storage_url)
        # any thread of the worker's puts in, the event loop takes out: in a list that is swapped for an empty one, what
        # comes in the middle of that would be lost
        self.events: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self.stopping = threading.Event()
        self.drop_after = float("inf")  # monotonic time after which even the span in hand is dropped
        self.worker: Worker
        self.batch_size = 1
        self.begun: Trainer | None = None  # the trainer that has what was prepared
        self.position: int | None = 0  # a trainer's: the step its state stands at; None = unknown, after a fault
        self.to_read: queue.SimpleQueue[tuple[_Lease, Work]] = queue.SimpleQueue()
        self.to_compute: queue.Queue[_Item] = queue.Queue(maxsize=2)
        self.to_write: queue.Queue[_Item] = queue.Queue(maxsize=2)

    # --- called by the driver ---

    async def ready(self) -> Ready:
        started = time.monotonic()
        error: JosError | None = None
        try:
            await asyncio.to_thread(self._setup)
        except JobImpossible as impossible:
            error = impossible
        else:
            for name, loop in (("read", self._read), ("compute", self._compute), ("write", self._write)):
                threading.Thread(target=self._forever, args=(loop,), name=f"jos-{name}", daemon=True).start()
        kind = self.worker.progress_kind if error is None else ""
        trainer = error is None and isinstance(self.worker, Trainer)
        host = os.uname().nodename
        return Ready(host, os.getpid(), time.monotonic() - started, trainer, kind, self._take_events(), error)

    async def run(self, lease: int, work: tuple[Work, ...]) -> LeaseReply:
        """Does all of it, in order. One bad span does not stop the others."""
        loop = asyncio.get_running_loop()
        held = _Lease(LeaseReply(lease), len(work), loop.create_future(), loop)
        for one in work:  # no await before this: leases stay in the order they were pushed
            self.to_read.put((held, one))
        reply = await held.done
        reply.events = self._take_events()
        return reply

    async def stop(self, grace: float) -> None:
        """Finish the span in hand if it takes no longer than `grace` seconds, drop the others."""
        self.drop_after = time.monotonic() + grace
        self.stopping.set()

    # --- setup ---

    def _setup(self) -> None:
        keep_freed_memory()
        if "torch" in sys.modules:  # imported ahead (jos.driver.preload), before Ray said how many threads are ours
            sys.modules["torch"].set_num_threads(self.config.threads)
        self.worker = self._new_worker()
        self.batch_size = max(1, int(self.worker.batch_size))

    def _new_worker(self) -> Worker:
        spec, config = self.spec, self.config
        worker = load_worker(spec.pipeline.worker, config.import_paths)()
        inputs = {
            port: [source_of(i) for i in spec.inputs if i.port == port]
            for port, what in spec.pipeline.inputs.items()
            if what.distribute is Distribute.REPLICATE or isinstance(worker, Trainer)
        }
        worker.context = Context(
            spec.config,
            config.index,
            config.device,
            config.threads,
            inputs,
            self._emit,
            self.stopping,
            self._once,
            config.rank,
            config.ranks,
        )
        worker.setup()
        return worker

    def _once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """What is stored counts, also if another index or attempt was faster."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"once({name!r}): a name is letters, digits, '.', '_' and '-'")
        key = f"{self.config.folder}once/{name}"
        if self.storage.stat(key) is None:
            self.storage.create(key, make())
        return self.storage.read(key)

    def _emit(self, event_type: str, level: str, message: str, payload: Mapping[str, Any]) -> None:
        self.events.put(WorkerEvent(event_type, level, message, dict(payload)))

    def _take_events(self) -> list[WorkerEvent]:
        return [self.events.get_nowait() for _ in range(self.events.qsize())]  # nobody else takes

    # --- the three threads ---

    def _forever(self, step: Any) -> None:
        try:
            while True:
                step()
        except BaseException:  # a bug of ours: die loudly, the driver starts another index
            traceback.print_exc()
            os._exit(70)

    def _read(self) -> None:
        lease, work = self.to_read.get()
        if isinstance(work, PlanWork):
            self._plan(lease, work)
            return
        span = Span(work.start, work.end, work.hint, work.hint_start, work.hint_end, work.part)
        item = _Item(lease, work, span)
        if self.stopping.is_set():
            self._fault(item, "dropped: the index was asked to stop", dropped=True)
            return
        if work.bury is None and work.input != STEPS:
            try:
                item.data = self.worker.read(self._source(work.input), span)
            except StorageUnavailable as error:
                self._unread(item, error)
                return
            except Exception as error:
                self._failed(item, error)
                return
        self.to_compute.put(item)

    def _compute(self) -> None:
        item = self.to_compute.get()
        item.begun = time.monotonic()
        try:
            if item.work.bury is None:
                if item.work.input == STEPS:
                    assert isinstance(self.worker, Trainer)
                    if not self._steps(self.worker, item):
                        return
                elif not self._batches(item):
                    return
        except Exception as error:
            self.position = None
            self._failed(item, error)
            return
        item.lease.reply.seconds += time.monotonic() - item.begun
        self.to_write.put(item)

    def _batches(self, item: _Item) -> bool:
        """All micro-batches of a span; False if it was dropped because the index must leave."""
        at, size = 0, len(item.span)
        while at < size:
            if self._must_drop(item):
                return False
            batch = min(self.batch_size, size - at)
            try:
                item.results.append(self.worker.compute(item.data[at : at + batch]))
            except Exception as error:
                if not _out_of_memory(error) or batch == 1:
                    raise
                self._halve(batch, error)
                continue
            at += batch
        return True

    def _halve(self, batch: int, error: Exception) -> None:
        """The GPU is full: a smaller batch from now on. Nothing computed so far is lost."""
        self.batch_size = max(1, batch // 2)
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()
        message = f"index {self.config.index} ran out of GPU memory with batches of {batch}; goes on with {batch // 2}"
        self._emit("inference.oom", "WARN", message, {"batch_size": self.batch_size, "error": _short(error)[:300]})

    def _steps(self, trainer: Trainer, item: _Item) -> bool:
        """A trainer's steps, from the state that the span begins with."""
        work = item.work
        if self.position != work.start:
            if work.state is not None:
                self._begin(trainer)
                trainer.finished = False
                trainer.load(self.storage.read(self.config.folder + work.state))
            elif work.start == 0:
                self.worker = trainer = self._fresh_trainer()
            else:
                self._fault(item, f"the state of step {work.start} is not here", dropped=True)
                return False
            self.position = work.start
        self._begin(trainer)
        metrics: Mapping[str, float] = {}
        for number in range(work.start, work.end):
            if self._must_drop(item):
                self.position = number
                return False
            metrics = trainer.step(number)
            if trainer.finished:
                item.stopped = number + 1
                break
        self.position = work.last if trainer.finished else work.end
        item.output = Output(metrics=dict(metrics))
        if self.config.rank == 0:
            item.state, item.model = trainer.save(), trainer.checkpoint()
        return True

    def _begin(self, trainer: Trainer) -> None:
        """Gives a trainer all that was prepared, once."""
        if self.begun is not trainer:
            trainer.begin(prepared(self.spec, self.storage, self.config.folder))
            self.begun = trainer

    def _fresh_trainer(self) -> Trainer:
        worker = self._new_worker()
        assert isinstance(worker, Trainer)
        return worker

    def _must_drop(self, item: _Item) -> bool:
        if not self.stopping.is_set() or time.monotonic() < self.drop_after:
            return False
        self._fault(item, "dropped: no time was left to finish it", dropped=True)
        return True

    def _write(self) -> None:
        item = self.to_write.get()
        work = item.work
        try:
            output = checked_output(item.output or self._output(item), type(self.worker).__name__)
        except Exception as error:
            self._failed(item, error)
            return
        name = f"{work.input:06d}-{work.start:012d}-{work.end}-{self.config.index}.{self.config.life}"
        body = state = model = None
        try:
            if work.output and (work.header or output.body):
                body = self._put(f"parts/{self.config.attempt}/{name}", work.header + output.body)
            if item.state is not None:
                state = self._put(f"state/{self.config.attempt}/{name}", item.state)
            if item.model is not None:
                model = self._put(f"models/{self.config.attempt}/{name}", item.model)
        except JosError as error:  # the disk is full, or the store is away: the span is not to blame
            self._unwritten(item, error)
            return
        failures = sorted(output.failures.items())
        commit = Commit(
            input=work.input,
            start=work.start,
            end=work.end if item.stopped is None else work.last,
            part=work.part,
            index=self.config.index,
            failed=len(failures),
            failures=tuple((t, m[:MAX_MESSAGE]) for t, m in failures[:MAX_FAILURES]),
            body=body,
            state=state,
            model=model,
            stopped=item.stopped,
            metrics={name: float(value) for name, value in output.metrics.items()},
        )
        self._finish(item.lease, commit=commit)

    def _output(self, item: _Item) -> Output:
        work = item.work
        source = self._source(work.input)
        if work.bury is None:
            return self.worker.write(source, item.span, item.data, item.results)
        try:
            body = self.worker.failed(source, item.span, work.bury)
        except Exception:  # burying must not fail in turn: then the tasks simply have no bytes
            traceback.print_exc()
            body = b""
        # the bad record stands alone by now, so one name is enough, and it is what people look for
        why = f"{self.worker.where(source, work.start)}: {work.bury}"
        return Output(body, dict.fromkeys(range(work.start, work.end), why))

    # --- planning ---

    def _plan(self, lease: _Lease, work: PlanWork) -> None:
        """Cuts the inputs of one group and writes the plan, unless an earlier attempt did already."""
        began = time.monotonic()
        key = f"{self.config.folder}plan/{work.group:08d}.json"
        try:
            if work.bury is not None:
                plans = [InputPlan(ordinal, [0], error=work.bury) for ordinal in work.inputs]
            else:
                plans = [self._plan_one(ordinal) for ordinal in work.inputs]
            self.storage.create(key, orjson.dumps([p.to_json() for p in plans]))
            # what is stored counts, also if another attempt was faster
            plans = [InputPlan.from_json(p) for p in orjson.loads(self.storage.read(key))]
        except StorageUnavailable as error:
            lease.reply.storage_error = _short(error)
            self._finish(lease)
            return
        lease.reply.plans.extend(plans)
        lease.reply.seconds += time.monotonic() - began
        self._finish(lease)

    def _plan_one(self, ordinal: int) -> InputPlan:
        try:
            if ordinal == STEPS:
                assert isinstance(self.worker, Trainer)
                self._begin(self.worker)
                plan = self.worker.steps()
            else:
                plan = self.worker.plan(self._source(ordinal))
            return checked_plan(ordinal, plan, self.worker.port)
        except StorageUnavailable as error:
            if ordinal == STEPS or not self._storage_answers():  # what was prepared lies in our own store
                raise
            return InputPlan(ordinal, [0], error=_short(error))  # this input's own store is away, not ours
        except Exception as error:
            if not isinstance(error, JosError):
                traceback.print_exc()
            return InputPlan(ordinal, [0], error=_short(error))

    # --- ends of a span ---

    def _source(self, ordinal: int) -> FileSource:
        return source_of(self.spec.inputs[ordinal])

    def _put(self, key: str, data: bytes) -> Blob:
        self.storage.write(self.config.folder + key, data)
        return Blob(key, len(data), hashlib.sha256(data).hexdigest())

    def _failed(self, item: _Item, error: Exception) -> None:
        if isinstance(error, StorageUnavailable):
            self._unwritten(item, error)
            return
        if not isinstance(error, JosError):
            traceback.print_exception(error)
        if _sick(error):
            item.lease.reply.sick = _short(error)
        self._fault(item, _short(error), final=isinstance(error, InputInvalid))

    def _unread(self, item: _Item, error: StorageUnavailable) -> None:
        """An input that cannot be read, in a store of its own, fails alone; if it is our store that is away, the job
        waits. Cutting the span in half would help in neither case."""
        if self._storage_answers():
            fault = SpanFault(replace(item.work, state=None), _short(error), whole=True)
            self._finish(item.lease, fault=fault)
        else:
            self._unwritten(item, error)

    def _storage_answers(self) -> bool:
        try:
            return self.storage.stat(f"{self.config.folder}job.json") is not None
        except StorageUnavailable:
            return False

    def _unwritten(self, item: _Item, error: JosError) -> None:
        item.lease.reply.storage_error = _short(error)
        self.position = None
        self._fault(item, _short(error), dropped=True)

    def _fault(self, item: _Item, message: str, *, final: bool = False, dropped: bool = False) -> None:
        work = replace(item.work, state=None)
        self._finish(item.lease, fault=SpanFault(work, message, final, dropped))

    def _finish(self, lease: _Lease, commit: Commit | None = None, fault: SpanFault | None = None) -> None:
        """One work of a lease is over; the lease goes back when all are. Called from any of the threads."""
        lease.loop.call_soon_threadsafe(self._settle, lease, commit, fault)

    @staticmethod
    def _settle(lease: _Lease, commit: Commit | None, fault: SpanFault | None) -> None:
        if commit is not None:
            lease.reply.commits.append(commit)
        if fault is not None:
            lease.reply.faults.append(fault)
        lease.open -= 1
        if lease.open == 0 and not lease.done.done():
            lease.done.set_result(lease.reply)
