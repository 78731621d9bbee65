"""Target log-probabilities without the logits, against torch's cross-entropies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ltm_pyro.decoder import token_loss
from ltm_pyro.decoder.token_loss import target_log_prob


def example(rows: int = 7, vocab: int = 13, hidden: int = 5, dtype: torch.dtype = torch.float32):
    h = torch.randn(rows, hidden, dtype=dtype, requires_grad=True)
    w = torch.randn(vocab, hidden, dtype=dtype, requires_grad=True)
    return h, w, torch.randint(vocab, (rows,)), torch.randn(rows, dtype=dtype)


def value_and_gradients(function, h, w, targets, cotangent):
    value = function(h, w, targets)
    wanted = [t for t in (h, w) if t.requires_grad]
    return value, *torch.autograd.grad((value * cotangent).sum(), wanted)


def plain(h, w, targets):
    return -F.cross_entropy(h @ w.T, targets, reduction="none")


PEERS = {"cross_entropy": plain}
if hasattr(F, "linear_cross_entropy"):
    PEERS["linear_cross_entropy"] = lambda h, w, t: -F.linear_cross_entropy(h, w, t, reduction="none")


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 6, 7, 8, 100])
def test_value_and_gradients_equal_torch_at_every_chunk_boundary(monkeypatch, peer, learned, rows_at_once):
    monkeypatch.setattr(token_loss, "_rows_at_once", lambda weight, **_: rows_at_once)
    h, w, targets, cotangent = example()
    w.requires_grad_(learned)
    expected = value_and_gradients(PEERS[peer], h, w, targets, cotangent)
    actual = value_and_gradients(target_log_prob, h, w, targets, cotangent)
    assert len(actual) == (3 if learned else 2)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=2e-6, rtol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("learned", ["hidden", "weight", "both"])
def test_gradients_agree_with_finite_differences(monkeypatch, learned):
    monkeypatch.setattr(token_loss, "_rows_at_once", lambda weight, **_: 3)
    h, w, targets, _ = example(dtype=torch.float64)
    h.requires_grad_(learned != "weight")
    w.requires_grad_(learned != "hidden")
    assert torch.autograd.gradcheck(lambda a, b: target_log_prob(a, b, targets), (h, w))


def test_without_gradients_the_value_is_the_same():
    h, w, targets, _ = example()
    with torch.no_grad():
        value = target_log_prob(h, w, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, plain(h, w, targets).detach(), atol=2e-6, rtol=1e-5)


def test_no_rows_give_no_values_and_zero_gradients():
    h, w, targets, cotangent = example(rows=0)
    value, dh, dw = value_and_gradients(target_log_prob, h, w, targets, cotangent)
    assert value.shape == (0,)
    assert dh.shape == (0, 5)
    assert (dw == 0).all()


@pytest.mark.parametrize("learned", [True, False])
def test_bfloat16_autocast_stays_within_bfloat16_rounding(learned):
    h, w, targets, cotangent = example(rows=40, hidden=16)
    w.requires_grad_(learned)
    expected = value_and_gradients(plain, h, w, targets, cotangent)
    with torch.autocast("cpu", torch.bfloat16):
        value = target_log_prob(h, w, targets)
    actual = (value, *torch.autograd.grad((value * cotangent).sum(), [h, w] if learned else [h]))
    assert value.dtype == torch.float32
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        # bfloat16 keeps 8 bits: each product errs by up to 2^-8 of operands of size about 4, more than once.
        torch.testing.assert_close(a, e, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("learned", [True, False])
def test_large_logits_do_not_overflow(learned):
    h, w, targets, cotangent = example()
    h, w = (1e4 * h).detach().requires_grad_(), w.detach().requires_grad_(learned)
    for part in value_and_gradients(target_log_prob, h, w, targets, cotangent):
        assert part.isfinite().all()
