"""From settings to objects: the decoder, and priors, guides and baselines by name or ``package.module:Class``."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch

from ltm_pyro.baselines import BASELINES, Baseline, TransformerShape
from ltm_pyro.config import ComponentSettings, Settings
from ltm_pyro.data.files import first_line
from ltm_pyro.decoder.transformer import ThoughtDecoder
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import GUIDES, Guide
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import PRIORS, Prior
from ltm_pyro.untrusted import refuse_what_memory_cannot_hold
from ltm_pyro.values import nearest, read_value, shown

__all__ = [
    "autocast_type",
    "build_baseline",
    "build_guide",
    "build_model",
    "check_components",
    "refuse_custom_code",
    "resolve",
]

T = TypeVar("T")


def build_model(settings: Settings, vocab_size: int) -> LatentThoughtModel:
    """Decoder and prior of a run, freshly initialised from torch's global stream.

    Raises:
        LTMError: the prior is unknown, its options are not its own, or the model has options.
    """
    _refuse_options_of_ltm(settings)
    _refuse_what_memory_cannot_hold(settings, vocab_size)
    shape = settings.decoder
    decoder = ThoughtDecoder(
        vocab_size=vocab_size,
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        thoughts_per_layer=shape.num_thoughts // shape.layers,
        thought_width=shape.thought_width,
        window=shape.window,
        max_length=settings.data.sequence_length,
        rope_base=shape.rope_base,
        thought_addresses=shape.thought_addresses,
        thought_gain=shape.thought_gain,
    )
    decoder.checkpointing = shape.checkpointing
    prior = _build("prior", settings.prior, PRIORS, Prior, decoder.thought_shape, {})  # type: ignore[type-abstract]
    return LatentThoughtModel(decoder, prior)


def build_guide(settings: Settings, model: LatentThoughtModel) -> Guide:
    """Guide of a run for its model. A guide that takes a setting of ``inference`` by name gets it.

    Raises:
        LTMError: the guide is unknown, or its options are not its own.
    """
    inference = settings.inference
    guide = resolve("guide", settings.guide.name, GUIDES, Guide)  # type: ignore[type-abstract]
    natural = guide.natural_under(inference.fast_optimizer)
    start = inference.natural_init_log_var
    starts = {
        "init_log_var": start if natural and start is not None else inference.init_log_var,
        "init_log_var_spread": inference.init_log_var_spread,
        "init_mu_spread": inference.init_mu_spread,
    }
    return _build("guide", settings.guide, GUIDES, Guide, model, starts)  # type: ignore[type-abstract]


def build_baseline(settings: Settings, vocab_size: int) -> Baseline:
    """The baseline of a run whose ``model`` is not ``ltm``, freshly initialised from torch's global stream.

    Raises:
        LTMError: it is unknown, or its options are not its own.
    """
    _refuse_what_memory_cannot_hold(settings, vocab_size)
    chosen = settings.model
    options = dict(chosen.options)
    same = options.pop("same_parameters", True)
    shape = TransformerShape.matching(
        settings.decoder,
        vocab_size,
        settings.data.sequence_length,
        same_parameters=read_value("model.same_parameters", same, bool),
    )
    given = ComponentSettings(chosen.name, options)
    model = _build("model", given, _MODELS, Baseline, shape, {"autocast": autocast_type(settings)})  # type: ignore[type-abstract]
    model.network.checkpointing = settings.decoder.checkpointing
    return model


def autocast_type(settings: Settings) -> torch.dtype | None:
    """Type of the decoder's products; None for float32."""
    return torch.bfloat16 if settings.training.dtype == "bfloat16" else None


