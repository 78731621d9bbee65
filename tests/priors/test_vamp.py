"""The vamp prior: the mixture of an encoder's posteriors, written out; and what it needs of a guide."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from tiny_models import ragged_batch, tiny_decoder
from tiny_runs import new_trainer, tiny_data, tiny_settings
from torch.distributions import Independent, Normal

from ltm_pyro.components import check_components
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import GUIDES, Amortized, LocalNormal, SemiAmortized
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import VampPrior
from ltm_pyro.training import load_run, read_checkpoint

LOCAL = [name for name in GUIDES if not name.endswith("amortized")]
SMALL = {"width": 16, "layers": 1, "heads": 2, "init_log_var": -1.0}


def vamp_model() -> tuple[LatentThoughtModel, Amortized]:
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, VampPrior(decoder.thought_shape, components=3, tokens=4))
    guide = Amortized(model, **SMALL)
    with torch.no_grad():
        for parameter in (*model.prior.parameters(), *guide.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, guide


def test_the_density_is_the_mixture_of_the_encoders_normals_at_the_pseudo_inputs(float64):
    model, guide = vamp_model()
    z = torch.randn(5, *model.prior.shape)

    def program():
        with pyro.plate("sequences", 5, dim=-1):
            return model.prior(5)

    trace = poutine.trace(poutine.condition(program, {"z": z})).get_trace()
    trace.compute_log_prob()
    parts = []
    for k in range(3):  # each pseudo-input on its own, as if it were a text
        local = guide.encode(model.prior.inputs[[k]], torch.ones(1, 4, dtype=torch.bool))
        normal = Normal(local["z.mu"][0], (0.5 * local["z.log_var"][0]).exp())
        parts.append(model.prior.logits.log_softmax(0)[k] + normal.log_prob(z).sum((1, 2, 3)))
    assert torch.stack(parts).std(0).min() > 0.1  # the components differ
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], torch.stack(parts).logsumexp(0))


def test_a_pseudo_input_that_is_a_text_gives_that_texts_posterior(float64):
    model, guide = vamp_model()
    batch = ragged_batch(3)
    tokens = torch.cat([batch.start[:, None], batch.tokens], 1)
    with torch.no_grad():
        model.prior.inputs[1] = guide.embedding(tokens[0])
        model.prior.logits.copy_(torch.tensor([-100.0, 0.0, -100.0]))
    posterior = FastSlowSVI(model, guide).infer(batch, seed=0)
    # The prior is the posterior, so the text says nothing of its thoughts that was not known.
    torch.testing.assert_close(posterior.elbo_terms(16).kl, torch.zeros(1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", LOCAL)
def test_a_guide_without_an_encoder_is_refused_with_the_mend(name: str):
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, VampPrior(decoder.thought_shape))
    words = f"VampPrior mixes an encoder's posteriors, and {GUIDES[name].__name__} has no encoder: choose the guide"
    with pytest.raises(LTMError, match=words):
        FastSlowSVI(model, GUIDES[name](model))
    with pytest.raises(LTMError, match=words):
        check_components(tiny_settings({"prior.name": "vamp", "guide.name": name}))


def test_both_guides_with_an_encoder_are_taken():
    assert len(LOCAL) == len(GUIDES) - 2
    for name in ("amortized", "semi-amortized"):
        check_components(tiny_settings({"prior.name": "vamp", "guide.name": name}))


def test_a_second_guide_leaves_the_pseudo_inputs_that_the_first_one_learned_with():
    model, _ = vamp_model()
    inputs, learned = model.prior.inputs, model.prior.inputs.detach().clone()
    second = SemiAmortized(model, **SMALL)
    assert model.prior.inputs is inputs  # what an optimiser holds
    torch.testing.assert_close(inputs.detach(), learned, rtol=0, atol=0)
    assert model.prior._guide[0] is second


def test_a_prior_that_no_guide_was_made_for_cannot_be_run():
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, VampPrior(decoder.thought_shape))
    LocalNormal(model)  # reads its site from the template, and is no encoder
    for run in (lambda: model.sample_prior(2), lambda: model(ragged_batch(3))):
        with pytest.raises(LTMError, match="needs a guide with an encoder before it can be run: choose"):
            run()


@pytest.mark.parametrize("options", [{"components": 0}, {"tokens": 0}])
def test_a_mixture_of_nothing_is_refused(options):
    with pytest.raises(LTMError, match="1 component and 1 token or more"):
        VampPrior((1, 1, 1), **options)


@pytest.mark.parametrize("guide", ["amortized", "semi-amortized"])
def test_pseudo_inputs_learn_and_the_elbo_reaches_the_encoder_through_the_prior(guide: str):
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, VampPrior(decoder.thought_shape, components=3, tokens=4))
    encoder = GUIDES[guide](model, **SMALL)
    weights = [*model.parameters(), *encoder.parameters()]
    assert sum(p is model.prior.inputs for p in weights) == 1
    svi = FastSlowSVI(model, encoder, fast=FastConfig(steps=2), slow=torch.optim.SGD(weights, lr=0.0))
    svi.step(ragged_batch(4, 6), seed=0)
    gradient = model.prior.inputs.grad
    assert gradient.shape == (3, 4, decoder.embedding.embedding_dim)
    assert (gradient.abs().sum((1, 2)) > 0).all()
    assert (model.prior.logits.grad != 0).all()


def test_pseudo_inputs_start_as_large_as_the_embeddings():
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, VampPrior(decoder.thought_shape, components=50, tokens=20))
    with torch.no_grad():
        decoder.embedding.weight.mul_(7.0)
    Amortized(model, **SMALL)
    ratio = float(model.prior.inputs.detach().std() / decoder.embedding.weight.detach().std())
    assert ratio == pytest.approx(1.0, abs=5 / (2 * 8000) ** 0.5)


def test_a_run_keeps_its_pseudo_inputs_and_draws_the_same_after_loading(tmp_path: Path):
    data = tiny_data(tmp_path, layout="documents")
    changes = {"prior.name": "vamp", "guide.name": "amortized", "guide.width": 16, "guide.heads": 2}
    trainer = new_trainer(tmp_path / "run", data, changes | {"training.steps": 3})
    start = trainer.learner.model.prior.inputs.detach().clone()
    trainer.fit()
    stored = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000003")
    assert torch.equal(stored.model["model.prior.inputs"], trainer.learner.model.prior.inputs)
    assert not torch.equal(stored.model["model.prior.inputs"], start)
    assert "model.prior.inputs.exp_avg" in stored.optimizer
    run = load_run(tmp_path / "run", device="cpu")
    assert not any("embedding" in name or "encoder" in name for name in run.svi.model.prior.state_dict())
    trainer.learner.guide.eval()
    draws = []
    for model in (trainer.learner.model, run.svi.model):
        pyro.set_rng_seed(5)
        draws.append(model.sample_prior(4))
    assert torch.equal(*draws)


def test_draws_come_from_the_mixture():
    model, guide = vamp_model()
    with torch.no_grad():
        model.prior.logits.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    local = guide.encode(model.prior.inputs, torch.ones(3, 4, dtype=torch.bool))
    draws = model.sample_prior(20_000)
    normals = Independent(Normal(local["z.mu"], (0.5 * local["z.log_var"]).exp()), 3)
    weights = torch.tensor([0.2, 0.5, 0.3])
    mean = (weights[:, None, None, None] * normals.mean).sum(0)
    square = (weights[:, None, None, None] * (normals.mean.square() + normals.variance)).sum(0)
    deviation = (square - mean.square()).sqrt()
    assert ((draws.mean(0) - mean) / deviation).abs().max() < 5 / 20_000**0.5


def test_the_prior_mixes_the_posteriors_of_the_guide_that_it_is_joined_with():
    model, first = vamp_model()
    second = Amortized(model, **SMALL)
    z, densities = torch.randn(5, *model.prior.shape), []
    for guide in (first, second, first):
        FastSlowSVI(model, guide)
        with pyro.plate("sequences", 5, dim=-1):
            trace = poutine.trace(model.prior).get_trace(5)
        densities.append(trace.nodes["z"]["fn"].log_prob(z))
    assert torch.equal(densities[0], densities[2])
    assert not torch.allclose(densities[0], densities[1])
