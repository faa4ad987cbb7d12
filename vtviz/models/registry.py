"""Every model by name: a plain dict of families, each with its named presets."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, get_type_hints

from torch import nn

from vtviz.errors import ConfigError, did_you_mean
from vtviz.models.resnet import ResNet, ResNetConfig
from vtviz.models.visual_transformer import VTStageConfig
from vtviz.models.vt_fpn import VTFPN, PanopticFPN, PanopticFPNConfig, VTFPNConfig
from vtviz.models.vt_resnet import VTResNet, VTResNetConfig


@dataclass(frozen=True)
class ModelEntry:
    """A model's class and its configurations by preset name, the default first.

    ``counts`` has the parameters and MACs of the paper's tables and is there for every model.
    """

    build: Callable[[Any], nn.Module]
    presets: Mapping[str, Any]


def _vt_resnet(depth: int, counts: VTStageConfig) -> ModelEntry:
    text = replace(counts, num_tokens=8, kqv_groups=8)
    stages = {
        "counts": counts,  # the design whose parameters and MACs are those of Tables 1 and 3
        "text": text,  # L = 8 and kqv_groups = 8 everywhere, as the text, Table 5 and Listing 3 say
        "no_transformer": replace(counts, transformer=False),  # Table 3, -TF
        "no_position_encoding": replace(counts, position_encoding=False),  # Table 3, -PE
        "no_dynamic": replace(counts, dynamic=False),  # Table 3, -DT
    }
    return ModelEntry(VTResNet, {name: VTResNetConfig(depth, stage) for name, stage in stages.items()})


def _segmenter(build: type[PanopticFPN | VTFPN], config: PanopticFPNConfig) -> ModelEntry:
    msra = replace(config, stride_in_1x1=config.depth >= 50)
    # torchvision's placement first: whoever names no preset may go on to load torchvision's weights, which fit either
    # placement by shape but compute nonsense in the other
    return ModelEntry(build, {"torchvision": config, "counts": msra})


MODELS: dict[str, ModelEntry] = {
    **{f"resnet{d}": ModelEntry(ResNet, {"counts": ResNetConfig(d)}) for d in (18, 34, 50, 101)},
    "vt_resnet18": _vt_resnet(18, VTStageConfig(blocks=2, num_tokens=16, channels=512, kqv_groups=1)),
    "vt_resnet34": _vt_resnet(34, VTStageConfig(blocks=3, num_tokens=16, channels=512)),
    "vt_resnet50": _vt_resnet(50, VTStageConfig(blocks=3, num_tokens=4, channels=1024)),
    "vt_resnet101": _vt_resnet(101, VTStageConfig(blocks=3, num_tokens=4, channels=1024)),
    **{f"panoptic_fpn_resnet{d}": _segmenter(PanopticFPN, PanopticFPNConfig(d)) for d in (18, 34, 50, 101)},
    **{f"vt_fpn_resnet{d}": _segmenter(VTFPN, VTFPNConfig(d)) for d in (18, 34, 50, 101)},
}


def find_entry(name: str) -> ModelEntry:
    """The registry's entry for ``name``. Raises ConfigError naming the nearest known model."""
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}{did_you_mean(name, MODELS)}")
    return MODELS[name]


def make_config(name: str, preset: str | None = None, **overrides: Any) -> Any:
    """The configuration of ``preset``, with fields of the model or of its VT stage overridden by name.

    Raises ConfigError for an unknown model, preset or field, or a value of another kind.
    """
    presets = find_entry(name).presets
    preset = next(iter(presets)) if preset is None else preset
    if preset not in presets:
        raise ConfigError(f"unknown preset {preset!r} of {name}{did_you_mean(preset, presets)}")
    config = presets[preset]
    own = {f.name for f in fields(config)}
    stage: VTStageConfig | None = getattr(config, "stage", None)
    stage_fields = {f.name for f in fields(stage)} if stage is not None else set()
    for key in overrides:
        if key not in own | stage_fields:
            raise ConfigError(f"{name} has no option {key!r}{did_you_mean(key, own | stage_fields)}")
    kinds = get_type_hints(type(config)) | (get_type_hints(type(stage)) if stage is not None else {})
    overrides = {key: _of_kind(name, key, kinds[key], value) for key, value in overrides.items()}
    if stage is not None:
        inner = {k: v for k, v in overrides.items() if k in stage_fields}
        config = replace(config, stage=replace(stage, **inner))
    return replace(config, **{k: v for k, v in overrides.items() if k in own})


def build_model(name: str, preset: str | None = None, **overrides: Any) -> nn.Module:
    """A freshly initialised model, e.g. ``build_model("vt_resnet18", num_classes=109, num_tokens=8)``.

    Args:
        name: a key of :data:`MODELS`.
        preset: a named configuration of that model; by default ``counts`` for a classifier and ``torchvision`` for a
            segmentation model, which are the ones that torchvision's backbone weights fit.
        **overrides: configuration fields by name.

    Raises:
        ConfigError: for an unknown name or field, or a value that cannot work.
    """
    return find_entry(name).build(make_config(name, preset, **overrides))


def plain_model(model: nn.Module) -> Any:
    """The model itself, where ``torch.compile`` has wrapped it."""
    return getattr(model, "_orig_mod", model)


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON data, nested like the dataclass."""
    return asdict(config)


def model_from_config(name: str, data: Mapping[str, Any]) -> nn.Module:
    """Rebuild a model from :func:`config_to_dict`'s data (a model card's ``config``).

    Raises:
        ConfigError: where a field is unknown, missing or of the wrong kind.
    """
    entry = find_entry(name)
    return entry.build(_from_dict(type(entry.presets["counts"]), data, name))


def _of_kind(name: str, key: str, expected: type, value: Any) -> Any:
    """An option's value, NumPy's whole numbers as Python's, which JSON takes; ConfigError for one of another kind."""
    if expected is int and not isinstance(value, bool) and hasattr(value, "__index__"):
        return operator.index(value)
    if type(value) is not expected and not (expected is float and type(value) is int):
        raise ConfigError(f"{name}: option {key!r} must be of type {expected.__name__}, got {value!r}")
    return value


def _from_dict(kind: type, data: Mapping[str, Any], name: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{name}: configuration must be an object, got {type(data).__name__}")
    known = {f.name: f for f in fields(kind)}
    if unknown := set(data) - set(known):
        key = min(unknown)
        raise ConfigError(f"{name} has no option {key!r}{did_you_mean(key, known)}")
    values: dict[str, Any] = {}
    kinds = get_type_hints(kind)
    for key, value in data.items():
        expected = kinds[key]
        if isinstance(expected, type) and is_dataclass(expected):
            values[key] = _from_dict(expected, value, name)
        else:
            values[key] = _of_kind(name, key, expected, value)
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{name}: configuration incomplete: {error}") from None
