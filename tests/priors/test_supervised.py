"""The supervised prior: a class summed out where it is unknown and counted where it is known, in one batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from tiny_models import ragged_batch, tiny_decoder, tiny_model
from tiny_runs import new_trainer
from torch.distributions import Normal

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import build_data
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.infer.density import log_joint, trace_model
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, sequence_noise
from ltm_pyro.priors import SupervisedPrior

K = 3
LABELS = [2, -1, 0, 1, -1]  # known and unknown in one batch


def supervised_model(spread: float = 1.0) -> LatentThoughtModel:
    decoder = tiny_decoder()
    prior = SupervisedPrior(decoder.thought_shape, classes=K, spread=spread)
    with torch.no_grad():
        prior.logits.normal_()
        prior.log_scale.normal_(std=0.3)
    return LatentThoughtModel(decoder, prior)


def labelled(labels: list[int] = LABELS) -> TokenBatch:
    return replace(ragged_batch(*[5, 3, 0, 2, 4][: len(labels)]), labels=torch.tensor(labels))


def joint_with_classes(prior: SupervisedPrior, z: torch.Tensor) -> torch.Tensor:
    """(…, B, K) log p(y) + log p(z | y), one class at a time."""
    normals = [Normal(prior.mu[k], prior.log_scale[k].exp()).log_prob(z).sum((-3, -2, -1)) for k in range(K)]
    return torch.stack(normals, -1) + prior.logits.log_softmax(0)


@pytest.mark.parametrize("labels", [None, [-1] * 5, LABELS, [2, 0, 0, 1, 1]])
def test_known_classes_enter_the_density_and_unknown_ones_are_summed_out(float64, labels):
    prior = supervised_model().prior
    z = torch.randn(5, *prior.shape)
    given = None if labels is None else torch.tensor(labels)

    def program():
        with pyro.plate("sequences", 5, dim=-1):
            return prior(5) if given is None else prior(5, labels=given)

    found = log_joint(trace_model(pyro.condition(program, {"z": z}))).total.view(5)
    joint = joint_with_classes(prior, z)
    for b, label in enumerate(labels or [-1] * 5):
        torch.testing.assert_close(found[b], joint[b].logsumexp(0) if label < 0 else joint[b, label])


@pytest.mark.parametrize("particles", [1, 4])
def test_the_elbo_is_pyros_own_enumerated_one_draw_by_draw(float64, particles):
    model, batch = supervised_model(), labelled()
    guide = LocalNormal(model, init_log_var=-1.0)
    start = guide.init_local(batch, SequenceGenerator(batch.keys, 0))
    peer = TraceEnum_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
    results = []
    for elbo in (SequenceELBO(particles), peer):
        local = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        with sequence_noise(SequenceGenerator(batch.keys, 7)):
            loss = elbo.differentiable_loss(lambda: model(batch), lambda p=local: guide(batch, p))
        results.append((loss.detach(), torch.autograd.grad(loss, [*local.values(), *model.parameters()])))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_the_terms_are_those_of_the_classes_written_out(float64):
    model, batch = supervised_model(), labelled()
    posterior = FastSlowSVI(model, LocalNormal(model, init_log_var=-1.0), fast=FastConfig(steps=2)).infer(batch, seed=0)
    with sequence_noise(SequenceGenerator(batch.keys, 0, "score")):
        q = Normal(posterior.local["z.mu"], (0.5 * posterior.local["z.log_var"]).exp())
        z = q.loc + q.scale * SequenceGenerator(batch.keys, 0, "score").normal(tuple(model.prior.shape))
    joint = joint_with_classes(model.prior, z).detach()
    rows = range(5)
    prior = torch.stack([joint[b].logsumexp(0) if LABELS[b] < 0 else joint[b, LABELS[b]] for b in rows])
    likelihood = model.likelihood(z, batch, None).log_prob(batch.tokens).detach()
    expected = likelihood + prior - q.log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(posterior.terms.elbo, expected)


@pytest.mark.parametrize("labels", [LABELS, [-1] * 5, [1] * 5])
def test_gradients_are_finite_with_labels_without_and_mixed(labels):
    model, batch = supervised_model(), labelled(labels)
    slow = torch.optim.SGD(model.parameters(), lr=0.0)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=-1.0), fast=FastConfig(steps=3), slow=slow)
    info = svi.step(batch, seed=0)
    assert torch.isfinite(info.loss)
    for name, parameter in model.prior.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    if labels == [1] * 5:  # nothing is said of the other classes' normals
        assert (model.prior.mu.grad[[0, 2]] == 0).all()
        assert (model.prior.mu.grad[1] != 0).all()


def test_the_probabilities_of_a_class_are_bayes_rule_where_it_is_unknown_and_certain_where_it_is_known(float64):
    model, batch = supervised_model(spread=0.3), labelled()
    posterior = FastSlowSVI(model, LocalNormal(model, init_log_var=-1.0), fast=FastConfig(steps=2)).infer(batch, seed=0)
    expected = joint_with_classes(model.prior, posterior.sample(6)).softmax(-1).mean(0).detach()
    for b, label in enumerate(LABELS):
        if label >= 0:
            expected[b] = torch.eye(K)[label]
    torch.testing.assert_close(posterior.discrete(6)["y"], expected)
    blind = replace(posterior, batch=batch.unlabelled()).discrete(6)["y"]
    assert (blind.amax(1) < 1).all()


def test_thoughts_are_drawn_from_the_class_that_is_asked_for_and_else_from_all():
    model = supervised_model()
    with torch.no_grad():
        model.prior.mu.copy_(torch.tensor([-50.0, 0.0, 50.0])[:, None, None, None].expand_as(model.prior.mu))
        model.prior.logits.copy_(torch.tensor([0.5, 0.2, 0.3]).log())
    labels = torch.arange(600) % K
    drawn = model.sample_prior(600, labels)
    scale = model.prior.log_scale.exp()[labels]
    standard = (drawn - model.prior.mu[labels]) / scale
    assert abs(standard.mean()) < 5 / standard.numel() ** 0.5
    assert abs(standard.std() - 1) < 5 / (2 * standard.numel()) ** 0.5
    free = (model.sample_prior(20_000).mean((1, 2, 3)) / 50).round().long() + 1
    shares = torch.bincount(free, minlength=K) / 20_000
    assert ((shares - torch.tensor([0.5, 0.2, 0.3])).abs() < 5 * (0.25 / 20_000) ** 0.5).all()


def test_labels_for_a_prior_that_has_no_classes_are_refused():
    with pytest.raises(LTMError, match="GaussianPrior has no classes: leave the label out"):
        tiny_model().sample_prior(2, torch.zeros(2, dtype=torch.int64))


def test_more_classes_than_the_priors_are_refused_with_the_mend(tmp_path: Path):
    prior = SupervisedPrior((1, 1, 1), classes=2)
    prior.check_classes(())
    prior.check_classes(("a", "b"))
    words = r"the data have 3 classes \(a, b, c\), the supervised prior 2: set prior.classes=3"
    with pytest.raises(LTMError, match=words):
        prior.check_classes(("a", "b", "c"))
    rows = [{"text": f"the cat sat on mat {i}", "kind": "abc"[i % 3]} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"sequence_length": 32, "vocab_size": 300, "validation_fraction": 0.2, "cache_dir": tmp_path / "cache"}
    data = build_data(source=str(tmp_path / "rows.jsonl"), label_column="kind", **options)
    with pytest.raises(LTMError, match=words):
        new_trainer(tmp_path / "run", data, {"prior.name": "supervised"})
    trainer = new_trainer(tmp_path / "run-3", data, {"prior.name": "supervised", "prior.classes": 3})
    assert trainer.fit()


def test_a_prior_of_no_class_is_refused():
    with pytest.raises(LTMError, match="1 class or more, got classes = 0"):
        SupervisedPrior((1, 1, 1), classes=0)


def documents(num: int, seed: int) -> tuple[TokenBatch, torch.Tensor]:
    """Texts of two kinds, nine tokens in ten from the kind's own half of the vocabulary, and their kinds."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(2, (num,), generator=generator)
    own = torch.rand(num, 10, generator=generator) < 0.9
    half = torch.where(own, kinds[:, None], 1 - kinds[:, None])
    tokens = 5 * half + torch.randint(5, (num, 10), generator=generator)
    return TokenBatch(tokens, torch.full((num,), 10), torch.full((num,), 10)), kinds


def test_a_few_labels_teach_the_classes_of_texts_that_were_never_seen():
    decoder = tiny_decoder(layers=1)
    model = LatentThoughtModel(decoder, SupervisedPrior(decoder.thought_shape, classes=2, spread=1.0))
    train, kinds = documents(48, seed=0)
    train = replace(train, labels=torch.where(torch.arange(48) < 12, kinds, -1))
    test, truth = documents(100, seed=1)
    rates = [{"params": model.prior.parameters(), "lr": 0.1}, {"params": model.decoder.parameters(), "lr": 0.01}]
    fast = FastConfig(steps=8, lr=0.3)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=-1.0), fast=fast, slow=torch.optim.Adam(rates))

    def accuracy() -> float:
        found = svi.infer(test, steps=16, seed=0).discrete(8)["y"].argmax(1)
        return float((found == truth).float().mean())

    before = accuracy()
    for step in range(40):
        svi.step(train, seed=step)
    assert before < 0.8
    assert accuracy() > 0.9  # the kinds hardly overlap: about one text in two thousand is on the wrong side
