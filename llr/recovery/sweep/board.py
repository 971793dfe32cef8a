"""The board: keys by which the processes of a sweep communicate, in the key-value store of torch.distributed.

One process, the coordinator, hands out cells and writes their results; the other processes are workers.
They do not use collective operations, in which one dead process would block all others. T is the number of a
ticket, W the name of a worker:

    cell/T      the cell of ticket T, published by the coordinator in the order of T
    next        the next ticket: an atomic counter, so that no two workers get the same one
    claim/T     the worker that took the ticket
    begun/T     set when the worker has read the cell and computes it
    result/T    the outcome of the cell
    beat/W      a counter that grows while W lives. The cell of a worker whose counter has stopped is
                published again, under another ticket; the first result of a cell counts, and all are equal
    end         an empty text if nothing is left to do, or the reason why the sweep stops
    bye/W       set when W has read the end

A worker first writes its name to join/I, and waits at welcome/W for the prefix of this coordinator's keys. A
group that torchrun has restarted may find keys of its dead predecessor in the store; the prefix keeps them
apart.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import distributed

POLL = 0.02
"""Seconds between two reads of the board."""

JOINING = 300.0
"""Seconds within which the processes of a group must connect to each other."""


@dataclass(frozen=True)
class Address:
    """The address of a board."""

    host: str
    port: int
    prefix: str


def connect(address: Address, **server: Any) -> Any:
    """Connect to the store at an address, or serve it from this process if `server` has arguments for that.

    Raises:
        RuntimeError: a torch without torch.distributed.
    """
    if not distributed.is_available():
        raise RuntimeError(
            "this torch was built without torch.distributed: use one process (--jobs 1)"
        )
    torch_distributed: Any = distributed  # its annotations lack names that it exports
    return torch_distributed.TCPStore(
        address.host,
        address.port,
        wait_for_workers=False,
        timeout=timedelta(seconds=JOINING),
        **server,
    )


class Board:
    """JSON values by key, which all processes can read and write."""

    def __init__(self, store: Any, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    @classmethod
    def at(cls, address: Address) -> Board:
        """The board at an address."""
        return cls(connect(address), address.prefix)

    def under(self, prefix: str) -> Board:
        """The part of the board under another prefix."""
        return Board(self._store, f"{self._prefix}/{prefix}")

    def another(self) -> Board:
        """A board with a new connection, for another thread: a connection takes one call at a time."""
        return Board(self._store.clone(), self._prefix)

    def set(self, key: str, value: Any) -> None:
        """Write a value."""
        self._store.set(f"{self._prefix}/{key}", json.dumps(value))

    def get(self, key: str) -> Any:
        """The value of a key; None if there is none."""
        name = f"{self._prefix}/{key}"
        return json.loads(self._store.get(name)) if self._store.check([name]) else None

    def forget(self, key: str) -> None:
        """Delete a key."""
        self._store.delete_key(f"{self._prefix}/{key}")

    def add(self, key: str, amount: int) -> int:
        """Add to a counter atomically; return its new value."""
        return self._store.add(f"{self._prefix}/{key}", amount)


@dataclass(frozen=True)
class Plan:
    """What a worker must know in addition to its cells."""

    runner: str
    threads: int
    lease: float

    @property
    def tick(self) -> float:
        """Seconds between two beats."""
        return min(1.0, self.lease / 10)

    @property
    def most_silent(self) -> int:
        """How many times in a row a counter may be unchanged before its process counts as dead."""
        return math.ceil(self.lease / self.tick)


class Heartbeat(threading.Thread):
    """A thread that shows that this process lives: it increments a counter on the board.

    Args:
        board: the board.
        name: the name of this process.
        tick: seconds between two beats.
        look: called after each beat.
        lost: called if the connection to the board is lost.
    """

    def __init__(
        self,
        board: Board,
        name: str,
        tick: float,
        look: Callable[[Board], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(daemon=True, name=f"heartbeat of {name}")
        self._board, self._key, self._tick = board.another(), f"beat/{name}", tick
        self._look, self._lost = look, lost
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beat until stopped."""
        beats = 0
        try:
            while not self._stopped.wait(self._tick if beats else 0):
                beats += 1
                self._board.set(self._key, beats)
                if self._look is not None:
                    self._look(self._board)
        except distributed.DistError:
            if self._lost is not None:
                self._lost()

    def stop(self) -> None:
        """Stop beating, and wait for the thread to end."""
        self._stopped.set()
        self.join()


@dataclass
class Silence:
    """Counts how many times in a row the counter of another process was unchanged.

    Time is not measured by the clock: while a machine is suspended the clock goes on, but nothing is read.
    """

    beat: int = 0
    still: int = 0

    def measure(self, beat: int | None) -> int:
        """Take the current value of the counter; return how often it was read since its last change."""
        self.still = self.still + 1 if beat in (None, self.beat) else 0
        self.beat = beat or self.beat
        return self.still
