"""Attention within a window by blocks, against one dense mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from ltm_pyro.decoder import window as windows
from ltm_pyro.decoder.rotary import rotate, rotation
from ltm_pyro.decoder.window import BLOCK, flex_takes, window_mask, windowed_attention
from ltm_pyro.flop_counter import measured_flops
from ltm_pyro.flops import TransformerSize, attention_cost

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}
WINDOWS = [1, 2, 5, 64, 100]
LENGTHS = {w: sorted({n for n in (1, w - 1, w, w + 1, 63, 64, 65, 200, 513) if n > 0}) for w in WINDOWS}
CASES = [(length, window) for window, lengths in LENGTHS.items() for length in lengths]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads together": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "part of one product": lambda t: torch.stack([t, t, t], 3)[:, :, :, 1],
    "entries of a head apart": lambda t: t.mT.contiguous().mT,
    "heads innermost": lambda t: t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "every other entry": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
}


def leaves(
    length: int, *, batch: int = 2, heads: int = 2, head_dim: int = 4, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    return [torch.randn(batch, heads, length, head_dim, dtype=dtype).requires_grad_() for _ in range(3)]


def dense(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """From the definition, without torch's attention."""
    index = torch.arange(q.shape[2], device=q.device)
    seen = torch.stack([(index <= i) & (index > i - window) for i in range(q.shape[2])])
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


def value_and_gradients(
    attention: Callable[..., Tensor],
    inputs: list[Tensor],
    window: int,
    layout: Callable[[Tensor], Tensor] = Tensor.clone,
) -> list[Tensor]:
    value = attention(*map(layout, inputs), window)
    cotangent = torch.sin(torch.arange(value.numel(), device=value.device)).view_as(value).to(value.dtype)
    return [value, *torch.autograd.grad((layout(value) * cotangent).sum(), inputs)]


