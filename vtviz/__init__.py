"""Visual Transformers (Wu et al. 2020) and their visual tokens, made visible.

Everything public is imported when it is first used, so that ``import vtviz`` costs milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vtviz.errors import CheckpointError, ConfigError, DataError, ImageError, TrainingError, VtvizError

if TYPE_CHECKING:
    from vtviz.backbones import create_model
    from vtviz.explain.ablation import ablate
    from vtviz.explain.atlas_file import load_atlas
    from vtviz.explain.attribution import attribute
    from vtviz.explain.compare import compare
    from vtviz.explain.dissection import dissect
    from vtviz.explain.faithfulness import measure_faithfulness
    from vtviz.explain.lineage import lineage
    from vtviz.explain.query import query
    from vtviz.html_report import Section, report
    from vtviz.predictor import Predictor, list_models, load_model
    from vtviz.render import overlay
    from vtviz.render_labels import label_overlay
    from vtviz.segmentation import Segmentation
    from vtviz.shortcuts import extract_tokens, segment
    from vtviz.token_grid import grid
    from vtviz.tokens import LayerMaps, TokenMaps
    from vtviz.video import write_film

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageError",
    "LayerMaps",
    "Predictor",
    "Section",
    "Segmentation",
    "TokenMaps",
    "TrainingError",
    "VtvizError",
    "ablate",
    "attribute",
    "compare",
    "create_model",
    "dissect",
    "extract_tokens",
    "grid",
    "label_overlay",
    "lineage",
    "list_models",
    "load_atlas",
    "load_model",
    "measure_faithfulness",
    "overlay",
    "query",
    "report",
    "segment",
    "write_film",
]

_HOMES = {
    "LayerMaps": "vtviz.tokens",
    "Predictor": "vtviz.predictor",
    "Section": "vtviz.html_report",
    "Segmentation": "vtviz.segmentation",
    "TokenMaps": "vtviz.tokens",
    "ablate": "vtviz.explain.ablation",
    "attribute": "vtviz.explain.attribution",
    "compare": "vtviz.explain.compare",
    "create_model": "vtviz.backbones",
    "dissect": "vtviz.explain.dissection",
    "extract_tokens": "vtviz.shortcuts",
    "grid": "vtviz.token_grid",
    "label_overlay": "vtviz.render_labels",
    "lineage": "vtviz.explain.lineage",
    "list_models": "vtviz.predictor",
    "load_atlas": "vtviz.explain.atlas_file",
    "load_model": "vtviz.predictor",
    "measure_faithfulness": "vtviz.explain.faithfulness",
    "overlay": "vtviz.render",
    "query": "vtviz.explain.query",
    "report": "vtviz.html_report",
    "segment": "vtviz.shortcuts",
    "write_film": "vtviz.video",
}
"""Public name -> the module that it lives in."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
