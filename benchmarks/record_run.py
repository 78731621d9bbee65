"""Keeps what a training run showed: its settings, its loss curve and its texts, as JSON, SVG and Markdown."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from ltm_pyro.cli.render import draw_samples

from benchmarks.measure import machine
from ltm_pyro.training import RunDirectory, load_run
from ltm_pyro.training.curves import draw_curves, read_curves

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str]) -> None:
    """Writes benchmarks/results/NAME.{json,svg,md}."""
    parser = argparse.ArgumentParser(prog="just bench record-run", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory")
    parser.add_argument("--name", required=True, help="name of the files under benchmarks/results/")
    parser.add_argument("--command", required=True, help="the command that trained the run")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--num", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=120)
    options = parser.parse_args(arguments)

    run = RunDirectory.open(options.run)
    rows = run.metrics.rows()
    loaded = load_run(options.run)
    texts = draw_samples(loaded, prompt=options.prompt, num=options.num, max_tokens=options.max_tokens)
    sample = ["ltm-pyro", "sample", options.run, "--prompt", options.prompt, "--num", str(options.num)]
    result = {
        "command": options.command,
        "sample_command": shlex.join([*sample, "--max-tokens", str(options.max_tokens)]),
        "machine": machine(),
        "step": loaded.step,
        "settings": run.settings.to_dict(),
        "validation": [row for row in rows if row["split"] == "validation"],
        "train": [_brief(row) for row in rows if row["split"] == "train"],
        "prompt": options.prompt,
        "samples": texts,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / f"{options.name}.md").write_text(_markdown(options.name, result))
    draw_curves(read_curves([options.run]), RESULTS / f"{options.name}.svg")
    print(f"written to {RESULTS / options.name}.json, .md and .svg")


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("step", "loss", "reconstruction", "kl", "tokens_per_s")}


def _markdown(name: str, result: dict[str, Any]) -> str:
    lines = [f"# {name}", "", "```bash", result["command"], result["sample_command"], "```", ""]
    lines += [f"![losses against the slow step]({name}.svg)", "", "Validation, nats per token:", ""]
    lines += [
        "| step | negative ELBO | ± s.e. | reconstruction (KL left out) | KL |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["validation"]:
        cells = (row[key] for key in ("elbo", "elbo_se", "reconstruction", "kl"))
        lines.append(f"| {row['step']} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    lines += ["", f"Texts that continue “{result['prompt']}” at temperature 1, none left out:", ""]
    for number, text in enumerate(result["samples"], 1):
        quoted = " ".join(text["text"].split())
        lines += [f"{number}. {result['prompt']} {quoted}"]
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])
