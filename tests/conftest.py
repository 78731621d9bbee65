"""Shared fixtures; switches jaxtyping's shape annotations on for the whole library."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook("ltm_pyro", "runtime_types.checked")

import pytest  # noqa: E402 - the hook must stand before any import of the library
import torch  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: threads cost more than they give, many times more on a busy machine


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """Runs a test in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text beside the checkout; skips where there is none."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no shared/data beside this checkout: real-text tests need it")
    return path
