"""Which supports a guide can be made for from a trace of the prior, and what is said of the others."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from tiny_models import ragged_batch, tiny_decoder

from ltm_pyro.errors import LTMError
from ltm_pyro.guides import GUIDES
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import Prior


class BoundedPrior(Prior):
    """Thoughts between bounds that are tensors with the batch in front."""

    def forward(self, batch_size):
        low = torch.full((batch_size, *self.shape), -2.0)
        return pyro.sample("z", dist.Uniform(low, low + 5.0).to_event(3))


class ColumnBoundedPrior(Prior):
    """Bounds that differ between entries and not between sequences."""

    def forward(self, batch_size):
        high = torch.arange(1.0, self.shape[2] + 1).expand(batch_size, *self.shape)
        return pyro.sample("z", dist.Uniform(torch.zeros_like(high), high).to_event(3))


class DriftingPrior(Prior):
    """Bounds that depend on another latent site."""

    def forward(self, batch_size):
        width = pyro.sample("width", dist.LogNormal(torch.zeros(batch_size), 1.0))
        high = width[:, None, None, None].expand(batch_size, *self.shape)
        return pyro.sample("z", dist.Uniform(torch.zeros_like(high), high, validate_args=False).to_event(3))


class ScalarPrior(Prior):
    """One positive number for a whole sequence, with no event dimension."""

    def forward(self, batch_size):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0).expand((batch_size,)))
        z = pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        return scale[..., None, None, None] * z


class KindPrior(Prior):
    """A discrete site above the thoughts."""

    def forward(self, batch_size):
        kind = pyro.sample("kind", dist.Categorical(torch.ones(batch_size, 3)))
        mean = kind.float()[:, None, None, None].expand(batch_size, *self.shape)
        return pyro.sample("z", dist.Normal(mean, 1.0).to_event(3))


def model_of(prior: type[Prior]) -> LatentThoughtModel:
    decoder = tiny_decoder()
    return LatentThoughtModel(decoder, prior(decoder.thought_shape))


@pytest.mark.parametrize("guide", GUIDES.values())
@pytest.mark.parametrize(("prior", "low", "high"), [
    (BoundedPrior, torch.tensor(-2.0), torch.tensor(3.0)),
    (ColumnBoundedPrior, torch.tensor(0.0), torch.arange(1.0, 9.0)),
])  # fmt: skip
def test_bounds_of_any_batch_size_are_kept_for_every_other(prior, low, high, guide):
    model = model_of(prior)
    options = {"init_log_var": -1.0} if guide.has_density else {}
    svi = FastSlowSVI(model, guide(model, **options), fast=FastConfig(steps=3))
    for lengths in ((4,), (4, 2, 5)):
        draws = svi.infer(ragged_batch(*lengths), seed=0).sample(50)
        assert draws.shape[1] == len(lengths)
        assert (draws >= low).all()
        assert (draws <= high).all()
        if not guide.has_density:
            continue
        # A guide on the right support comes near both ends of it.
        assert (draws.amin((0, 1, 2, 3)) < low + 0.3 * (high - low)).all()
        assert (draws.amax((0, 1, 2, 3)) > high - 0.3 * (high - low)).all()


@pytest.mark.parametrize("guide", GUIDES.values())
def test_bounds_that_differ_between_sequences_are_refused(guide):
    with pytest.raises(LTMError, match="'z' has bounds that differ between sequences"):
        guide(model_of(DriftingPrior))


@pytest.mark.parametrize("guide", GUIDES.values())
def test_a_site_of_one_number_is_inferred_taught_and_remembered(guide, tmp_path):
    model, batch = model_of(ScalarPrior), ragged_batch(4, 2, 5)
    guide = guide(model)
    slow = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)
    svi = FastSlowSVI(model, guide, fast=FastConfig(steps=2), slow=slow, starts=PosteriorTable(tmp_path / "table"))
    for seed in range(2):
        (posterior,) = svi.step(batch, seed=seed).posteriors
    draws = posterior.sites(5)["scale"]
    assert draws.shape == (5, 3)
    assert (draws > 0).all()
    assert posterior.mean.shape == (3, *model.prior.shape)
    assert len(svi.starts) == (3 if guide.refined else 0)


@pytest.mark.parametrize("guide", GUIDES.values())
def test_a_discrete_site_is_refused_with_the_mend(guide):
    with pytest.raises(LTMError, match=r"'kind' is discrete, .* summed out exactly, or sum it out in the prior itself"):
        guide(model_of(KindPrior))
