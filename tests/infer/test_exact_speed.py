"""Every exact optimisation leaves the trajectory unchanged: weights and posterior after 20 slow steps, by either path.

Distances are ‖a - b‖ / ‖b‖, tensor by tensor, and the worst counts. An entry by itself has no such bound: Adam divides
every gradient by its size, so one that is all rounding moves its weight as far as any other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from plain_paths import UNDONE, WrittenOut, library_angles, undo
from torch import Tensor, nn

from ltm_pyro.batch import TokenBatch
from ltm_pyro.config import Settings, TrainingSettings
from ltm_pyro.decoder import ThoughtDecoder
from ltm_pyro.guides import LocalNormal, SemiAmortized
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import GaussianPrior
from ltm_pyro.training.learners import BaselineLearner
from ltm_pyro.training.optimizer import build_optimizer

VOCAB, LENGTH, STEPS = 203, 96, 20

FAST = {
    "paper": FastConfig(steps=4),
    "fixed noise": FastConfig(steps=4, noise="fixed"),
    "trajectory": FastConfig(steps=4, slow_gradient="trajectory"),
    "released": FastConfig(steps=4, noise="fixed", slow_gradient="trajectory"),
    "early stop": FastConfig(steps=12, tolerance=0.005),
}

LEAVING = "sequences leave when done"
EVERY = tuple(name for name in UNDONE if name != LEAVING)
IN_BASELINES = {
    "ar": ("products by oneDNN", "attention in a band", "logits in chunks"),
    "mdlm": ("products by oneDNN", "logits in chunks"),
}

Tensors = dict[str, Tensor]


def text(seed: int, lengths: tuple[int, ...] = (LENGTH, 70, 33, 5)) -> TokenBatch:
    """Ragged sequences of common and rare tokens, a tenth of them not scored."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float32)

    batch = TokenBatch.from_lists([(VOCAB * uniform(n) ** 2).long().tolist() for n in lengths], [*range(len(lengths))])
    return TokenBatch(batch.tokens, batch.lengths, batch.start, uniform(*batch.tokens.shape) < 0.9)


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def after_training(
    undone: tuple[str, ...] | None,
    dtype: torch.dtype,
    fast: str = "paper",
    guide: type[LocalNormal] = LocalNormal,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    compiled: bool = False,
) -> Tensors:
    """The weights after 20 slow steps from a run's initial weights at its learning rates, and a posterior under them.

    ``undone`` None is the algorithm written out.
    """
    torch.manual_seed(seed)  # the same float32 numbers start every type
    decoder = ThoughtDecoder(
        vocab_size=VOCAB, layers=2, hidden=32, heads=2, thoughts_per_layer=2, window=16, max_length=LENGTH
    )
    model = LatentThoughtModel(decoder, GaussianPrior(decoder.thought_shape))
    # At -5 the KL alone would drive log σ², whatever the tokens say.
    encoder = {"width": 16, "layers": 1, "heads": 2} if guide is SemiAmortized else {}
    q = guide(model, init_log_var=0.0, **encoder)
    modules = nn.ModuleDict({"model": model, "guide": q}).to(dtype)
    slow = build_optimizer(modules, TrainingSettings())
    training = [text(1000 * seed + i) for i in range(STEPS)]
    held_out = text(1000 * seed + STEPS, (LENGTH, 80, 64, 50, 40, 30, 20, 10))
    with default_type(dtype), pytest.MonkeyPatch.context() as monkeypatch:
        if undone is None:
            library_angles(monkeypatch)
            plain = WrittenOut(decoder, FAST[fast], slow, init_log_var=0.0, clip_norm=1.0, autocast=autocast)
            for i, batch in enumerate(training):
                plain.step(batch, seed=i)
            local = plain.infer(held_out, seed=STEPS)
        else:
            if compiled:
                decoder.compile()
            called = undo(monkeypatch, undone)
            svi = FastSlowSVI(model, q, fast=FAST[fast], slow=slow, clip_norm=1.0, autocast=autocast)
            for i, batch in enumerate(training):
                svi.step(batch, seed=i)
            local = svi.infer(held_out, seed=STEPS).local
            assert called == set(undone), "a replacement was never called: the optimisation is made elsewhere now"
    return {name: value.detach().double() for name, value in [*modules.named_parameters(), *local.items()]}


@cache
def baseline_after_training(kind: str, undone: tuple[str, ...], dtype: torch.dtype) -> Tensors:
    torch.manual_seed(0)
    settings = {"model.name": kind, "data.sequence_length": LENGTH, "training.slow_lr": 4e-4}
    sizes = {"layers": 2, "hidden": 32, "heads": 2, "num_thoughts": 4, "window": 16}
    settings |= {f"decoder.{name}": size for name, size in sizes.items()}
    learner = BaselineLearner(Settings().updated(settings), VOCAB, torch.device("cpu"))
    learner.modules.to(dtype)
    with default_type(dtype), pytest.MonkeyPatch.context() as monkeypatch:
        called = undo(monkeypatch, undone)
        for i in range(STEPS):
            learner.step(text(i), at=i, seed=i)
        assert called == set(undone)
    return {name: value.detach().double() for name, value in learner.modules.named_parameters()}


