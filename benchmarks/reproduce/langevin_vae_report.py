"""The table and the plot of `langevin-vae`."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.reproduce.recipe import machine_line, save_svg
from ltm_pyro.evaluation.protocols import ratio

__all__ = ["TITLES", "draw", "table"]

TITLES = {
    "vb": "local VB (the paper)",
    "vae": "VAE",
    "vae-annealed": "VAE, KL annealed",
    "vae-free-bits": "VAE, free nats",
    "semi-amortized": "semi-amortised",
    "langevin-0.3": "Langevin, s = 0.3",
    "langevin-0.03": "Langevin, s = 0.03",
    "ar": "AR, same window",
}
_COLLAPSED = 0.1  # nats of I(x; z)
COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#8DB600", "#000000")


def table(result: dict[str, Any]) -> str:
    """Every decoder by one protocol for all, what its thoughts are used for, and its own inference, as Markdown."""
    rows, options = result["rows"], result["options"]
    thoughtful = [name for name in options["variants"] if name != "ar"]
    first, last = f"vb-{options['eval_steps'][0]}", f"vb-{options['eval_steps'][-1]}"
    inference = result["settings"]["inference"]
    return "\n".join(
        [
            f"# {result['title']}",
            "",
            "Decoders of one size (AR: as many parameters), from the same weights, on the same batches, "
            f"{options['steps']} slow steps each. In training the thoughts come from {inference['fast_steps']} fast "
            "steps of local VB; from an encoder (VAE), its KL annealed over half of the slow steps, or its first "
            f"{options['free_bits']:g} nats a sequence free; from an encoder and then local VB (semi-amortised); or "
            "from as many steps of unadjusted Langevin dynamics, z ← z + s ∇ log p(z | x) + √(2s) ε, that start at a "
            "draw of the prior (one chain, its last draw).",
            "",
            "So few steps leave every decoder on its way down, so that where it stands says how soon it left the "
            "plateau of token frequencies before it says anything of its thoughts."
            if options["preset"] is None
            else "",
            "",
            "A decoder whose thoughts say nothing is an autoregressive model: what separates it from AR, or from "
            "another such decoder, is the luck of a training. Standard errors are over sequences, and do not "
            "have that luck in them.",
            "",
            *_words(rows, thoughtful, first),
            "",
            "## One inference for all",
            "",
            "Whatever trained a decoder, a fresh local normal is fitted to every validation sequence, so that the "
            "decoders alone differ. Nats per token, mean over seeds ± standard error over sequences. `elbo` and `iwae` "
            "are upper bounds on −log p(x), `prequential` is a probability: it is what compares with AR's exact "
            "`likelihood`, and the last column is their difference on the same sequences, seed by seed.",
            "",
            *_bounds(rows, thoughtful, options, [(first, "elbo"), (last, "elbo"), (first, "iwae")], first),
            "",
            f"What the same fits at T_fast = {first[3:]} have in the thoughts. `reconstruction` leaves the KL out and "
            "is no bound. A unit is active if its mean varies over sequences by more than 0.01; I(x; z) is in nats per "
            f"sequence, and M = {_about(rows)['sequences']} sequences cannot show more than log M.",
            "",
            "Fits of few steps on fresh noise end a little apart even where the decoder does not listen, and this "
            "scatter counts as information, too: KL is given for the longer fits besides, which have less of it.",
            "",
            f"| trained by | reconstruction | KL | KL, T_fast = {last[3:]} | active units | I(x; z) | log M |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_used(rows, name, first, last) for name in thoughtful),
            "",
            "## Each its own inference",
            "",
            "The encoder's posterior as it is, and Langevin chains as in training but with "
            f"T_fast = {first[3:]}: draws without a density, which have neither KL nor bound, but a `prequential`, for "
            "that asks for draws of p(z | prefix) and no more.",
            "",
            "| trained by | elbo | reconstruction | KL | active units | I(x; z) | prequential |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_own(rows, name) for name in thoughtful if any("own" in r["reports"] for r in _of(rows, name))),
            "",
            f"{len(_of(rows, options['variants'][0]))} seed(s); S = {options['samples']} draws (`elbo`, "
            f"`reconstruction`, `prequential` in blocks of {options['block_size']} tokens), {options['weights']} "
            f"(`iwae`){_generator(rows)}.",
            "",
            "At full scale, on a GPU:",
            "",
            *(f"    {line}" for line in result["full_scale"]),
            "",
            machine_line(result),
            "",
        ]
    )


def _words(rows: list[dict[str, Any]], names: list[str], first: str) -> list[str]:
    """What the numbers say: which encoders collapsed, VB against the others, and all against AR."""
    lines = []
    for name in names:
        own = [r["reports"]["own"] for r in _of(rows, name) if "information" in r["reports"].get("own", {})]
        if own:
            found = statistics.mean(report["information"]["mutual_information"] for report in own)
            kl = statistics.mean(report["kl"] for report in own)
            verdict = "collapsed" if found < _COLLAPSED else "did not collapse"
            lines.append(f"- {TITLES[name]}: its encoder {verdict}: I(x; z) {found:.3f} nats, KL {kl:.4f} per token.")
    for name in names:
        if name != "vb" and "vb" in names:
            found = "; ".join(_differences(rows, name, first, "vb"))
            lines.append(f"- {TITLES[name]} minus local VB, `prequential` by the one inference: {found}.")
    pairs = [(name, d) for name in names for d in _differences(rows, name, first)]
    below = [name for name, d in pairs if d.startswith("-")]
    if pairs:
        lines.append(f"- Below AR in the mean: {len(below)} of {len(pairs)} trainings.")
    return lines


def _bounds(
    rows: list[dict[str, Any]], names: list[str], options: dict[str, Any], bounds: list[tuple[str, str]], first: str
) -> list[str]:
    heads = [f"{name}, T_fast = {key[3:]}" for key, name in [*bounds, (first, "prequential")]]
    lines = [f"| trained by | {' | '.join(heads)} | prequential − AR |", f"| --- |{' --- |' * (len(heads) + 1)}"]
    for name in names:
        cells = [_value(rows, name, key, what) for key, what in [*bounds, (first, "prequential")]]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} | {'; '.join(_differences(rows, name, first))} |")
    if "ar" in options["variants"]:
        blank = " |" * len(bounds)
        lines.append(f"| {TITLES['ar']}, `likelihood` |{blank} {_value(rows, 'ar', 'own', 'likelihood')} | |")
    return lines


def _used(rows: list[dict[str, Any]], name: str, key: str, last: str) -> str:
    values = [_value(rows, name, *what) for what in ((key, "reconstruction"), (key, "kl"), (last, "kl"))]
    cells = [*values, *_information(rows, name, key)]
    return f"| {TITLES[name]} | {' | '.join(cells)} | {math.log(_about(rows)['sequences']):.2f} |"


def _own(rows: list[dict[str, Any]], name: str) -> str:
    values = [_value(rows, name, "own", what) for what in ("elbo", "reconstruction", "kl")]
    cells = [*values, *_information(rows, name, "own"), _value(rows, name, "own", "prequential")]
    return f"| {TITLES[name]} | {' | '.join(cells)} |"


def _information(rows: list[dict[str, Any]], name: str, key: str) -> list[str]:
    """Active units of all, and I(x; z): means over seeds."""
    found = [r["reports"][key]["information"] for r in _of(rows, name) if "information" in r["reports"][key]]
    if not found:
        return ["", ""]
    active = statistics.mean(row["active_units"] for row in found)
    return [
        f"{active:g} of {found[0]['units']}",
        f"{statistics.mean(row['mutual_information'] for row in found):.3f}",
    ]


def _value(rows: list[dict[str, Any]], name: str, key: str, what: str) -> str:
    """Mean over seeds, and its standard error over sequences; nothing where there is no such number."""
    found = [r["reports"][key] for r in _of(rows, name) if r["reports"].get(key, {}).get(what) is not None]
    if not found:
        return ""
    error = math.sqrt(sum(r.get(f"{what}_se", 0.0) ** 2 for r in found)) / len(found)
    return f"{statistics.mean(r[what] for r in found):.3f} ± {error:.3f}"


def _differences(rows: list[dict[str, Any]], name: str, key: str, other: str = "ar") -> list[str]:
    """Prequential minus another's, of AR its likelihood, in nats per token on the same sequences, for every seed."""
    cells = []
    for row in _of(rows, name):
        for second in (r for r in _of(rows, other) if r["seed"] == row["seed"]):
            own, report = row["reports"][key], second["reports"]["own" if other == "ar" else key]
            theirs = report["likelihood_nats" if other == "ar" else "prequential_nats"]
            nats = torch.tensor(own["prequential_nats"]).double() - torch.tensor(theirs).double()
            value, error = ratio(nats, torch.tensor(own["num_scored"]))
            cells.append(f"{value:+.3f} ± {error:.3f}")
    return cells


