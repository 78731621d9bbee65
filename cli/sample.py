"""``ltm-pyro sample``."""

from __future__ import annotations

import json
from pathlib import Path

import click
from ltm_pyro.cli.options import (
    allow_custom_code_option,
    device_option,
    fast_steps_option,
    json_option,
    run_argument,
    sampling_options,
    seed_option,
)

__all__ = ["command"]


@click.command()
@run_argument
@click.option("--prompt", metavar="TEXT", help="Text to continue.")
@click.option("--prompt-file", type=click.Path(), metavar="F", help="The same, from a UTF-8 file.")
@click.option("--num", type=click.IntRange(min=1), default=1, show_default=True, metavar="K", help="Texts to write.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="M",
    help="Most tokens of a text.",
)
@sampling_options
@click.option("--label", metavar="C", help="Class of the texts, under a prior that has classes (default: any).")
@fast_steps_option
@seed_option
@device_option
@allow_custom_code_option
@json_option
def command(
    run: str,
    prompt: str | None,
    prompt_file: str | None,
    num: int,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    label: str | None,
    fast_steps: int | None,
    seed: int,
    device: str,
    allow_custom_code: bool,
    as_json: bool,
) -> None:
    """Write text with the model of RUN, a run directory or one of its checkpoints.

    Without a prompt, thoughts are drawn from the prior. With one, their posterior is inferred from the prompt by the
    fast loop, a draw of it is taken for each text, and the prompt is continued. A baseline has no thoughts.

    \b
    Examples:
        ltm-pyro sample runs/tiny-fables --num 3
        ltm-pyro sample runs/tiny-fables --prompt "Once upon a time" --top-p 0.9
    """
    from ltm_pyro.decoder import Sampling

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    text = _prompt(prompt, prompt_file)

    from ltm_pyro.cli.render import console, draw_samples, show_texts

    from ltm_pyro.ranks import present_ranks
    from ltm_pyro.training import load_run

    loaded = load_run(run, device=device, allow_custom_code=allow_custom_code)
    texts = draw_samples(
        loaded,
        prompt=text,
        num=num,
        max_tokens=max_tokens,
        sampling=sampling,
        fast_steps=fast_steps,
        label=label,
        seed=seed,
        ranks=present_ranks(),
    )
    if as_json:
        about = {"run": run, "step": loaded.step, "prompt": text, "seed": seed, "temperature": temperature}
        about |= {"top_k": top_k, "top_p": top_p, "label": label}
        about |= loaded.language_model.about_inference(fast_steps)
        click.echo(json.dumps(about | {"samples": texts}, ensure_ascii=False))
    else:
        show_texts(console, texts, text)


def _prompt(prompt: str | None, prompt_file: str | None) -> str:
    from ltm_pyro.data.tokenizer import well_formed
    from ltm_pyro.errors import LTMError

    if prompt is not None and prompt_file is not None:
        raise LTMError("--prompt and --prompt-file are both given: give one of them")
    if prompt_file is not None:
        try:
            prompt = Path(prompt_file).read_text(encoding="utf-8")
        except OSError as error:
            raise LTMError(f"cannot read the prompt file {prompt_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise LTMError(
                f"the prompt file {prompt_file} is not UTF-8 (byte {error.start}): save it as UTF-8"
            ) from error
    if prompt is not None and not prompt.strip():
        raise LTMError("the prompt is empty: write some text, or leave it out to draw thoughts from the prior")
    return well_formed(prompt or "")
