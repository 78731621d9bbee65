"""The recipes `langevin-vae` and `probe`: a Langevin-trained step by hand, and smoke runs held against their models."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tiny_models import ragged_batch, tiny_model
from torch import nn

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra dev)")

from benchmarks.plain import plain_preset
from benchmarks.reproduce import langevin_vae, probe
from benchmarks.reproduce.kept import kept
from benchmarks.reproduce.langevin import LangevinInference, LangevinLearner
from benchmarks.reproduce.langevin_vae_report import TITLES
from benchmarks.reproduce.recipe import read_data, trained
from benchmarks.reproduce.sweeps import SMOKE
from ltm_pyro.infer import langevin
from ltm_pyro.noise import SequenceGenerator
from ltm_pyro.presets import preset
from ltm_pyro.training import build_optimizer, load_run
from ltm_pyro.training.learners import ThoughtLearner

DECODER = {
    "decoder.hidden": 8,
    "decoder.heads": 2,
    "decoder.num_thoughts": 4,
    "decoder.thought_width": 4,
    "decoder.window": 4,
    "inference.fast_steps": 3,
    "training.clip_norm": 0.05,
}


def _log_prob(model, batch, thoughts):
    """(B,) log p(x | z) from the logits."""
    decoder = model.decoder
    logits = decoder.logits(decoder(decoder.stem(batch.inputs), thoughts))
    log_prob = logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
    return (log_prob * batch.mask).sum(-1)


def test_langevin_step_is_a_chain_from_the_prior_and_one_clipped_step_at_its_end(float64, tmp_path):
    settings = preset("tiny").updated(DECODER)
    learner = ThoughtLearner(settings, 11, torch.device("cpu"), tmp_path)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter.shape[-1]))
    twin, batch, s = deepcopy(learner.model), ragged_batch(5, 9, 2), 0.05
    LangevinLearner(learner, s).step(batch, at=0, seed=7)

    generator = SequenceGenerator(batch.keys, 7, "chain")
    shape = twin.decoder.thought_shape
    starts = [torch.normal(torch.zeros(shape), 1.0, generator=_seeded(seed)) for seed in generator.seeds()]
    z = torch.stack(starts)
    for _ in range(3):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad((_log_prob(twin, batch, z) - 0.5 * z.square().flatten(1).sum(1)).sum(), z)
        noise = generator.normal((math.prod(shape),), particles=(1,), dtype=z.dtype)[0].view_as(z)
        z = (z + s * gradient + math.sqrt(2 * s) * noise).detach()
    (-_log_prob(twin, batch, z).sum() / 16).backward()
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()
    assert norm > 0.05  # so that the clip is seen
    for parameter in twin.parameters():
        parameter.grad *= 0.05 / (norm + 1e-6)
    build_optimizer(nn.ModuleDict({"model": twin}), settings.training).step()
    for moved, expected in zip(learner.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(moved, expected)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_of_langevin_inference_are_the_ends_of_its_chains():
    model, batch = tiny_model(), ragged_batch(4, 7)
    inference = LangevinInference(model, steps=5, step_size=0.02, chains=3)
    drawn = inference.infer(batch, seed=1).sample(3)
    chains = langevin(model, batch, draws=1, warmup=4, step_size=0.02, adjusted=False, chains=3, seed=1)
    torch.testing.assert_close(drawn, chains.thoughts()[0])
    # Fewer steps are asked for as from the fast loop.
    early = langevin(model, batch, draws=1, warmup=1, step_size=0.02, adjusted=False, chains=3, seed=1)
    torch.testing.assert_close(inference.infer(batch, steps=2, seed=1).sample(3), early.thoughts()[0])


def test_a_kept_row_answers_only_what_it_was_asked(tmp_path):
    assert kept(tmp_path, {"samples": 2}, lambda: {"value": 1.5}) == {"value": 1.5}
    assert kept(tmp_path, {"samples": 2}, lambda: pytest.fail("computed again")) == {"value": 1.5}
    assert kept(tmp_path, {"samples": 3}, lambda: {"value": 2.5}) == {"value": 2.5}


def test_a_training_on_other_text_is_not_taken_for_this_one(tmp_path):
    changes = plain_preset("tiny").updated(SMOKE | {"training.steps": 1, "training.device": "cpu"})
    data = read_data(changes)
    assert trained(changes, data, tmp_path / "run").step == 1
    # Where shards are kept, and how fast they come, changes nothing.
    assert trained(changes.updated({"data.cache_dir": str(tmp_path)}), data, tmp_path / "run").step == 1
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        trained(changes.updated({"data.documents": 61}), data, tmp_path / "run")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Runs a recipe's smoke run in a folder of its own; returns where its results and trainings are."""
    folder = tmp_path_factory.mktemp("reproduce")

    def run(recipe) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("LTM_PYRO_CACHE", str(folder / "cache"))
            recipe.main(["--smoke"])
        return folder / "runs" / "reproduce" / f"{recipe.__name__.rpartition('.')[2].replace('_', '-')}-smoke"

    return run


