"""A causal language model of the transformers library, in a local folder, as a `SecondModel`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ltm_pyro.data.files import first_line, optional_import
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.generation.second_model import SecondModel, nothing_to_score
from ltm_pyro.evaluation.protocols import Protocol, Report

__all__ = ["HuggingFaceModel", "is_huggingface"]


def is_huggingface(path: str | Path) -> bool:
    """Whether a folder holds a model of the transformers library, by its config.json."""
    try:
        about = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and "model_type" in about


class HuggingFaceModel(SecondModel):
    """Scores by the exact likelihood; nothing is fetched from the hub.

    Prompt and text are encoded one by one, and the model's beginning-of-text token (else its end-of-text one) stands
    before them.

    Args:
        folder: what ``save_pretrained`` wrote, weights (safetensors) and tokenizer.
        device: where to compute.

    Raises:
        LTMError: transformers is not there, or the folder holds no sound causal model with a tokenizer.
    """

    protocol: Protocol = "likelihood"
    exact = True
    origin = "transformers"

    def __init__(self, folder: str | Path, *, device: torch.device | str = "cpu"):
        library = optional_import("transformers", f"{folder}: a model of the transformers library", "transformers")
        self.name = str(folder)
        self.device = torch.device(device)
        try:
            with _no_bars(library):
                self.tokenizer = library.AutoTokenizer.from_pretrained(self.name, local_files_only=True)
                # No pickle: weights of the old format are refused.
                self.model = library.AutoModelForCausalLM.from_pretrained(
                    self.name, local_files_only=True, use_safetensors=True
                )
        except Exception as error:  # the library raises many classes
            raise LTMError(
                f"{folder}: not a sound causal language model with its tokenizer ({first_line(error)}); "
                "give what save_pretrained wrote"
            ) from error
        self.model = self.model.to(self.device).eval()
        self.end = self.tokenizer.eos_token_id
        self.start = self.end if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        if self.end is None:
            raise LTMError(f"{folder}: the tokenizer has no end-of-text token; choose another model")
        config = self.model.config
        # The start token takes a place.
        self.max_length = int(getattr(config, "max_position_embeddings", None) or 1024) - 1

    @torch.no_grad()
    def score(  # noqa: D102
        self, texts: Sequence[str], prompts: Sequence[str], ended: Sequence[bool]
    ) -> Report:
        nats, counts = [], []
        for text, prompt, own_end in zip(texts, prompts, ended, strict=True):
            context = self._encode(prompt)
            ids = [*context, *self._encode(text), *([self.end] * own_end)][: self.max_length]
            tokens = torch.tensor([[self.start, *ids]], device=self.device)
            log_probs = self.model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
            picked = log_probs.gather(-1, tokens[0, 1:, None])[len(context) :, 0]
            nats.append(-picked.double().sum().cpu())
            counts.append(len(picked))
        if not sum(counts):
            raise nothing_to_score(self)
        return Report({self.protocol: torch.stack(nats)}, torch.tensor(counts), 1, None, 0, protocols=(self.protocol,))

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> npt.NDArray[Any]:  # noqa: D102
        rows = []
        for text in texts:
            tokens = torch.tensor([[self.start, *self._encode(text)[: self.max_length]]], device=self.device)
            hidden = self.model(input_ids=tokens, output_hidden_states=True).hidden_states[-1]
            rows.append(hidden[0, -1].float().cpu().numpy())
        return np.stack(rows)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        return ids


@contextmanager
def _no_bars(library: Any) -> Iterator[None]:
    """Inside, the library draws no progress bars."""
    logging = library.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
