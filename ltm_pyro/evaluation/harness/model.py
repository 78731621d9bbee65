"""HarnessModel: a trained run as the model ``ltm-pyro`` of EleutherAI's lm-evaluation-harness, which must be installed.

Importing this module makes the model known to the harness.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.harness.options import cut, read_generation
from ltm_pyro.evaluation.texts import pieces_of_texts, scored_ends
from ltm_pyro.training.run import load_run
from ltm_pyro.values import at_least, nearest, read_value, within

try:
    import lm_eval.models  # noqa: F401 - the harness registers its own models only while there are no others
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    raise LTMError("the model of lm-evaluation-harness needs it: pip install 'ltm-pyro[lm-eval]'") from error

__all__ = ["HarnessModel", "command_line", "documents"]

_BATCH_SIZE = 8  # that of `ltm-pyro eval`


def documents(dataset: Any) -> Any:
    """The rows whose ``text`` is not blank, which is what `ltm-pyro eval` reads: ``process_docs`` of a task.

    A task file that names it (``!function ltm_pyro.evaluation.harness.documents``) makes the model known, too.

    Raises:
        LTMError: the rows have no ``text``.
    """
    if "text" not in dataset.column_names:
        found = ", ".join(dataset.column_names)
        raise LTMError(f"the task's data have no field 'text', only {found}: rename theirs, or leave process_docs out")
    return dataset.filter(lambda row: bool(row["text"].strip()))


def command_line(arguments: Sequence[str]) -> None:
    """Runs the harness's command ``lm_eval`` in this process, where the model is known.

    Raises:
        SystemExit: the harness ends it so.
    """
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


@register_model("ltm-pyro")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness carries no types
    r"""A run's `LanguageModel` behind the harness's three questions.

    - ``loglikelihood``: log p(continuation | context) by `LanguageModel.predict`: a model with thoughts infers them
      from the context alone, and draws the prior's where that is empty. Tokens are split as the harness splits them.
    - ``loglikelihood_rolling``: minus the nats of the text by the model's `comparable` protocol, the number that
      `ltm-pyro eval` reports of it; a lower bound where the model has no probability.
    - ``generate_until``: `LanguageModel.generate`, cut at the first stop string or end-of-text token.

    A context loses its first tokens where it does not fit into the model's ``max_length`` together with its
    continuation or, down to half of that length, with the ``max_gen_toks`` asked for; what is left is a piece of a
    document that starts after the last token cut off. Results do not depend on the batch size, up to rounding.

    Args:
        pretrained: a run directory, or a checkpoint inside it.
        samples: S, draws per prediction.
        fast_steps: T_fast of every inference; None takes the run's.
        block_size: tokens between two inferences of ``prequential``.
        seed: of every draw.
        end_of_text: whether the rolling log-likelihood has the document's end-of-text token in it. The harness's other
            models leave it out; `ltm-pyro eval` scores it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:K``. ``cuda:0``, which the harness asks for where nobody did, is
            ``auto`` on a machine without CUDA.
        batch_size: sequences at once; ``auto`` is 8, or ``max_batch_size`` where that is given.
        max_batch_size: see ``batch_size``.
        allow_custom_code: import the classes that the run names as ``package.module:Class``.

    Raises:
        LTMError: there is no such run or argument, or a number is out of range.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        samples: int = 8,
        fast_steps: int | None = None,
        block_size: int = 32,
        seed: int = 0,
        end_of_text: bool = False,
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        allow_custom_code: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        for name in unknown:
            known = list(inspect.signature(HarnessModel).parameters)[:-1]
            raise LTMError(f"the model ltm-pyro has no argument {name!r}{nearest(name, known)}")
        if pretrained is None:
            raise LTMError("the model ltm-pyro needs a run: --model_args pretrained=RUN")
        self.samples = read_value("samples", samples, int)
        self.fast_steps = read_value("fast_steps", fast_steps, int | None)
        self.block_size = read_value("block_size", block_size, int)
        self.seed = read_value("seed", seed, int)
        self.end_of_text = read_value("end_of_text", end_of_text, bool)
        automatic = str(batch_size).startswith("auto")
        self.batch_size: int = max_batch_size or _BATCH_SIZE if automatic else read_value("batch_size", batch_size, int)
        for name in ("samples", "block_size", "batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("fast_steps", self.fast_steps or 0, 0)
        within("seed", self.seed, 0, 2**32 - 1)
        self.pretrained = str(pretrained)
        asked = "auto" if device == "cuda:0" and not torch.cuda.is_available() else device
        allowed = read_value("allow_custom_code", allow_custom_code, bool)
        self._run = load_run(self.pretrained, device=asked, allow_custom_code=allowed)
        self._model = self._run.language_model
        self._device = self._run.device

    @property
    def eot_token_id(self) -> int:
        """The id that ends every document and stands before its first token."""
        return self._run.tokenizer.end_of_text

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model was trained on."""
        return self._model.max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The ids of a text; there are no special tokens to add."""
        return self._run.tokenizer.encode(string)

    def tok_decode(self, tokens: Sequence[int]) -> str:
        """The text of some ids."""
        return self._run.tokenizer.decode(tokens)

    def get_model_info(self) -> dict[str, Any]:
        """What the numbers are: goes into the harness's results."""
        return {
            "ltm_pyro": {
                "run": self.pretrained,
                "step": self._run.step,
                "kind": self._model.kind,
                "rolling": self._model.comparable,
                "exact": self._model.exact,
                "samples": self.samples,
                "fast_steps": self.fast_steps,
                "block_size": self.block_size,
                "seed": self.seed,
                "end_of_text": self.end_of_text,
            }
        }

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness does it; a continuation of which that leaves nothing is encoded by itself.

        That happens where the tokenizer joins all of it with the context's last token.
        """
        told, asked = super()._encode_pair(context, continuation)
        return told, asked or self.tok_encode(continuation)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **options: Any,
    ) -> list[tuple[float, bool]]:
        """(log p(continuation | context), whether it is the greedy one) of each request."""
        # Of an empty context the harness makes the end-of-text token, which every sequence here starts after anyway.
        rows = [(told if pair[0] else [], asked) for pair, told, asked in requests]
        for (context, _), (_, asked) in zip((r[0] for r in requests), rows, strict=True):
            if len(asked) > self.max_length:
                raise LTMError(
                    f"the continuation of {context[-40:]!r} has {len(asked)} tokens but the model was trained on at "
                    f"most {self.max_length}: leave the task out, or make it one of loglikelihood_rolling"
                )
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        longest_first = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
        for chosen in self._batches(longest_first, "Predicting", disable_tqdm):
            found = self._model.predict(
                self._conditioned([rows[i] for i in chosen]),
                samples=self.samples,
                fast_steps=self.fast_steps,
                seed=self.seed,
            )
            for i, log_prob, greedy in zip(chosen, found.log_prob.tolist(), found.greedy.tolist(), strict=True):
                answers[i] = (log_prob, greedy)
                self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
        return answers

    def _conditioned(self, rows: Sequence[tuple[list[int], list[int]]]) -> TokenBatch:
        """Sequences of context and continuation, of which the continuation is scored."""
        kept = [self._fit([*told, *asked], self.max_length) for told, asked in rows]
        return scored_ends(
            [tokens for _, tokens in kept], [start for start, _ in kept], [len(asked) for _, asked in rows]
        )

    def _fit(self, tokens: list[int], length: int) -> tuple[int, list[int]]:
        """The last ``length`` tokens, and the token before them."""
        lost = max(len(tokens) - length, 0)
        return tokens[lost - 1] if lost else self.eot_token_id, tokens[lost:]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, from its first token to its last; 0 for a text without tokens."""
        texts = [request.args[0] for request in requests]
        if not texts:
            return []
        data, pieces = pieces_of_texts(texts, self._run.tokenizer, self.max_length, end_of_text=self.end_of_text)
        nats = dict.fromkeys((i for own in pieces for i in own), 0.0)
        for chosen in self._batches(list(nats), "Scoring", disable_tqdm):
            report = self._model.evaluate(
                data,
                chosen,
                protocols=[self._model.comparable],
                samples=self.samples,
                block_size=self.block_size,
                fast_steps=self.fast_steps,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            nats.update(zip(chosen, report.values[self._model.comparable].tolist(), strict=True))
        answers = [0.0 - sum(nats[i] for i in own) for own in pieces]
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation; equal requests, which the harness makes to have several, get texts of their own.

        Raises:
            LTMError: a request has an argument that there is none of.
        """
        alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            context, options = request.args
            alike[context, repr(sorted(options.items()))].append(i)
        together: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
        for (_, options), same in alike.items():
            together[options, len(same)].append(same)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="Writing", disable=disable_tqdm) as bar:
            for groups in together.values():
                contexts, options = [requests[same[0]].args[0] for same in groups], requests[groups[0][0]].args[1]
                found = self._write(contexts, options, len(groups[0]))
                for same, context, texts in zip(groups, contexts, found, strict=True):
                    for i, text in zip(same, texts, strict=True):
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", (context, options), text)
                bar.update(sum(map(len, groups)))
        return answers

    def _write(self, contexts: Sequence[str], options: dict[str, Any], num: int) -> list[list[str]]:
        """``num`` continuations of each of some different contexts; of those that are cut to the same, the same."""
        until, max_tokens, sampling = read_generation(options)
        room = max(self.max_length - max_tokens, self.max_length // 2)
        kept = [self._fit(self.tok_encode(context), room) for context in contexts]
        different = list({(start, *prompt): (start, prompt) for start, prompt in kept}.values())
        drawn = self._model.generate_batch(
            [prompt for _, prompt in different],
            start=[start for start, _ in different],
            num=num,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=self.eot_token_id,
            ended=(lambda tokens: cut(text := self.tok_decode(tokens), until) != text) if until else None,
            fast_steps=self.fast_steps,
            seed=self.seed,
        )
        texts = {
            (start, *prompt): [cut(self.tok_decode(tokens), until) for tokens in own]
            for (start, prompt), own in zip(different, drawn, strict=True)
        }
        return [texts[(start, *prompt)] for start, prompt in kept]

    def _batches(self, indices: Sequence[int], what: str, disable_tqdm: bool) -> Iterator[Sequence[int]]:
        """The indices, ``batch_size`` at a time, under a bar that counts them."""
        with tqdm(total=len(indices), desc=what, disable=disable_tqdm) as bar:
            for first in range(0, len(indices), self.batch_size):
                chosen = indices[first : first + self.batch_size]
                yield chosen
                bar.update(len(chosen))
