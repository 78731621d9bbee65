"""Products by the fastest library, and weights held constant, against torch's own linear maps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import ragged_batch, random_thoughts, tiny_decoder
from torch import Tensor

from ltm_pyro.decoder import linear
from ltm_pyro.decoder.linear import Linear, held, product, times_transposed
from ltm_pyro.decoder.transformer import ThoughtDecoder
from ltm_pyro.flop_counter import measured_flops
from ltm_pyro.flops import linear_cost
from ltm_pyro.infer.constant import constant
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.likelihood import TokenSequence

LIBRARIES = {"as found": None, "without oneDNN": False}
TOLERANCES = {  # sums of seven products, in another order
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 5e-2},
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t.contiguous(),
    "columns first": lambda t: t.mT.contiguous().mT,
    "every other row": lambda t: torch.stack([t, t], -2).flatten(-3, -2)[..., ::2, :],
    "every other column": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "part of a wider row": lambda t: F.pad(t, (3, 2))[..., 3:-2],
}


@pytest.fixture(params=LIBRARIES.values(), ids=LIBRARIES, autouse=True)
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setattr(linear, "_onednn_products", lambda: request.param)


def leaves(*shape: int, outputs: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(*shape, dtype=dtype).requires_grad_()
    return x, torch.randn(outputs, shape[-1], dtype=dtype).requires_grad_()


def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    value = function(*inputs)
    cotangent = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    return value, *torch.autograd.grad((value * cotangent).sum(), [t for t in inputs if t.requires_grad])


def assert_all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        torch.testing.assert_close(a, e, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (4, 7), (2, 3, 7), (2, 1, 3, 7)], ids=str)
def test_value_and_gradients_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype):
    x, weight = leaves(*shape, dtype=dtype)
    assert_all_close(value_and_gradients(product, x, weight), value_and_gradients(F.linear, x, weight), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("of_weight", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
def test_layouts_in_memory_do_not_change_the_result(of_x: str, of_weight: str, dtype: torch.dtype):
    x, weight = leaves(2, 3, 7, dtype=dtype)
    expected = value_and_gradients(F.linear, x, weight)
    assert_all_close(
        value_and_gradients(lambda a, b: product(LAYOUTS[of_x](a), LAYOUTS[of_weight](b)), x, weight), expected, dtype
    )
    # Reading a result through such a layout gives its gradient one like it.
    assert_all_close(value_and_gradients(lambda a, b: LAYOUTS[of_x](product(a, b)), x, weight), expected, dtype)


@pytest.mark.parametrize("expand", [True, False])
def test_gradients_without_a_stride_of_their_own_are_read(expand: bool):
    x, weight = leaves(4, 7)
    cotangent = torch.ones(1, 1).expand(4, 5) if expand else torch.ones(4, 5)
    expected = torch.autograd.grad(F.linear(x, weight), (x, weight), torch.ones(4, 5))
    assert_all_close(torch.autograd.grad(product(x, weight), (x, weight), cotangent), expected, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(0, 7), (2, 0, 7)], ids=str)
def test_no_rows_give_no_values_and_zero_gradients(shape: tuple[int, ...], dtype: torch.dtype):
    x, weight = leaves(*shape, dtype=dtype)
    value, d_x, d_weight = value_and_gradients(product, x, weight)
    assert value.shape == (*shape[:-1], 5)
    assert d_x.shape == shape
    assert (d_weight == 0).all()


def test_gradients_agree_with_finite_differences():
    x, weight = leaves(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(product, (x, weight))


@pytest.mark.parametrize("for_x", [True, False])
@pytest.mark.parametrize("for_weight", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_computed_for_what_asks_alone(for_x: bool, for_weight: bool, dtype: torch.dtype):
    x, weight = leaves(4, 7, dtype=dtype)
    x.requires_grad_(for_x)
    weight.requires_grad_(for_weight)
    products = linear_cost(4, 7, 5).forward
    if not (for_x or for_weight):
        assert measured_flops(lambda: product(x, weight)) == products
        assert not product(x, weight).requires_grad
        return
    results: list[tuple[Tensor, ...]] = []
    assert measured_flops(lambda: results.append(value_and_gradients(product, x, weight))) == products * (
        1 + for_x + for_weight
    )
    assert_all_close(results[0], value_and_gradients(F.linear, x, weight), dtype)


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_asking_autograd_for_one_gradient_gives_that_one(wanted: str):
    x, weight = leaves(4, 7)
    asked = {"x": x, "weight": weight}[wanted]
    (actual,) = torch.autograd.grad(product(x, weight).sum(), asked)
    torch.testing.assert_close(actual, torch.autograd.grad(F.linear(x, weight).sum(), asked)[0])


def test_a_second_derivative_is_refused():
    x, weight = leaves(4, 7)
    (gradient,) = torch.autograd.grad(product(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_autocast_runs_the_product_in_its_type_and_gives_gradients_in_those_of_the_inputs():
    x, weight = leaves(2, 3, 7)
    with torch.autocast("cpu", torch.bfloat16):
        actual = value_and_gradients(product, x, weight)
        expected = value_and_gradients(F.linear, x, weight)
    assert [t.dtype for t in actual] == [torch.bfloat16, torch.float32, torch.float32]
    assert_all_close(actual, expected, torch.bfloat16)
    inside = product(x.detach().bfloat16(), weight.detach().bfloat16())
    assert torch.equal(actual[0], inside)  # autocast is off inside, and changes nothing


def test_product_without_a_graph_is_the_same():
    x, weight = leaves(4, 7)
    with torch.no_grad():
        assert torch.equal(times_transposed(x, weight), product(x, weight).detach())


def test_linear_is_a_product_with_its_weight():
    layer = Linear(7, 5)
    x = torch.randn(2, 3, 7)
    assert layer.bias is None
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


def parts_held(decoder: ThoughtDecoder) -> list[Tensor | None]:
    maps = [part.held for part in decoder.modules() if isinstance(part, Linear)]
    return [*maps, decoder.held_embedding, decoder.held_memory]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, None], ids=str)
def test_held_weights_are_constants_of_the_asked_type(dtype: torch.dtype | None):
    decoder = tiny_decoder()
    with held(decoder, dtype):
        for weight in parts_held(decoder):
            assert weight is not None
            assert weight.dtype == (dtype or torch.float32)
            assert not weight.requires_grad
        layer = decoder.blocks[0].feed_forward.down
        assert torch.equal(layer.held, layer.weight.detach().to(layer.held.dtype))
    assert parts_held(decoder) == [None] * len(parts_held(decoder))


def test_held_weights_are_released_after_an_exception():
    decoder = tiny_decoder()
    with pytest.raises(ZeroDivisionError), held(decoder, torch.bfloat16):
        raise ZeroDivisionError
    assert parts_held(decoder) == [None] * len(parts_held(decoder))


def test_a_weight_that_was_changed_is_held_anew():
    layer = Linear(7, 5)
    x = torch.randn(3, 7)
    with held(layer, torch.float32):
        before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with held(layer, torch.float32):
        torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.parametrize("shape", [{}, {"layers": 1}, {"layers": 3, "thought_width": 5}], ids=str)
@pytest.mark.parametrize("autocast", [torch.bfloat16, None], ids=str)
def test_held_weights_give_the_same_numbers(autocast: torch.dtype | None, shape: dict[str, Any]):
    decoder, batch = tiny_decoder(**shape), ragged_batch(11, 6, 9)
    found = []
    for holding in (nullcontext(), held(decoder, autocast)):
        thoughts = random_thoughts(decoder, len(batch)).requires_grad_()
        with constant(decoder), autocasting(batch.device, autocast), holding:
            log_prob = TokenSequence(decoder, thoughts, batch).log_prob(batch.tokens)
        found.append((log_prob, *torch.autograd.grad(log_prob.sum(), thoughts)))
    for plain, constants in zip(*found, strict=True):
        assert torch.equal(plain, constants)  # bit by bit: the copies are those that autocast would make
