"""Settings of a run: frozen, validated at construction, addressed as ``section.key``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import MEBI, read_bytes
from ltm_pyro.values import above, at_least, at_most, nearest, plain, read_value, shown, within

__all__ = [
    "ComponentSettings",
    "DataSettings",
    "DecoderSettings",
    "InferenceSettings",
    "Settings",
    "TrainingSettings",
]


_MOST = 1 << 20  # of any number that memory or time is in proportion to


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the text comes from and how it becomes sequences (`ltm_pyro.data.build_data`).

    Args:
        source: ``fables``, a local file or folder, or ``hf:name[/config][:column]``.
        validation: source of the validation text; None holds documents of ``source`` out.
        column: field that holds the text in .jsonl and .parquet, or a template of several; None is ``text``.
        text_unit: what one document of a .txt file is.
        layout: ``documents`` (one each, padded), ``packed`` chunks, or ``auto``: documents for fables and where there
            are labels, else packed.
        sequence_length: N, tokens of the longest sequence.
        tokenizer: ``train`` a byte-level BPE on the corpus, or a path or hub name of one.
        vocab_size: V of a tokenizer that is trained.
        documents: how many documents to use; None is all (for fables, the default number).
        validation_fraction: share of documents held out.
        streaming: train while the text is read and tokenised, from local files or the hub.
        cache_dir: folder of token shards; None is the user's cache.
        label_column: field that holds a document's class, for fables a plan variable; None reads no labels.
        labelled_fraction: share of the training documents that keep their label.
        workers: processes that tokenise; None is one for each core, of a stream one for every four; 0 is none.
        window_chunks: of a stream, chunks of 4 million characters that are shuffled together.
        spool_chunks: of a stream, remove chunks that were used, to save space.
        prefetch: batches made ahead of training.
        max_document_mb: megabytes of the longest line of .jsonl.
    """

    source: str = "fables"
    validation: str | None = None
    column: str | None = None
    text_unit: Literal["auto", "file", "line", "block"] = "auto"
    layout: Literal["auto", "packed", "documents"] = "auto"
    sequence_length: int = 1024
    tokenizer: str = "train"
    vocab_size: int = 2048
    documents: int | None = None
    validation_fraction: float = 0.05
    streaming: bool = False
    cache_dir: str | None = None
    label_column: str | None = None
    labelled_fraction: float = 1.0
    workers: int | None = None
    window_chunks: int = 16
    spool_chunks: bool = False
    prefetch: int = 2
    max_document_mb: int = 256

    def __post_init__(self) -> None:
        at_least("data.sequence_length", self.sequence_length, 2)
        at_least("data.vocab_size", self.vocab_size, 257)
        at_most("data.sequence_length", self.sequence_length, 1 << 24)
        at_most("data.vocab_size", self.vocab_size, 1 << 20)
        if self.documents is not None:
            at_least("data.documents", self.documents, 1)
        if self.workers is not None:
            at_least("data.workers", self.workers, 0)
        at_least("data.window_chunks", self.window_chunks, 1)
        at_least("data.prefetch", self.prefetch, 0)
        at_least("data.max_document_mb", self.max_document_mb, 1)
        within("data.validation_fraction", self.validation_fraction, 0, 1)
        within("data.labelled_fraction", self.labelled_fraction, 0, 1)


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """Shape of the Transformer (`ltm_pyro.decoder.ThoughtDecoder`).

    Args:
        layers: L.
        hidden: H.
        heads: attention heads; H must be a multiple of 2 · heads.
        num_thoughts: N_z, a multiple of L.
        thought_width: width of a thought vector; None is H.
        window: tokens that self-attention sees.
        rope_base: θ of RoPE.
        thought_addresses: add a learned vector to the key of every thought, in place of rotary positions.
        thought_gain: standard deviation of what one thought z ~ N(0, I) adds to the residual stream at first; 0 starts
            as the autoregressive decoder does, None draws these maps as all others.
        compile: run the decoder through torch.compile, once for every length in multiples of 64 tokens.
        checkpointing: keep each block's inputs alone for the backward pass and run the block again there.
    """

    layers: int = 3
    hidden: int = 512
    heads: int = 8
    num_thoughts: int = 24
    thought_width: int | None = None
    window: int = 256
    rope_base: float = 10_000.0
    thought_addresses: bool = False
    thought_gain: float | None = None
    compile: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "num_thoughts", "window"):
            at_least(f"decoder.{name}", getattr(self, name), 1)
            at_most(f"decoder.{name}", getattr(self, name), _MOST)
        if self.thought_width is not None:
            within("decoder.thought_width", self.thought_width, 1, _MOST)
        if self.hidden % (2 * self.heads):
            raise LTMError(
                f"decoder.hidden = {self.hidden} is no multiple of 2 * decoder.heads = {2 * self.heads}: "
                "rotary positions turn pairs of each head's entries, so choose one that is"
            )
        if self.num_thoughts % self.layers:
            raise LTMError(
                f"decoder.num_thoughts = {self.num_thoughts} does not divide over decoder.layers = {self.layers}: "
                "choose a multiple of the layers"
            )
        above("decoder.rope_base", self.rope_base, 1)
        if self.thought_gain is not None:
            within("decoder.thought_gain", self.thought_gain, 0, 100)