def resolve(kind: str, name: str, known: Mapping[str, type[T]], base: type[T]) -> type[T]:
    """The class that ``name`` means: one of ``known``, or imported as ``package.module:Class``.

    Raises:
        LTMError: there is no such name, module or class, or the class is no subclass of ``base``.
    """
    if name in known:
        return known[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise LTMError(f"unknown {kind} {shown(name)}{nearest(name, known)}; your own is given as package.module:Class")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise LTMError(f"{kind} {shown(name)} is not of the form package.module:Class")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise LTMError(f"cannot import {kind} {shown(name)}: {error}; the module must be on the Python path") from error
    except AttributeError as error:
        raise LTMError(f"module {module_name!r} has no class {class_name!r} to use as {kind}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise LTMError(f"{kind} {shown(name)} is not a subclass of ltm_pyro.{base.__name__}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise LTMError(f"{kind} {shown(name)} is abstract: define its {missing}")
    return found


def refuse_custom_code(settings: Settings, source: Path, allowed: Collection[str]) -> None:
    """Nothing, where settings that were read from a run name no class outside of this library but the allowed ones.

    Raises:
        LTMError: they name another, and importing it would run its module.
    """
    for kind in ("model", "prior", "guide"):
        name = getattr(settings, kind).name
        if ":" in name and name not in allowed:
            raise LTMError(
                f"{source} names the {kind} {shown(name)}, code that would run when the run is loaded: if you know and "
                "trust it, give --allow-custom-code (in Python, allow_custom_code=True)"
            )


def check_components(settings: Settings) -> None:
    """Looks the model, or its prior and guide, up and checks the options, which takes no data and no time.

    Raises:
        LTMError: one is unknown, an option is not its own, or the prior refuses the guide.
    """
    if settings.model.name != "ltm":
        options = {name: value for name, value in settings.model.options.items() if name != "same_parameters"}
        _look_up("model", ComponentSettings(settings.model.name, options), _MODELS, Baseline)  # type: ignore[type-abstract]
        return
    _refuse_options_of_ltm(settings)
    prior, _, _ = _look_up("prior", settings.prior, PRIORS, Prior)  # type: ignore[type-abstract]
    guide, _, _ = _look_up("guide", settings.guide, GUIDES, Guide)  # type: ignore[type-abstract]
    if refusal := prior.refusal(guide):
        raise LTMError(refusal)


# The first is never looked up here, only named to whoever mistypes it.
_MODELS: dict[str, type[Baseline]] = {"ltm": Baseline, **BASELINES}  # type: ignore[type-abstract]


def _refuse_options_of_ltm(settings: Settings) -> None:
    for option in settings.model.options:
        raise LTMError(
            f"model 'ltm' has no option {shown(option)}: its parts are the sections decoder, prior and guide"
        )


def _refuse_what_memory_cannot_hold(settings: Settings, vocab_size: int) -> None:
    """Nothing, where the decoder's weights fit: they are allocated before anything else could tell."""
    shape = settings.decoder
    width = shape.thought_width or shape.hidden
    layer = 14 * shape.hidden**2 + 2 * shape.hidden * width  # attentions, SwiGLU; keys and values of the thoughts
    if shape.thought_addresses:
        layer += shape.num_thoughts // shape.layers * shape.hidden
    size = 4 * (vocab_size * shape.hidden + shape.layers * layer) + shape.layers * _MODULES_OF_A_LAYER
    refuse_what_memory_cannot_hold(size, "the model that section decoder of the settings describes")


_MODULES_OF_A_LAYER = 32 * 1024  # bytes of its Python objects, about


def _build(
    kind: str,
    chosen: ComponentSettings,
    known: Mapping[str, type[T]],
    base: type[T],
    first: Any,
    defaults: Mapping[str, Any],
) -> T:
    """``Class(first, **options)``, the defaults being for those options that the class has."""
    make, accepted, options = _look_up(kind, chosen, known, base)
    given = {name: value for name, value in defaults.items() if name in accepted} | options
    try:
        return cast(T, make(first, **given))
    except (RuntimeError, TypeError, ValueError, MemoryError, OverflowError) as error:
        if chosen.name not in known:
            raise  # the user's own class, whose traceback says where
        raise LTMError(
            f"{kind} {shown(chosen.name)} cannot be made of its options and the thoughts' shape: {first_line(error)}"
        ) from error


def _look_up(
    kind: str, chosen: ComponentSettings, known: Mapping[str, type[T]], base: type[T]
) -> tuple[Any, set[str], dict[str, Any]]:
    """The class, the options that it takes, and the chosen ones as the types that it declares."""
    cls = resolve(kind, chosen.name, known, base)
    accepted = {
        name: parameter
        for name, parameter in list(inspect.signature(cls).parameters.items())[1:]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    hints = get_type_hints(cls.__init__)
    # A model's autocast is training.dtype, and its same_parameters shapes what it is made of.
    named = {*accepted, "same_parameters"} - {"autocast"} if kind == "model" else set(accepted)
    options = {}
    for option, value in chosen.options.items():
        if option not in named & accepted.keys():
            hint = f"it takes {', '.join(sorted(named))}" if named else "it takes none"
            raise LTMError(f"{kind} {shown(chosen.name)} has no option {shown(option)}: {hint}")
        declared = hints.get(option)
        options[option] = read_value(f"{kind}.{option}", value, declared) if _is_plain(declared) else value
    for name, parameter in accepted.items():
        if parameter.default is parameter.empty and name not in options:
            raise LTMError(f"{kind} {shown(chosen.name)} needs its option {shown(name)}: give it as {kind}.{name}")
    return cls, set(accepted), options


def _is_plain(declared: Any) -> bool:
    """Whether a type is one of int, float, bool and str, or that or None."""
    union = get_origin(declared) in (Union, types.UnionType)
    kinds = set(get_args(declared)) - {types.NoneType} if union else {declared}
    return len(kinds) == 1 and kinds <= {int, float, bool, str}