def _of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["variant"] == name]


def _about(rows: list[dict[str, Any]]) -> dict[str, Any]:
    report: dict[str, Any] = next(iter(rows[0]["reports"].values()))
    return report


def _generator(rows: list[dict[str, Any]]) -> str:
    found = {row["seed"]: row["generator_entropy"] for row in rows if row["generator_entropy"] is not None}
    return f"; the generator's own −log p(x) is {statistics.mean(found.values()):.3f} nats per token" if found else ""


def draw(result: dict[str, Any], path: Path) -> None:
    """KL and prequential of every decoder by the one inference for all."""
    from matplotlib.figure import Figure

    rows, key = result["rows"], f"vb-{result['options']['eval_steps'][0]}"
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in zip(TITLES, COLOURS, strict=True):
        for number, row in enumerate(_of(rows, name)):
            label = TITLES[name] if number == 0 else None
            left.plot(row["curve"]["steps"], row["curve"]["value"], color=colour, lw=1.2, alpha=0.8, label=label)
            if name != "ar":
                report = row["reports"][key]
                right.errorbar(
                    report["kl"], report["prequential"], report.get("prequential_se"), fmt="o", color=colour, ms=5
                )
            else:
                right.axhline(row["reports"]["own"]["likelihood"], color=colour, lw=0.8, ls=":")
    left.set(xlabel="slow steps", ylabel="validation: elbo (AR: likelihood), nats per token")
    left.legend(frameon=False, fontsize=7)
    right.set(xlabel="KL of fitted thoughts, nats per token", ylabel="prequential, nats per token (AR dotted)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_svg(figure, path)
