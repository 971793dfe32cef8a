"""Running a sweep: in this process, in several processes of this machine, or under torchrun."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import distributed

from llr.inputs.named import current_directory_importable
from llr.recovery.sweep.board import POLL, Address, Board, Plan, connect
from llr.recovery.sweep.coordinator import Coordinator
from llr.recovery.sweep.processes import Processes
from llr.recovery.sweep.runner import Outcome, check_cells, execute, load_runner
from llr.recovery.sweep.spec import Cell, Spec
from llr.recovery.sweep.store import Store, open_store
from llr.recovery.sweep.worker import work
from llr.results import Record
from llr.results.phrases import counted
from llr.results.progress import duration, followed, step


@dataclass(frozen=True, repr=False)
class Tally(Record):
    """The state of a sweep.

    Attributes:
        total: the number of cells in the file.
        done: the number of cells with a result.
        failed: the number of cells whose runner raised an error.
        now: how many of the done and failed cells were computed since the start.
        seconds: seconds since the start.
    """

    total: int
    done: int
    failed: int
    now: int = 0
    seconds: float = 0.0

    _order = ("0 <= seconds",)

    @property
    def left(self) -> int:
        """The number of cells that have neither result nor error."""
        return self.total - self.done - self.failed

    @property
    def eta(self) -> float | None:
        """Seconds until the end, from the mean time of a cell so far; None before the first cell."""
        return self.seconds / self.now * self.left if self.now else None

    @property
    def remaining(self) -> str:
        """The remaining time as human-readable text."""
        return "no estimate yet" if self.eta is None else f"{duration(self.eta)} to go"

    def __str__(self) -> str:
        text = f"{self.done} of {counted(self.total, 'cell')} done, {self.failed} failed, {self.left} left"
        return text if not self.seconds else f"{text}; {self.now} computed in {self.seconds:.1f} s"

    def _rules(self) -> Iterator[tuple[bool, str]]:
        ended = self.done + self.failed
        yield ended <= self.total, "no more cells done and failed than total"
        yield self.now <= ended, "now to be no more than done and failed"


def tally(store: Store) -> Tally:
    """The state of the sweep in a file."""
    status = [row.status for row in store.rows()]
    return Tally(len(status), status.count("done"), status.count("failed"))


@followed
def run(
    spec: Spec | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    runner: str | None = None,
    threads: int | None = None,
    jobs: int = 1,
    retry_failed: bool = False,
    extend: bool = False,
    lease: float = 30.0,
    progress: Callable[[Tally], None] | bool | None = None,
) -> Tally | None:
    """Compute the cells of a grid that have no result in a file, and write each result when it is ready.

    The same call continues a sweep that was killed, and repeats no finished cell. The numbers are the same
    for any number of processes: those of a cell follow from its coordinates, on a fixed number of threads.

    Under torchrun every rank makes the same call. Rank 0 writes, and starts a process that computes; the
    other ranks compute, and need neither the spec nor the file. They communicate through the store of
    torch.distributed, without a process group. If a worker dies, another one computes its cell. If torchrun
    restarts the group (``--max-restarts``), rank 0 continues from the file. On several machines, rank 0 is
    where ``--node-rank 0`` is; with a rendezvous it may be on any machine, and spec and file must be on a
    disk that all machines share.

    Args:
        spec: a grid, or a TOML file for :meth:`Spec.read`.
        out: the SQLite file.
        runner: ``module:callable``, called with a dict of a cell's coordinates. It returns a mapping of names
            to text, numbers, booleans or None. If it has an attribute ``check``, that is called first with
            the coordinates of each cell, and raises ValueError for those that are not valid. Default: that of
            the file, or llr's own experiment.
        threads: the number of threads for each cell; default: that of the file, or one. The last bits of
            results depend on it, so that it cannot be changed later.
        jobs: how many processes to start on this machine; not under torchrun.
        retry_failed: compute cells again whose runner raised an error.
        extend: add cells to a file of another spec.
        lease: seconds without a sign of life after which a process of another rank counts as dead.
        progress: False for none; or a function, called with a :class:`Tally` at the start and after each
            cell, once its result is on disk. Default: after two seconds a line on a terminal or in a
            notebook.

    Returns:
        The state of the sweep at the end; None in ranks other than 0.

    Raises:
        ValueError: an argument out of range, a malformed spec or runner, a file of another spec.
        StoreError: the file cannot be read or written; results written before are intact.
        RuntimeError: processes die repeatedly, and no cell is finished.
    """
    if jobs < 1 or (threads is not None and threads < 1):
        raise ValueError(f"jobs is {jobs} and threads is {threads}; expected at least 1 of each")
    if not 0.1 <= lease <= 3600:
        raise ValueError(f"lease is {lease}; expected 0.1 to 3600 seconds")
    group = _group()
    if group is not None and jobs != 1:
        raise ValueError(
            f"jobs is {jobs} under torchrun; expected 1: --nproc-per-node sets the number of processes"
        )
    with current_directory_importable():
        if group is not None and group.rank > 0:
            work(
                group.address, f"rank {group.rank} ({socket.gethostname()}, {uuid.uuid4().hex[:8]})"
            )
            return None
        grid = spec if isinstance(spec, Spec) else Spec.read(spec)
        with open_store(out, grid, runner=runner, threads=threads, extend=extend) as store:
            told = progress if callable(progress) else None
            return _Sweep(store, retry_failed, told).run(group, jobs, lease)


class _Sweep:
    """A sweep in the process that writes."""

    def __init__(
        self, store: Store, retry_failed: bool, progress: Callable[[Tally], None] | None
    ) -> None:
        self._store = store
        self._runner = load_runner(store.runner)
        self._cells = store.pending(retry_failed=retry_failed)
        check_cells(self._runner, self._cells)
        self._progress = progress
        self._started = time.monotonic()
        before = tally(store)
        # Failed cells that are tried again do not count as failed.
        again = len(self._cells) - before.left
        self._tally = replace(before, failed=before.failed - again)
        self._report()

    def run(self, group: _Group | None, jobs: int, lease: float) -> Tally:
        """Compute the cells that are left."""
        if group is None and jobs == 1:
            worker = f"process {os.getpid()} ({socket.gethostname()})"
            for cell in self._cells:
                self._record(
                    cell, execute(self._runner, cell, threads=self._store.threads, worker=worker)
                )
        elif group is not None:
            served = None if group.hosted else connect(group.address, is_master=True)
            self._share(group.address, 1, group.size - 1, lease)
            del served
        elif self._cells:
            with _local_board() as address:
                self._share(address, min(jobs, len(self._cells)), 0, lease)
        return self._tally

    def _share(self, address: Address, own: int, others: int, lease: float) -> None:
        """Let worker processes compute the cells that are left: `own` of them are started here."""
        plan = Plan(self._store.runner, self._store.threads, lease)
        coordinator = Coordinator(Board.at(address), self._cells, plan, self._record)
        own = own if self._cells else 0
        with (
            contextlib.closing(coordinator),
            Processes(coordinator, address, own, plan) as processes,
        ):
            try:
                while coordinator.left:
                    coordinator.step()
                    processes.replace_ended()
                    time.sleep(POLL)
            except BaseException as err:
                with contextlib.suppress(distributed.DistError):  # the board may be gone
                    coordinator.end(str(err) or type(err).__name__)
                    processes.stop()
                    while coordinator.awaits():
                        time.sleep(POLL)
                raise
            coordinator.end()
            while coordinator.awaits(others):
                processes.replace_ended()
                time.sleep(POLL)

    def _record(self, cell: Cell, outcome: Outcome) -> None:
        self._store.record(cell, outcome)
        failed = outcome.status == "failed"
        self._tally = replace(
            self._tally,
            done=self._tally.done + (not failed),
            failed=self._tally.failed + failed,
            now=self._tally.now + 1,
        )
        self._report()

    def _report(self) -> None:
        self._tally = replace(self._tally, seconds=time.monotonic() - self._started)
        if self._progress is not None:
            self._progress(self._tally)
        now = self._tally
        failed = f"{now.failed} failed, " if now.failed else ""
        step(f"cells: {failed}{now.remaining}", now.done + now.failed, now.total)


@contextlib.contextmanager
def _local_board() -> Iterator[Address]:
    """A board that only this machine can reach."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    host, port = listener.getsockname()
    address = Address(host, port, "llr-sweep")
    server = connect(address, is_master=True, master_listen_fd=listener.detach())
    yield address
    del server


@dataclass(frozen=True)
class _Group:
    """The group of processes that torchrun started, from environment variables."""

    rank: int
    size: int
    address: Address
    hosted: bool


def _group() -> _Group | None:
    """The group of this process; None without other processes."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        return None
    rank, size, host, port = (os.environ[name] for name in names)
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    # torchrun's agent serves a store that outlives the workers; without it, rank 0 serves one.
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    group = _Group(int(rank), int(size), Address(host, int(port), f"llr-sweep/{run_id}"), hosted)
    return group if group.size > 1 else None
