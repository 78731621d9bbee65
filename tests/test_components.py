"""Priors and guides by name and by package.module:Class, with their options."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_settings

from ltm_pyro.components import build_guide, build_model, check_components, resolve
from ltm_pyro.config import Settings
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import LocalNormal
from ltm_pyro.priors import PRIORS, GaussianPrior, Prior

SOURCE = '''
import pyro
import pyro.distributions as dist
import torch
from ltm_pyro import Guide, Prior

class Scaled(Prior):
    """Two sites: a positive scale for each sequence, and thoughts of that scale."""

    def __init__(self, shape, concentration: float = 2.0, *, rate=1.0):
        super().__init__(shape)
        self.concentration, self.rate = concentration, rate

    def forward(self, batch_size):
        scale = pyro.sample("scale", dist.Gamma(torch.tensor(self.concentration), self.rate).expand((batch_size,)))
        unit = dist.Normal(0.0, 1.0).expand((batch_size, *self.shape)).to_event(3)
        return scale[..., None, None, None] * pyro.sample("unit", unit)

class Needy(Prior):
    def __init__(self, shape, components):
        super().__init__(shape)

    def forward(self, batch_size): ...

class Unfinished(Prior):
    pass

class NoPrior: ...

number = 3
'''


@pytest.fixture
def my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own on the Python path."""
    (tmp_path / "my_priors.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_priors", raising=False)
    yield "my_priors"
    sys.modules.pop("my_priors", None)


def build(**changes):
    settings = tiny_settings({address.replace("__", "."): value for address, value in changes.items()})
    model = build_model(settings, 300)
    return model, build_guide(settings, model)


def test_the_decoder_has_the_shape_that_the_settings_say():
    changes = {"decoder__layers": 2, "decoder__num_thoughts": 6, "decoder__window": 5, "decoder__rope_base": 77}
    model, _ = build(**changes, data__sequence_length=48)
    assert model.decoder.thought_shape == (2, 3, 8)
    assert (model.decoder.vocab_size, model.decoder.window, model.decoder.max_length) == (300, 5, 48)
    assert model.decoder.rope_base == 77
    assert model.decoder.embedding.weight.shape == (300, 16)
    assert model.prior.shape == (2, 3, 8)
    wide, _ = build(decoder__thought_width=None)
    assert wide.decoder.thought_shape == (1, 2, 16)


def test_known_names_and_own_paths_resolve_to_classes():
    assert resolve("prior", "gaussian", PRIORS, Prior) is GaussianPrior
    assert resolve("prior", "ltm_pyro.priors.gaussian:GaussianPrior", PRIORS, Prior) is GaussianPrior


def test_where_local_parameters_start_comes_from_the_inference_settings_unless_the_guide_says_otherwise():
    _, guide = build(inference__init_log_var=-2, inference__init_log_var_spread=0.3, inference__init_mu_spread=0.7)
    assert isinstance(guide, LocalNormal)
    assert (guide.init_log_var, guide.init_log_var_spread, guide.init_mu_spread) == (-2, 0.3, 0.7)
    _, guide = build(inference__init_log_var=-2, guide__init_log_var=-4.0)
    assert guide.init_log_var == -4.0


def test_a_prior_of_the_users_own_gets_its_options_and_a_guide_for_each_site(my_module: str):
    model, guide = build(prior__name=f"{my_module}:Scaled", prior__concentration="3.5", prior__rate=2)
    assert (model.prior.concentration, model.prior.rate) == (3.5, 2)
    assert [site.name for site in guide.sites] == ["scale", "unit"]
    assert model.sample_prior(4).shape == (4, 1, 2, 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gausian", "unknown prior 'gausian': did you mean 'gaussian'.; your own is given as package.module:Class"),
        ("zzz", "unknown prior 'zzz': known are gaussian"),
        ("no_such_module_here:P", "cannot import prior 'no_such_module_here:P': .*must be on the Python path"),
        ("my_priors:Missing", "module 'my_priors' has no class 'Missing' to use as prior"),
        ("my_priors:NoPrior", "prior 'my_priors:NoPrior' is not a subclass of ltm_pyro.Prior"),
        ("my_priors:number", "prior 'my_priors:number' is not a subclass of ltm_pyro.Prior"),
        ("my_priors:Unfinished", "prior 'my_priors:Unfinished' is abstract: define its forward"),
        ("my_priors:Needy", "prior 'my_priors:Needy' needs its option 'components': give it as prior.components"),
        ("ltm_pyro.guides:LocalNormal", "is not a subclass of ltm_pyro.Prior"),
        (":P", "prior ':P' is not of the form package.module:Class"),
        ("my_priors:", "prior 'my_priors:' is not of the form package.module:Class"),
        (".my_priors:P", "is not of the form package.module:Class"),
        ("my priors:P", "is not of the form package.module:Class"),
        ("a:b:c", "is not of the form package.module:Class"),
    ],
)
def test_a_name_that_means_no_prior_is_refused_with_the_mend(my_module: str, name: str, words: str):
    with pytest.raises(LTMError, match=words):
        build(prior__name=name)


def test_an_unknown_guide_is_refused_with_the_nearest_name():
    with pytest.raises(LTMError, match="unknown guide 'local-norml': did you mean 'local-normal'"):
        build(guide__name="local-norml")


def test_options_that_a_class_does_not_take_are_refused_by_name(my_module: str):
    with pytest.raises(LTMError, match="prior 'gaussian' has no option 'scale': it takes none"):
        build(prior__scale=2)
    with pytest.raises(LTMError, match="has no option 'speed': it takes concentration, rate"):
        build(prior__name=f"{my_module}:Scaled", prior__speed=2)
    with pytest.raises(LTMError, match="guide 'local-normal' has no option 'rank': it takes init_log_var, init_"):
        build(guide__rank=2)


def test_weights_come_from_torchs_seed():
    torch.manual_seed(3)
    first, _ = build()
    second, _ = build()
    torch.manual_seed(3)
    third, _ = build()
    same, other = first.decoder.embedding.weight, second.decoder.embedding.weight
    assert torch.equal(same, third.decoder.embedding.weight)
    assert not torch.equal(same, other)


@pytest.mark.parametrize(
    ("value", "words"), [("abc", "must be a whole number, got 'abc'"), ("2.5", "must be a whole number")]
)
def test_an_option_of_the_wrong_type_is_refused_before_anything_is_built(value: str, words: str):
    settings = Settings().updated({"prior.name": "mixture", "prior.components": value})
    with pytest.raises(LTMError, match=f"prior.components {words}"):
        check_components(settings)


def test_an_option_is_read_as_the_type_that_its_class_declares():
    settings = Settings().updated({"prior.name": "mixture", "prior.components": "3", "prior.spread": "1"})
    assert build_model(settings, 300).prior.logits.shape == (3,)
