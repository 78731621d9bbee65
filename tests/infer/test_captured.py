"""A fast step that is recorded once and replayed takes the path of the plain loop."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, captured
from ltm_pyro.infer.captured import CapturedStep
from ltm_pyro.noise import SequenceGenerator


class FakeGraph:
    """Records without doing; like a graph, it leaves the count of draws, which is Python's, where it stood."""

    def __init__(self, generator: SequenceGenerator):
        self.generator = generator
        self.first = generator.draws
        self.replayed = 0

    def record(self, work):
        self.work = work

    def replay(self):
        self.generator.draws = self.first
        self.work()
        self.replayed += 1


@pytest.mark.parametrize("fresh", [True, False])
def test_replayed_draws_are_those_of_steps_that_count_by_themselves(fresh):
    batch = ragged_batch(4, 2)
    plain, replayed = SequenceGenerator(batch.keys, 3), SequenceGenerator(batch.keys, 3)
    expected, seen = [], []
    for _ in range(4):
        if not fresh:
            plain.draws = 0
        expected.append((plain.normal((3,)), plain.normal((2,))))

    def step() -> None:
        seen.append((replayed.normal((3,)), replayed.normal((2,))))

    step()
    if not fresh:
        replayed.draws = 0
    recorded = CapturedStep(step, replayed, draws=2, fresh=fresh, graph=FakeGraph(replayed))
    assert len(seen) == 1
    for _ in range(3):
        recorded.replay()
    recorded.end()
    torch.testing.assert_close(seen, expected, rtol=0, atol=0)
    assert replayed.draws == plain.draws
    assert replayed.ahead is None


@pytest.mark.parametrize("noise", ["fresh", "fixed"])
@pytest.mark.parametrize("free_bits", [0.0, 5.0])
def test_a_loop_of_replays_ends_where_the_plain_loop_ends(monkeypatch, noise, free_bits):
    """On the CPU, with a graph that records Python; the loop believes that it is on CUDA."""
    graphs = []

    def fake(step, generator, **how):
        graphs.append(FakeGraph(generator))
        return CapturedStep(step, generator, **how, graph=graphs[-1])

    model, batch, adam = tiny_model(), ragged_batch(6, 3, 5), torch.optim.Adam
    results = []
    for cuda_graph in (False, True):
        fast = FastConfig(steps=6, lr=0.1, noise=noise, cuda_graph=cuda_graph)
        svi = FastSlowSVI(
            model,
            LocalNormal(model, init_log_var=-2.0),
            fast=fast,
            slow=torch.optim.SGD(model.parameters(), lr=0.0),
            free_bits=free_bits,
        )
        if cuda_graph:
            monkeypatch.setattr(captured.CapturedStep, "of", fake)
            monkeypatch.setattr("ltm_pyro.infer.fast_loop._on_cuda", lambda batch: True)
            monkeypatch.setattr(torch.optim, "Adam", lambda *a, capturable, **k: adam(*a, **k))  # CUDA's alone
        info = svi.step(batch, seed=2)
        results.append((info, {name: w.grad.clone() for name, w in model.named_parameters()}))
    assert [graph.replayed for graph in graphs] == [5]
    (plain, gradients), (replayed, same) = results
    for name, value in plain.posteriors[0].local.items():
        torch.testing.assert_close(replayed.posteriors[0].local[name], value, rtol=0, atol=1e-6)
    for name, value in gradients.items():
        torch.testing.assert_close(same[name], value, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_captured_goes_on_without_a_graph(monkeypatch):
    class Refusing:
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(captured, "_CUDAGraph", Refusing)
    generator = SequenceGenerator(ragged_batch(3).keys, 0)
    generator.draws = 4
    with pytest.warns(UserWarning, match="cannot be a CUDA graph.*not permitted when stream is capturing$"):
        assert CapturedStep.of(lambda: None, generator, draws=1) is None
    assert (generator.draws, generator.ahead) == (4, None)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("noise", ["fresh", "fixed"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_on_a_gpu_a_captured_loop_ends_where_the_plain_loop_ends(noise, autocast):
    model = tiny_model(hidden=32, heads=2, window=70, max_length=128).cuda()
    batch = ragged_batch(100, 33, 80).to("cuda")
    ends = []
    for cuda_graph in (False, True):
        fast = FastConfig(steps=8, lr=0.1, noise=noise, cuda_graph=cuda_graph)
        svi = FastSlowSVI(model, LocalNormal(model, init_log_var=-2.0), fast=fast, autocast=autocast)
        ends.append(svi.infer(batch, seed=2).local)
    tolerance = 1e-4 if autocast is None else 2e-2
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=tolerance)