@dataclass(frozen=True)
class ComponentSettings:
    """A model, prior or guide: its name or ``package.module:Class``, and the options that its class takes."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """The fast loop (`ltm_pyro.infer.FastConfig`) and where local parameters start.

    Args:
        fast_steps: T_fast.
        fast_lr: η_fast of Adam at the first slow step; natural steps have rates of their own.
        fast_lr_final: η_fast at the last one; linear between.
        fast_lr_decay: the cosine inside one loop ends at η_fast times this.
        fast_optimizer: ``adam``, or ``natural`` gradients where the guide is local-normal.
        natural_lr: ρ of the first natural fast step, a share of the way.
        natural_delay: τ of the rates natural_lr / (1 + (t - 1) / τ) of natural fast steps.
        fast_beta1: first moment decay of the fast loop's Adam.
        fast_beta2: second moment decay of the fast loop's Adam.
        noise: ``fresh`` or ``fixed`` ε.
        slow_gradient: ``final`` or ``trajectory``.
        natural_init_log_var: where log σ² starts under natural steps; None is `init_log_var`.
        init_log_var: where log σ² starts.
        init_log_var_spread: standard deviation of the starts of log σ².
        init_mu_spread: standard deviation of the starts of μ.
        tolerance: early stop of a sequence's fast loop, in nats per token; None takes every step.
        kl_warmup_steps: slow steps over which the KL's weight in training rises linearly to 1; below 1, a share of
            ``training.steps``.
        kl_weight_start: what that weight rises from; without a warm-up it is 1 at once.
        kl_hold_steps: slow steps at that weight before it rises, or a share of them, too.
        free_bits: nats of each sequence's KL that training does not charge for.
        warm_start: start a sequence's fast loop where its last one ended, from the second epoch on.
        cuda_graph: capture a fast step as a CUDA graph and replay it.
        token_fraction: share of each sequence's scored tokens that a fast step scores, drawn anew at every step.
        full_final_steps: last fast steps that score all tokens all the same.
    """

    fast_steps: int = 16
    fast_lr: float = 0.3
    fast_lr_final: float = 0.34
    fast_lr_decay: float = 0.1
    fast_optimizer: Literal["adam", "natural"] = "adam"
    natural_lr: float = 0.9
    natural_delay: float = 4.0
    natural_init_log_var: float | None = None
    fast_beta1: float = 0.9
    fast_beta2: float = 0.999
    noise: Literal["fresh", "fixed"] = "fresh"
    slow_gradient: Literal["final", "trajectory"] = "final"
    init_log_var: float = -5.0
    init_log_var_spread: float = 0.1
    init_mu_spread: float = 0.0
    tolerance: float | None = None
    kl_warmup_steps: float = 0.0
    kl_weight_start: float = 0.0
    kl_hold_steps: float = 0.0
    free_bits: float = 0.0
    warm_start: bool = False
    cuda_graph: bool = False
    token_fraction: float = 1.0
    full_final_steps: int = 1

    def __post_init__(self) -> None:
        at_least("inference.fast_steps", self.fast_steps, 0)
        at_most("inference.fast_steps", self.fast_steps, _MOST)
        above("inference.token_fraction", self.token_fraction, 0)
        within("inference.token_fraction", self.token_fraction, 0, 1)
        at_least("inference.full_final_steps", self.full_final_steps, 0)
        above("inference.fast_lr", self.fast_lr, 0)
        above("inference.fast_lr_final", self.fast_lr_final, 0)
        within("inference.fast_lr_decay", self.fast_lr_decay, 0, 1)
        above("inference.natural_lr", self.natural_lr, 0)
        at_most("inference.natural_lr", self.natural_lr, 1)
        above("inference.natural_delay", self.natural_delay, 0)
        for name in ("init_log_var_spread", "init_mu_spread", "kl_warmup_steps", "kl_hold_steps", "free_bits"):
            at_least(f"inference.{name}", getattr(self, name), 0)
        within("inference.kl_weight_start", self.kl_weight_start, 0, 1)
        for name in ("kl_warmup_steps", "kl_hold_steps"):
            if (value := getattr(self, name)) > 1 and not float(value).is_integer():
                raise LTMError(f"inference.{name} must be a whole number of steps, or a share below 1, got {value}")
        if self.kl_hold_steps and not self.kl_warmup_steps:
            raise LTMError(
                f"inference.kl_hold_steps = {self.kl_hold_steps} holds the KL's weight before a warm-up that there is "
                "none of: set inference.kl_warmup_steps, or inference.kl_hold_steps = 0"
            )
        if self.kl_hold_steps < 1 and self.kl_warmup_steps < 1 and self.kl_hold_steps + self.kl_warmup_steps > 1:
            raise LTMError(
                f"inference.kl_hold_steps = {self.kl_hold_steps} and kl_warmup_steps = {self.kl_warmup_steps} are more "
                "than the whole training together: lower one"
            )
        for name in ("fast_beta1", "fast_beta2"):
            _decay(f"inference.{name}", getattr(self, name))
        if self.tolerance is not None:
            above("inference.tolerance", self.tolerance, 0)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The slow steps and what happens around them.

    Args:
        steps: slow steps.
        batch_size: sequences per slow step.
        micro_batch_size: sequences inferred at once (gradient accumulation); None is all.
        slow_lr: η_slow after warm-up.
        slow_lr_final: η_slow at the last step, reached by a cosine.
        warmup_steps: linear warm-up.
        weight_decay: AdamW's, on matrices only.
        beta1: AdamW's first moment decay.
        beta2: AdamW's second moment decay.
        clip_norm: the gradient's norm is clipped to this; None leaves it.
        init_from: run or checkpoint whose weights the model starts from; None draws them.
        seed: of weights, data order and noise.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:K``.
        dtype: ``float32``, or ``bfloat16`` for the decoder's products (autocast).
        log_every: steps between rows of metrics.
        eval_every: steps between validations; the first is before the first step.
        eval_sequences: validation sequences scored each time.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints kept.
        max_skipped_steps: consecutive steps that may be left out because the loss or its gradient is not finite.
        grace_seconds: how long after SIGTERM or SIGUSR1 the present step may still take; None waits for it.
        shard: of several ranks, each holds a part of the network's weights, gradients and moments.
        tensorboard: write TensorBoard events, too (needs the extra ``tensorboard``).
        wandb: project, or ``entity/project``, of Weights & Biases to send the metrics to as well (needs the extra
            ``wandb``); None sends nothing.
    """

    steps: int = 1000
    batch_size: int = 8
    micro_batch_size: int | None = None
    slow_lr: float = 4e-4
    slow_lr_final: float = 4e-5
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float | None = 1.0
    init_from: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 1
    eval_every: int = 100
    eval_sequences: int = 64
    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    max_skipped_steps: int = 5
    grace_seconds: float | None = 15.0
    shard: bool = False
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "log_every",
            "eval_every",
            "eval_sequences",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            at_least(f"training.{name}", getattr(self, name), 1)
        at_most("training.batch_size", self.batch_size, _MOST)
        if self.micro_batch_size is not None:
            at_least("training.micro_batch_size", self.micro_batch_size, 1)
        above("training.slow_lr", self.slow_lr, 0)
        for name in ("slow_lr_final", "warmup_steps", "weight_decay", "max_skipped_steps"):
            at_least(f"training.{name}", getattr(self, name), 0)
        if self.grace_seconds is not None:
            at_least("training.grace_seconds", self.grace_seconds, 0)
        within("training.seed", self.seed, 0, 2**31 - 1)
        for name in ("beta1", "beta2"):
            _decay(f"training.{name}", getattr(self, name))
        if self.clip_norm is not None:
            above("training.clip_norm", self.clip_norm, 0)
        if self.wandb is not None and not (self.wandb.count("/") < 2 and all(self.wandb.split("/"))):
            raise LTMError(f"training.wandb must be project or entity/project, got {self.wandb!r}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run. `ltm_pyro.presets` holds the named ones.

    Args:
        model: ``ltm``, or a baseline: ``ar``, ``mdlm``, ``package.module:Class``.
        data: corpus, tokenizer, sequences.
        decoder: shape of the Transformer.
        prior: p(z).
        guide: q(z | x).
        inference: the fast loop.
        training: the slow steps.
    """

    model: ComponentSettings = field(default_factory=lambda: ComponentSettings("ltm"))
    data: DataSettings = field(default_factory=DataSettings)
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    prior: ComponentSettings = field(default_factory=lambda: ComponentSettings("gaussian"))
    guide: ComponentSettings = field(default_factory=lambda: ComponentSettings("local-normal"))
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def updated(self, values: Mapping[str, Any]) -> Settings:
        """A copy with some values replaced.

        Args:
            values: ``{"section.key": value}``; strings are read as the setting's type, ``none`` as None.

        Raises:
            LTMError: an unknown section or key, or a value of the wrong type or range.
        """
        sections: dict[str, dict[str, Any]] = {}
        for address, value in values.items():
            section, dot, key = address.partition(".")
            if not dot or not key:
                raise LTMError(f"setting {shown(address)} is not of the form section.key, for example training.slow_lr")
            if section not in _SECTIONS:
                raise LTMError(
                    f"unknown section {shown(section)} in setting {shown(address)}{nearest(section, _SECTIONS)}"
                )
            sections.setdefault(section, {})[key] = value
        changes = {name: _update_section(name, getattr(self, name), new) for name, new in sections.items()}
        return replace(self, **changes)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section and key, as in config.json and ``--config`` files."""
        result = {}
        for name in _SECTIONS:
            section = getattr(self, name)
            if isinstance(section, ComponentSettings):
                result[name] = {"name": section.name, **section.options}
            else:
                result[name] = asdict(section)
        return result

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any], base: Settings | None = None) -> Settings:
        """Settings from nested plain values; what is not named stays as in ``base`` (default: the defaults).

        Raises:
            LTMError: a section is no table, or as for `updated`.
        """
        flat: dict[str, Any] = {}
        for section, content in sections.items():
            if not isinstance(content, Mapping):
                raise LTMError(
                    f"section {shown(section)} of the settings must be a table of keys, got {shown(content)}"
                )
            flat |= {f"{section}.{key}": value for key, value in content.items()}
        return (base or cls()).updated({address: value for address, value in flat.items() if address not in _RETIRED})

    @classmethod
    def from_toml(cls, path: str | Path, base: Settings | None = None) -> Settings:
        """Settings from a TOML file with one table per section.

        Raises:
            LTMError: the file is missing or not TOML, or as for `from_dict`.
        """
        return cls.from_dict(read_toml(path), base)


