"""Priors that cannot be guided are refused when the guide is made, with the mend."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from tiny_models import tiny_decoder

from ltm_pyro.errors import LTMError
from ltm_pyro.guides import latent_sites
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import Prior


class WithoutToEvent(Prior):
    def forward(self, batch_size):
        return pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0))


class PerLayerOnly(Prior):
    """Its scale has one entry per layer, which is no dimension of sequences even where the numbers agree."""

    def forward(self, batch_size):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0).expand((self.shape[0],)))
        z = pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        return scale[:, None, None] * z


class InASecondPlate(Prior):
    def forward(self, batch_size):
        with pyro.plate("layers", self.shape[0], dim=-2):
            scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        return scale.mT[..., None, None] * z


@pytest.mark.parametrize("prior", [WithoutToEvent, PerLayerOnly, InASecondPlate])
def test_a_site_with_batch_dimensions_of_its_own_is_refused_with_the_mend(prior):
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, prior(decoder.thought_shape))
    with pytest.raises(LTMError, match=r"\.to_event\(\)"):
        latent_sites(model)


class Broken(Prior):
    def forward(self, batch_size):
        raise ValueError("a mistake of its own")


def test_an_error_of_the_prior_itself_is_left_as_it_is():
    decoder = tiny_decoder()
    with pytest.raises(ValueError, match="a mistake of its own"):
        latent_sites(LatentThoughtModel(decoder, Broken(decoder.thought_shape)))