def _results(folder: Path, name: str) -> tuple[dict, str]:
    """What was written, with no path of the machine in any of it."""
    texts = [(folder / f"{name}.{kind}").read_text() for kind in ("json", "md", "svg")]
    assert texts[2].lstrip().startswith("<?xml")
    for text in texts:
        assert str(folder.parents[2]) not in text
        assert str(Path(__file__).parents[2]) not in text
    return json.loads(texts[0]), texts[1]


def test_langevin_vae_scores_every_decoder_by_one_inference_and_each_by_its_own(smoke):
    folder = smoke(langevin_vae)
    result, table = _results(folder, "langevin-vae")
    rows = {row["variant"]: row for row in result["rows"]}
    assert list(rows) == list(langevin_vae.VARIANTS)
    for name, row in rows.items():
        if name != "ar":
            one = row["reports"]["vb-1"]
            assert all(math.isfinite(one[what]) for what in ("elbo", "iwae", "prequential", "kl", "reconstruction"))
            assert one["information"]["mutual_information"] <= one["information"]["mutual_information_limit"] + 1e-9
        assert ("own" in row["reports"]) == (name not in ("vb", "semi-amortized"))
        assert f"| {TITLES[name]}" in table
    for name in ("langevin-0.3", "langevin-0.03"):  # draws without a density
        assert not {"elbo", "kl", "iwae"} & rows[name]["reports"]["own"].keys()
    assert rows["vae-annealed"]["curve"] != rows["vae"]["curve"]

    run = load_run(folder / "ar-0")
    data, indices = _validation(run, folder)
    batch = data.batch(indices)
    with torch.no_grad():
        inputs = torch.cat([batch.start[:, None], batch.tokens[:, :-1]], dim=1)
        network = run.language_model.network
        logits = network.logits(network(inputs))
    log_prob = logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
    by_hand = -float((log_prob * batch.mask).sum() / batch.mask.sum())
    assert rows["ar"]["reports"]["own"]["likelihood"] == pytest.approx(by_hand, rel=1e-5)


def test_probe_writes_both_regimes_and_reconstruction_is_that_of_the_drawn_thoughts(smoke):
    folder = smoke(probe)
    result, table = _results(folder, "probe")
    assert [row["regime"] for row in result["rows"]] == list(probe.REGIMES)
    for row in result["rows"]:
        assert [values["kept"] for values in row["layers"]["first"]] == [[], [1], [1, 2]]
        assert [values["kept"] for values in row["layers"]["single"]] == [[1], [2]]
        assert len(row["interpolation"]["spherical"]["points"]) == 3
        swap = row["swap"]
        assert swap["gap"] == pytest.approx(swap["swapped"] - swap["own"])
        assert row["layers"]["first"][-1]["nats"] == pytest.approx(swap["own"], rel=1e-5)
        assert row["evaluation"]["reconstruction"] == pytest.approx(swap["own"], rel=1e-5)
    assert table.count("| none (draws of the prior) |") == 2

    run = load_run(folder / "released-0")
    data, indices = _validation(run, folder)
    batch = data.batch(indices)
    posterior = run.svi.infer(batch, seed=0, lr=run.fast_lr)
    thoughts = posterior.sample(1, purpose="score")[0]
    with torch.no_grad():
        by_hand = -float(_log_prob(run.svi.model, batch, thoughts).sum() / batch.mask.sum())
    found = result["rows"][1]["layers"]["first"][-1]["nats"]
    assert found == pytest.approx(by_hand, rel=1e-4)


def _validation(run, folder: Path):
    """The run's validation sequences, and the two that a smoke run scores."""
    cache = str(folder.parents[2] / "cache")
    data = read_data(run.settings.updated({"data.cache_dir": cache})).validation
    return data, [0, len(data) // 2]
