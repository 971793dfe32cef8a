"""A board of keys on which the processes of a sweep meet: the key-value store of torch.distributed.

One process, the coordinator, knows what is to be done and writes what comes back; the others are workers.
They meet on this board, not in collective operations, in which one dead process would hold up all.

    cell/T      the coordinator publishes cells in an order; T is their ticket
    next        a worker takes the next ticket: an atomic counter, so that no two get the same
    claim/T     who took it
    begun/T     that it has been read, and is being computed
    result/T    what came of it
    beat/W      grows while W lives. The cell of a worker whose beat has stopped is published again,
                under another ticket; the first result of a cell counts, and all are equal
    end         nothing is left to do (an empty text), or why the sweep stops
    bye/W       W has seen the end

A worker first says its name at join/I, and waits at welcome/W for the prefix of this coordinator's keys. A
group that torchrun has restarted may find a board with the keys of its dead predecessor on it, and must not
take them for its own.
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
"""Seconds between two looks at the board."""

JOINING = 300.0
"""Seconds in which the processes of a group must have found each other."""


@dataclass(frozen=True)
class Address:
    """Where a board is."""

    host: str
    port: int
    prefix: str


def connect(address: Address, **server: Any) -> Any:
    """The store at an address, served from here if there are arguments for that.

    Raises:
        RuntimeError: a torch without torch.distributed.
    """
    if not distributed.is_available():
        raise RuntimeError(
            "this torch was built without torch.distributed: use one process (--jobs 1)"
        )
    torch_distributed: Any = distributed  # its annotations do not know what it exports
    return torch_distributed.TCPStore(
        address.host,
        address.port,
        wait_for_workers=False,
        timeout=timedelta(seconds=JOINING),
        **server,
    )


class Board:
    """JSON under keys that all processes see."""

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
        """The same for another thread: a connection takes one call at a time."""
        return Board(self._store.clone(), self._prefix)

    def set(self, key: str, value: Any) -> None:
        """Write a value."""
        self._store.set(f"{self._prefix}/{key}", json.dumps(value))

    def get(self, key: str) -> Any:
        """A value, or None where there is none."""
        name = f"{self._prefix}/{key}"
        return json.loads(self._store.get(name)) if self._store.check([name]) else None

    def forget(self, key: str) -> None:
        """Take a value off the board."""
        self._store.delete_key(f"{self._prefix}/{key}")

    def add(self, key: str, amount: int) -> int:
        """Add to a counter at once for all; returns what it is now."""
        return self._store.add(f"{self._prefix}/{key}", amount)


@dataclass(frozen=True)
class Plan:
    """What a worker must know beyond its cells."""

    runner: str
    threads: int
    lease: float

    @property
    def tick(self) -> float:
        """Seconds between two beats."""
        return min(1.0, self.lease / 10)

    @property
    def patience(self) -> int:
        """How many looks another may be still before it counts as dead."""
        return math.ceil(self.lease / self.tick)


class Heart(threading.Thread):
    """Says that this process lives, and looks now and then whether it still should.

    Args:
        board: where to say it.
        name: whose heart it is.
        tick: seconds between two beats.
        look: called after each beat.
        lost: called if the board is there no more.
    """

    def __init__(
        self,
        board: Board,
        name: str,
        tick: float,
        look: Callable[[Board], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(daemon=True, name=f"heart of {name}")
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
        """No further beat."""
        self._stopped.set()
        self.join()


@dataclass
class Pulse:
    """How long another's heart has been still.

    Counted in looks of one's own, not by the clock: a machine that slept has not watched for so long.
    """

    beat: int = 0
    still: int = 0

    def felt(self, beat: int | None) -> int:
        """Looks since the last change."""
        self.still = self.still + 1 if beat in (None, self.beat) else 0
        self.beat = beat or self.beat
        return self.still
