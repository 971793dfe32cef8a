"""Handing out cells, taking their results, and giving out again what a dead worker had."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from llr.recovery.sweep.board import Board, Heart, Plan, Pulse
from llr.recovery.sweep.runner import Outcome
from llr.recovery.sweep.spec import Cell

_AHEAD = 256  # cells on the board that nobody has taken yet
_MOST_DEATHS = 3  # of one cell


@dataclass
class _Ticket:
    cell: Cell
    owner: str | None = None
    unclaimed: int = 0
    lost: bool = False


@dataclass
class _Worker:
    pulse: Pulse = field(default_factory=Pulse)
    own: bool = False
    silent: bool = False
    buried: bool = False
    gone: bool = False

    @property
    def dead(self) -> bool:
        return self.silent or self.buried


class Coordinator:
    """Hands out cells and takes their results; :meth:`step` is one round of that, until none is `left`.

    Args:
        board: empty, or with keys of dead predecessors.
        cells: to be computed.
        plan: for the workers.
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
        self._heart = Heart(self._board, "coordinator", plan.tick)
        self._heart.start()

    @property
    def left(self) -> int:
        """How many cells have no outcome yet."""
        return len(self._left)

    def step(self) -> None:
        """Welcome who came, take results, give out again what the dead had, publish more."""
        self._welcome()
        self._look()
        issued = min(self._board.add("next", 0), len(self._tickets))
        for number in range(self._issued, issued):
            self._open[number] = self._tickets[number]
        self._issued = issued
        for number, ticket in list(self._open.items()):
            self._follow(number, ticket)
        self._publish()

    def adopt(self, name: str) -> None:
        """Say that a worker is a process of the coordinator's own, whose death is seen without its beat."""
        self._workers[name] = _Worker(own=True)

    def bury(self, name: str) -> None:
        """Say that an adopted worker is dead."""
        self._workers[name].buried = True

    def end(self, reason: str = "") -> None:
        """Send everybody home: at the end, or for a reason before it."""
        self._board.set("end", reason)
        self._ended = 0

    def awaits(self, others: int = 0) -> bool:
        """Whether somebody has yet to hear of the end; none of them is awaited longer than a lease.

        Args:
            others: how many workers there are beside those adopted, some of which may only be starting.
        """
        self._welcome()
        self._ended += self._look()
        for name, worker in self._workers.items():
            worker.gone = worker.gone or self._board.get(f"bye/{name}") is not None
        here = [worker for worker in self._workers.values() if not (worker.gone or worker.dead)]
        absent = others - sum(not worker.own for worker in self._workers.values())
        return self._ended <= self._plan.patience and (bool(here) or absent > 0)

    def close(self) -> None:
        """Stop the heart."""
        self._heart.stop()

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
        """Feel all pulses, if it is time for that again."""
        if time.monotonic() - self._looked < self._plan.tick:
            return False
        self._looked = time.monotonic()
        for name, worker in self._workers.items():
            if not worker.gone:
                still = worker.pulse.felt(self._board.get(f"beat/{name}"))
                worker.silent = still > self._plan.patience
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
            # It stays open: a worker that was only slow may still answer.
            ticket.lost = True
            self._give_again(ticket, begun=self._board.get(f"begun/{number}") is not None)

    def _is_lost(self, number: int, ticket: _Ticket) -> bool:
        if ticket.owner is None:
            ticket.owner = self._board.get(f"claim/{number}")
        if ticket.owner is None:  # it died between taking the ticket and saying so
            return ticket.unclaimed > self._plan.patience
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