_SECTIONS = tuple(f.name for f in fields(Settings))
_RETIRED = {"decoder.zero_cross_attention"}
"""Settings that runs may still name: they shaped the start of a training, and its weights are in the checkpoints."""


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        LTMError: the file is missing, unreadable or not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        tables = tomllib.loads(read_bytes(Path(path), most=MEBI).decode("utf-8"))
        json.dumps(tables, default=str)  # as config.json will be: no number of more digits than Python writes
        return tables
    except OSError as error:
        raise LTMError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of its dates and numbers
        raise LTMError(f"the settings file {path} is not valid TOML: {error}") from error


def _decay(name: str, value: float) -> None:
    """Nothing, where a moment can decay by the value.

    Raises:
        LTMError: it is below 0, or not below 1.
    """
    at_least(name, value, 0)
    if not value < 1:
        raise LTMError(f"{name} must be below 1, got {value}")


def _update_section(name: str, section: Any, new: Mapping[str, Any]) -> Any:
    if isinstance(section, ComponentSettings):
        # Options belong to one class, so another name starts without the old one's.
        chosen = str(new.get("name", section.name))
        kept = section.options if chosen == section.name else {}
        return ComponentSettings(chosen, {**kept, **{k: plain(v) for k, v in new.items() if k != "name"}})
    hints = get_type_hints(type(section))
    changes = {}
    for key, value in new.items():
        if key not in hints:
            raise LTMError(f"unknown setting {name}.{key[:200]}{nearest(key, hints)}")
        changes[key] = read_value(f"{name}.{key}", value, hints[key])
    return replace(section, **changes)
