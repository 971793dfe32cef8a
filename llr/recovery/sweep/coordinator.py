"""The coordinator: hands out cells, takes their results, and hands out the cells of dead workers again."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from llr.recovery.sweep.board import Board, Heartbeat, Plan, Silence
from llr.recovery.sweep.runner import Outcome
from llr.recovery.sweep.spec import Cell

_AHEAD = 256  # cells on the board that no worker has taken yet
_MOST_DEATHS = 3  # of processes that compute one cell


@dataclass
class _Ticket:
    cell: Cell
    owner: str | None = None
    unclaimed: int = 0
    lost: bool = False


@dataclass
class _Worker:
    silence: Silence = field(default_factory=Silence)
    own: bool = False
    silent: bool = False
    ended: bool = False
    gone: bool = False

    @property
    def dead(self) -> bool:
        return self.silent or self.ended


class Coordinator:
    """Hands out cells and takes their results. Call :meth:`step` until no cell is `left`.

    Args:
        board: the board, empty or with keys of dead predecessors.
        cells: the cells to compute.
        plan: what the workers have to know.
        record: called with each cell's first outcome.
    """

    def __init__(
        self,
        board: Board,
        cells: Sequence[Cell],
        plan: Plan,
        record: Callable[[Cell, Outcome], None],
    ) -> None:
        self._entrance = board
        self._generation = uuid.uuid4().hex
        self._board = board.under(self._generation)
        self._plan = plan
        self._record = record
        self._pending = deque(cells)
        self._left = set(cells)
        self._tickets: list[_Ticket] = []
        self._open: dict[int, _Ticket] = {}
        self._issued = 0
        self._workers: dict[str, _Worker] = {}
        self._joined = 0
        self._nameless: set[int] = set()
        self._deaths: dict[Cell, int] = {}
        self._looked = time.monotonic()
        self._ended = 0
        self._board.set("plan", asdict(plan))
        self._publish()
        self._heartbeat = Heartbeat(self._board, "coordinator", plan.tick)
        self._heartbeat.start()

    @property
    def left(self) -> int:
        """How many cells have no outcome yet."""
        return len(self._left)

    def step(self) -> None:
        """Answer new workers, take results, publish the cells of dead workers again, publish more cells."""
        self._welcome()
        self._look()
        issued = min(self._board.add("next", 0), len(self._tickets))
        for number in range(self._issued, issued):
            self._open[number] = self._tickets[number]
        self._issued = issued
        for number, ticket in list(self._open.items()):
            self._follow(number, ticket)
        self._publish()

    def add_own(self, name: str) -> None:
        """Register a worker process of the coordinator, whose end is noticed without its counter."""
        self._workers[name] = _Worker(own=True)

    def mark_ended(self, name: str) -> None:
        """Mark one of the coordinator's own worker processes as ended."""
        self._workers[name].ended = True

    def end(self, reason: str = "") -> None:
        """Tell all workers to stop: at the end of the sweep, or earlier for a reason."""
        self._board.set("end", reason)
        self._ended = 0

    def awaits(self, others: int = 0) -> bool:
        """Whether a worker has not yet read the end. None of them is waited for longer than a lease.

        Args:
            others: the number of workers that are not the coordinator's own; some may still be starting.
        """
        self._welcome()
        self._ended += self._look()
        for name, worker in self._workers.items():
            worker.gone = worker.gone or self._board.get(f"bye/{name}") is not None
        here = [worker for worker in self._workers.values() if not (worker.gone or worker.dead)]
        absent = others - sum(not worker.own for worker in self._workers.values())
        return self._ended <= self._plan.most_silent and (bool(here) or absent > 0)

    def close(self) -> None:
        """Stop the heartbeat."""
        self._heartbeat.stop()

    def _welcome(self) -> None:
        joined = self._entrance.add("joins", 0)
        self._nameless.update(range(self._joined + 1, joined + 1))
        self._joined = joined
        for number in sorted(self._nameless):
            name = self._entrance.get(f"join/{number}")
            if name is not None:
                self._nameless.discard(number)
                self._workers.setdefault(name, _Worker())
                self._entrance.set(f"welcome/{name}", self._generation)

    def _look(self) -> bool:
        """Read the counters of all workers, at most once a tick; return whether they were read."""
        if time.monotonic() - self._looked < self._plan.tick:
            return False
        self._looked = time.monotonic()
        for name, worker in self._workers.items():
            if not worker.gone:
                still = worker.silence.measure(self._board.get(f"beat/{name}"))
                worker.silent = still > self._plan.most_silent
        for ticket in self._open.values():
            ticket.unclaimed += ticket.owner is None
        return True

    def _follow(self, number: int, ticket: _Ticket) -> None:
        answer = self._board.get(f"result/{number}")
        if answer is not None:
            del self._open[number]
            self._settle(ticket.cell, Outcome(**answer))
            for kind in ("cell", "claim", "begun", "result"):
                self._board.forget(f"{kind}/{number}")
        elif not ticket.lost and self._is_lost(number, ticket):
            # The ticket stays open: a worker that was only slow may still answer.
            ticket.lost = True
            self._give_again(ticket, begun=self._board.get(f"begun/{number}") is not None)

    def _is_lost(self, number: int, ticket: _Ticket) -> bool:
        if ticket.owner is None:
            ticket.owner = self._board.get(f"claim/{number}")
        if (
            ticket.owner is None
        ):  # the worker may have died between taking the ticket and claiming it
            return ticket.unclaimed > self._plan.most_silent
        return self._workers[ticket.owner].dead

    def _give_again(self, ticket: _Ticket, begun: bool) -> None:
        cell = ticket.cell
        if cell not in self._left:
            return
        deaths = self._deaths[cell] = self._deaths.get(cell, 0) + begun
        if deaths < _MOST_DEATHS:
            self._pending.append(cell)
            return
        error = f"its process died {deaths} times: killed, out of memory, or crashed in native code"
        self._settle(cell, Outcome(None, error, worker=ticket.owner or ""))

    def _settle(self, cell: Cell, outcome: Outcome) -> None:
        if cell in self._left:
            self._record(cell, outcome)
            self._left.discard(cell)

    def _publish(self) -> None:
        while self._pending and len(self._tickets) < self._issued + _AHEAD:
            cell = self._pending.popleft()
            self._board.set(f"cell/{len(self._tickets)}", dict(cell.values))
            self._tickets.append(_Ticket(cell))
