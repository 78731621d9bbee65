"""CapturedStep: one fast step as a CUDA graph, replayed without Python, Pyro or a launch per kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import torch

from ltm_pyro.noise import SequenceGenerator

__all__ = ["CapturedStep", "Recorder"]


class CapturedStep:
    """A fast step that does the same work on the same memory each time, captured once and replayed.

    What changes from step to step lies in tensors: the local parameters and Adam's state, which the step moves in
    place, the learning rate, and how far the noise has been drawn (`SequenceGenerator.ahead`).

    Args:
        step: the step, which reads and writes the same tensors at every call; it has run at least once before, so that
            nothing in it is done for the first time.
        generator: the noise that it draws.
        draws: of one step.
        fresh: whether every step draws anew; otherwise the draws of the first one are those of all.
        graph: what records; None is CUDA's.
    """

    def __init__(
        self,
        step: Callable[[], None],
        generator: SequenceGenerator,
        *,
        draws: int,
        fresh: bool = True,
        graph: Recorder | None = None,
    ):
        self.generator = generator
        self.draws = draws
        self.fresh = fresh
        self.graph = _CUDAGraph() if graph is None else graph
        self._first = generator.draws
        self._replayed = 0

        def recorded() -> None:
            step()
            if fresh and generator.ahead is not None:
                generator.ahead += draws

        generator.ahead = torch.zeros((), dtype=torch.int64, device=generator.device)
        try:
            self.graph.record(recorded)
        except BaseException:
            generator.ahead = None
            raise
        finally:
            generator.draws = self._first  # recording draws nothing

    @classmethod
    def of(
        cls, step: Callable[[], None], generator: SequenceGenerator, *, draws: int, fresh: bool = True
    ) -> CapturedStep | None:
        """The captured step; None, with a warning that tells why, where it holds something that cannot be captured."""
        try:
            return cls(step, generator, draws=draws, fresh=fresh)
        except Exception as error:  # what cannot be captured raises many classes
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(f"the fast step cannot be a CUDA graph, it goes on without one: {reason}", stacklevel=2)
            return None

    def replay(self) -> None:
        """Takes the step once more."""
        self.graph.replay()
        self._replayed += 1

    def end(self) -> None:
        """Hands the count of the draws back to the generator."""
        self.generator.ahead = None
        if self._replayed:
            self.generator.draws = self._first + self.draws * (self._replayed if self.fresh else 1)


class Recorder(Protocol):
    """What records work without doing it, and does it as often as it is asked to."""

    def record(self, work: Callable[[], None]) -> None:
        """Records."""

    def replay(self) -> None:
        """Does it once."""


class _CUDAGraph:
    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], None]) -> None:
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            work()

    def replay(self) -> None:
        self.graph.replay()
