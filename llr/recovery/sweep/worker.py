"""Computing cells that a coordinator hands out."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import asdict

from llr.recovery.sweep.board import JOINING, POLL, Address, Board, Heart, Plan, Pulse
from llr.recovery.sweep.runner import execute, load_runner
from llr.recovery.sweep.spec import Cell, Value


def work(address: Address, name: str, *, own: bool = False) -> None:
    """Compute cells until the coordinator says that it is enough.

    Args:
        address: of the board.
        name: of this worker, its own among all.
        own: whether the coordinator started this process, and holds the other end of its standard input: when
            that is closed, however the coordinator ended, so does the worker.

    Raises:
        RuntimeError: no coordinator, or it stops for a reason.
    """
    if own:
        threading.Thread(target=_outlive_nobody, daemon=True).start()
    entrance = Board.at(address)
    entrance.set(f"join/{entrance.add('joins', 1)}", name)
    generation = _welcomed(entrance, name)
    board = entrance.under(generation)
    plan = Plan(**board.get("plan"))
    watch = _Watch(name, plan, own)
    heart = Heart(board, name, plan.tick, watch, watch.lost)
    heart.start()
    runner = load_runner(plan.runner)
    while (reason := board.get("end")) is None:
        number = board.add("next", 1) - 1
        board.set(f"claim/{number}", name)
        values = _cell(board, number)
        if values is not None:
            board.set(f"begun/{number}", True)
            outcome = execute(runner, Cell(values), threads=plan.threads, worker=name)
            board.set(f"result/{number}", asdict(outcome))
    heart.stop()
    board.set(f"bye/{name}", True)
    if reason:
        raise RuntimeError(f"the sweep was stopped: {reason}")


def _welcomed(entrance: Board, name: str) -> str:
    deadline = time.monotonic() + JOINING
    while time.monotonic() < deadline:
        generation: str | None = entrance.get(f"welcome/{name}")
        if generation is not None:
            return generation
        time.sleep(POLL)
    raise RuntimeError(f"no coordinator has answered for {JOINING:.0f} s: is rank 0 running?")


def _cell(board: Board, number: int) -> dict[str, Value] | None:
    """What a ticket is for, as soon as that is published; None if nothing is left to do."""
    while True:
        values: dict[str, Value] | None = board.get(f"cell/{number}")
        if values is not None or board.get("end") is not None:
            return values
        time.sleep(POLL)


def _outlive_nobody() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(2)


class _Watch:
    """Ends a worker at once, in the middle of a cell, when nobody waits for its result any more."""

    def __init__(self, name: str, plan: Plan, own: bool) -> None:
        self._name, self._plan, self._own = name, plan, own
        self._coordinator = Pulse()

    def __call__(self, board: Board) -> None:
        if self._coordinator.felt(board.get("beat/coordinator")) > self._plan.patience:
            self._leave(f"rank 0 has not been heard of for {self._plan.lease:g} s")
        reason = board.get("end")
        if reason:
            board.set(f"bye/{self._name}", True)
            self._leave(reason)

    def lost(self) -> None:
        """The connection broke."""
        self._leave("the connection to rank 0 broke")

    def _leave(self, reason: str) -> None:
        if not self._own:  # the coordinator speaks for its own
            advice = "finished cells are safe: run the same command again to go on"
            print(f"error: {self._name} stops: {reason}; {advice}", file=sys.stderr, flush=True)
        os._exit(2)  # the only way out of a cell that another thread computes