def distance(actual: Tensors, expected: Tensors) -> float:
    """The largest relative distance of a tensor."""
    assert actual.keys() >= expected.keys()
    return max(float((actual[name] - e).norm() / e.norm()) for name, e in expected.items())


def errors(actual: Tensors, exact: Tensors) -> Tensor:
    """(3,) Median error of the entries of the weights, of μ and of log σ²: no one entry that Adam flips moves it."""
    kinds = [[name for name in exact if not name.startswith("z.")], ["z.mu"], ["z.log_var"]]
    return torch.stack([torch.cat([(actual[n] - exact[n]).abs().flatten() for n in kind]).median() for kind in kinds])


def all_but(name: str) -> tuple[str, ...]:
    return tuple(other for other in EVERY if other != name)


CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Float32 rounds to 6e-8, and 20 steps of the paper's algorithm make 1e-6 of that."""

slow = pytest.mark.slow
both_types = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=slow)], ids=str)
ways = pytest.mark.parametrize("fast", ["fixed noise", "trajectory", "released"])


@both_types
@pytest.mark.parametrize("name", EVERY)
def test_each_optimisation_alone_trains_as_the_plain_path_does(name, dtype):
    actual = after_training(all_but(name), dtype)
    assert distance(actual, after_training(EVERY, dtype)) < CLOSE[dtype]


@pytest.mark.parametrize(
    ("reference", "dtype"),
    [
        pytest.param(EVERY, torch.float32, id="plain path-float32"),
        pytest.param(EVERY, torch.float64, id="plain path-float64"),
        pytest.param(None, torch.float32, id="written out-float32", marks=slow),
        pytest.param(None, torch.float64, id="written out-float64"),
    ],
)
def test_all_optimisations_together_train_as_without_them(reference, dtype):
    assert distance(after_training((), dtype), after_training(reference, dtype)) < CLOSE[dtype]


@slow
@ways
def test_the_other_algorithms_train_as_written_out(fast):
    actual = after_training((), torch.float64, fast)
    assert distance(actual, after_training(None, torch.float64, fast)) < CLOSE[torch.float64]


@slow
@ways
def test_the_other_algorithms_train_as_on_the_plain_path(fast):
    actual = after_training((), torch.float64, fast)
    assert distance(actual, after_training(EVERY, torch.float64, fast)) < CLOSE[torch.float64]


@slow
def test_a_semi_amortised_guide_trains_as_on_the_plain_path():
    actual = after_training((), torch.float64, guide=SemiAmortized)
    assert distance(actual, after_training(EVERY, torch.float64, guide=SemiAmortized)) < CLOSE[torch.float64]


@slow
@pytest.mark.parametrize("case", [{"fast": "released"}, {"guide": SemiAmortized}], ids=["released", "encoder"])
def test_where_training_amplifies_rounding_float32_stays_as_near_to_double_as_on_the_plain_path(case):
    # Two float32 paths differ by up to 3e-4 here, so what is asked is how far each is from the exact trajectory. The
    # ratios were 0.94 to 1.03; the factor leaves room for what two equally good roundings make of one run.
    exact = after_training((), torch.float64, **case)
    optimised, plain = (errors(after_training(undone, torch.float32, **case), exact) for undone in ((), EVERY))
    assert (optimised < 2 * plain).all(), optimised / plain


@slow
@pytest.mark.parametrize("reference", [EVERY, None], ids=["plain path", "written out"])
def test_bfloat16_stays_as_near_to_double_as_on_the_plain_path(reference):
    # Adam makes a gradient that is all rounding a step of full size, hence medians over entries and means over seeds.
    # The ratios were 0.93 to 1.08 after one to six seeds: 1.2 is for the rounding of other machines.
    def mean_errors(undone: tuple[str, ...] | None) -> Tensor:
        runs = [after_training(undone, torch.float32, autocast=torch.bfloat16, seed=seed) for seed in range(4)]
        exact = [after_training((), torch.float64, seed=seed) for seed in range(4)]
        return torch.stack([errors(a, e) for a, e in zip(runs, exact, strict=True)]).mean(0)

    optimised, plain = mean_errors(()), mean_errors(reference)
    assert (optimised < 1.2 * plain).all(), optimised / plain


@both_types
@pytest.mark.parametrize("kind", IN_BASELINES)
def test_a_baseline_trains_as_on_the_plain_path(kind, dtype):
    actual = baseline_after_training(kind, (), dtype)
    assert distance(actual, baseline_after_training(kind, IN_BASELINES[kind], dtype)) < CLOSE[dtype]


@slow
@pytest.mark.parametrize("undone", [(LEAVING,), (*EVERY, LEAVING)], ids=["leaving", "all"])
def test_sequences_that_leave_early_train_as_if_they_stayed(undone):
    # In double precision alone: a stop by comparison has no tolerance.
    actual = after_training((), torch.float64, "early stop")
    assert distance(actual, after_training(undone, torch.float64, "early stop")) < CLOSE[torch.float64]


@slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU: no g++ here")
def test_a_compiled_decoder_trains_as_the_eager_one():
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    program = """
import torch
from test_exact_speed import CLOSE, after_training, distance
error = distance(after_training((), torch.float32, compiled=True), after_training((), torch.float32))
assert error < CLOSE[torch.float32], error
"""
    paths = [str(Path(__file__).parent), *sys.path]
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