def assert_all_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.to(e), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("length", "window"), CASES)
def test_mask_sees_the_window_and_nothing_else(length: int, window: int):
    mask = window_mask(length, window)
    for i in range(0, length, 7):
        assert mask[i].nonzero()[:, 0].tolist() == list(range(max(0, i - window + 1), i + 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("length", "window"), CASES)
def test_value_and_gradients_are_those_of_the_dense_mask(length: int, window: int, dtype: torch.dtype):
    inputs = leaves(length, dtype=dtype)
    expected = value_and_gradients(dense, [t.detach().double().requires_grad_() for t in inputs], window)
    assert_all_close(value_and_gradients(windowed_attention, inputs, window), expected, TOLERANCES[dtype])


@pytest.mark.parametrize(("length", "window"), [(1, 1), (65, 5), (200, 100)])
def test_bfloat16_stays_within_its_rounding(length: int, window: int):
    inputs = leaves(length, head_dim=16, dtype=torch.bfloat16)
    expected = value_and_gradients(dense, [t.detach().double().requires_grad_() for t in inputs], window)
    assert_all_close(value_and_gradients(windowed_attention, inputs, window), expected, TOLERANCES[torch.bfloat16])


def test_no_window_is_causal_attention():
    inputs = leaves(70)
    actual = value_and_gradients(lambda *t: windowed_attention(*t[:3], None), inputs, 70)
    assert_all_close(actual, value_and_gradients(dense, inputs, 70), 1e-12)


@pytest.mark.parametrize("window", [2, 5])
def test_gradients_agree_with_finite_differences(window: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(windows, "BLOCK", 4)
    inputs = leaves(11, batch=1, head_dim=2)
    assert torch.autograd.gradcheck(lambda q, k, v: windowed_attention(q, k, v, window), inputs)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (4, 2), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_in_memory_do_not_change_the_result(layout: str, dtype: torch.dtype, heads: int, head_dim: int):
    inputs = leaves(130, heads=heads, head_dim=head_dim, dtype=dtype)
    expected = value_and_gradients(dense, [t.detach().double().requires_grad_() for t in inputs], 7)
    actual = value_and_gradients(windowed_attention, inputs, 7, LAYOUTS[layout])
    assert_all_close(actual, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rotated_heads_of_two_entries_are_read_as_they_lie(dtype: torch.dtype):
    rope = rotation(torch.arange(100), 2, 10_000.0)

    def layout(t: Tensor) -> Tensor:
        rows = rearrange(t, "b h n d -> b n (h d)").contiguous()  # as a product leaves them
        return rotate(rearrange(rows, "b n (h d) -> b h n d", d=2), rope)

    inputs = leaves(100, heads=4, head_dim=2, dtype=dtype)
    assert layout(inputs[0]).stride(-1) != 1  # torch.cat of halves of one entry puts the heads innermost
    expected = value_and_gradients(dense, [t.detach().double().requires_grad_() for t in inputs], 9, layout)
    assert_all_close(value_and_gradients(windowed_attention, inputs, 9, layout), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("head", range(3))
def test_a_token_changes_its_window_alone(head: int):
    q, k, v = (t.detach() for t in leaves(150, heads=3))
    before = windowed_attention(q, k, v, 10)
    k[:, head, 60], v[:, head, 60] = 9.0, -9.0
    changed = (windowed_attention(q, k, v, 10) != before).any(-1).any(0)
    assert changed.nonzero().tolist() == [[head, i] for i in range(60, 70)]


@pytest.mark.parametrize(("length", "window"), CASES)
def test_cost_is_that_of_the_pairs_in_the_band(length: int, window: int):
    inputs = leaves(length, dtype=torch.float32)
    size = TransformerSize(layers=1, hidden=8, vocab_size=1, window=window)
    cost = attention_cost(2 * size.pairs(length), 8)
    with torch.no_grad():
        assert measured_flops(lambda: windowed_attention(*inputs, window)) == cost.forward
    assert measured_flops(lambda: windowed_attention(*inputs, window).sum().backward()) == cost.forward + cost.inputs


def test_cost_grows_with_the_length_and_not_with_its_square():
    def cost(blocks: int) -> int:
        inputs = leaves(blocks * BLOCK, batch=1, dtype=torch.float32)
        return measured_flops(lambda: windowed_attention(*inputs, 16))

    assert cost(8) - cost(4) == 4 * (cost(5) - cost(4))


@pytest.mark.parametrize(("length", "window"), [(65, 5), (200, 100)])
def test_without_the_kernel_of_the_cpu_a_dense_mask_gives_the_same(
    length: int, window: int, monkeypatch: pytest.MonkeyPatch
):
    inputs = leaves(length)
    blocks = value_and_gradients(windowed_attention, inputs, window)
    monkeypatch.setattr(windows, "_cpu_kernel", lambda: False)
    monkeypatch.setattr(windows._Banded, "forward", lambda *_: pytest.fail("blocks"))
    assert_all_close(value_and_gradients(windowed_attention, inputs, window), blocks, 1e-12)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "takes"),
    [
        (torch.float32, 16, True),
        (torch.bfloat16, 64, True),
        (torch.float64, 64, False),
        (torch.float32, 8, False),
        (torch.float32, 48, False),
    ],
)
def test_flex_attention_is_asked_for_what_it_takes(dtype: torch.dtype, head_dim: int, takes: bool):
    assert flex_takes(torch.empty(1, 1, 1, head_dim, dtype=dtype)) is takes


def block_mask(length: int, window: int) -> Any:
    return windows._block_mask(length, window, torch.device("cpu"))


@pytest.mark.parametrize(("length", "window"), CASES)
def test_mask_of_flex_attention_is_the_window(length: int, window: int):
    index = torch.arange(length)
    visible = block_mask(length, window).mask_mod(torch.tensor(0), torch.tensor(0), index[:, None], index)
    assert torch.equal(visible, window_mask(length, window))


@pytest.mark.parametrize(("length", "window"), [(65, 5), (200, 100), (513, 64)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_uncompiled_gives_the_value_of_the_dense_mask(length: int, window: int):
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (t.detach() for t in leaves(length, head_dim=16, dtype=torch.float32))
    with torch.no_grad():
        value = flex_attention(q, k, v, block_mask=block_mask(length, window))
    torch.testing.assert_close(value, dense(q, k, v, window), rtol=2e-5, atol=2e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "window"), [(65, 5), (200, 100), (513, 64)])
def test_attention_on_cuda_is_that_of_the_dense_mask(length: int, window: int, dtype: torch.dtype):
    inputs = [t.detach().cuda().requires_grad_() for t in leaves(length, head_dim=32, dtype=dtype)]
    assert flex_takes(inputs[0])
    expected = value_and_gradients(dense, [t.detach().double().requires_grad_() for t in inputs], window)
    # In float32 the kernel may multiply by TF32, which keeps 10 bits.
    tolerance = 5e-3 if dtype == torch.float32 else TOLERANCES[dtype]
    assert_all_close(value_and_gradients(windowed_attention, inputs, window), expected, tolerance)
