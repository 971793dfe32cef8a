"""Computing cells that a coordinator hands out."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import asdict

from llr.recovery.sweep.board import JOINING, POLL, Address, Board, Heartbeat, Plan, Silence
from llr.recovery.sweep.runner import execute, load_runner
from llr.recovery.sweep.spec import Cell, Value


def work(address: Address, name: str, *, own: bool = False) -> None:
    """Compute cells until the coordinator tells the workers to stop.

    Args:
        address: the address of the board.
        name: the name of this worker, unique among all workers.
        own: whether the coordinator started this process, and holds the other end of its standard input. The
            worker ends when this is closed, which happens when the coordinator ends in any way.

    Raises:
        RuntimeError: no coordinator, or the coordinator stops the sweep for a reason.
    """
    if own:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    entrance = Board.at(address)
    entrance.set(f"join/{entrance.add('joins', 1)}", name)
    generation = _welcomed(entrance, name)
    board = entrance.under(generation)
    plan = Plan(**board.get("plan"))
    watch = _Watch(name, plan, own)
    heart = Heartbeat(board, name, plan.tick, watch, watch.lost)
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
    """The cell of a ticket, as soon as it is published; None if nothing is left to do."""
    while True:
        values: dict[str, Value] | None = board.get(f"cell/{number}")
        if values is not None or board.get("end") is not None:
            return values
        time.sleep(POLL)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(2)


class _Watch:
    """Ends a worker at once, in the middle of a cell, when no coordinator waits for its result."""

    def __init__(self, name: str, plan: Plan, own: bool) -> None:
        self._name, self._plan, self._own = name, plan, own
        self._coordinator = Silence()

    def __call__(self, board: Board) -> None:
        if self._coordinator.measure(board.get("beat/coordinator")) > self._plan.most_silent:
            self._leave(f"rank 0 has not been heard of for {self._plan.lease:g} s")
        reason = board.get("end")
        if reason:
            board.set(f"bye/{self._name}", True)
            self._leave(reason)

    def lost(self) -> None:
        """End the worker because the connection is broken."""
        self._leave("the connection to rank 0 broke")

    def _leave(self, reason: str) -> None:
        if not self._own:  # the coordinator reports for workers that it started
            advice = "finished cells are safe: run the same command again to continue"
            print(f"error: {self._name} stops: {reason}; {advice}", file=sys.stderr, flush=True)
        os._exit(2)  # the only way to end while another thread computes a cell
