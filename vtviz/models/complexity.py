"""Parameters and MACs by the paper's convention, and its complexity figures beside ours (Tables 1-4, Sec. 3.2).

Parameters are the weights of convolutions and linear layers: no bias, no norm. MACs are those of convolutions, linear
layers and matrix products (so attention's products count) plus one per input element of a 2-D adaptive average pool.
This is the one convention under which the paper's baselines come out to the printed digit.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vtviz.errors import ConfigError
from vtviz.models.registry import build_model
from vtviz.models.resnet import ResNet
from vtviz.models.visual_transformer import Transformer
from vtviz.models.vt_fpn import Segmenter

IMAGE_SIZE = (224, 224)
"""(H, W) at which the paper counts its classifiers."""
STAGE_4_SIZE = (14, 14)
"""(H, W) of stage 4's output at that size: what the last stage gets."""


@dataclass(frozen=True)
class Complexity:
    """What a module costs: ``params`` (weights) and ``macs`` (multiply-accumulates for one input), plain counts."""

    params: int
    macs: int


def count_parameters(module: nn.Module) -> int:
    """Weights of the convolutions and linear layers in ``module``."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear))


def count_complexity(module: nn.Module, input_shape: tuple[int, ...] = (3, *IMAGE_SIZE)) -> Complexity:
    """Parameters and MACs of one forward pass, counted on a meta-device copy in eval mode: nothing is computed.

    Args:
        module: a model or a part of one, whose forward takes one tensor. It is left as it is.
        input_shape: shape of that tensor without the batch dimension; an image is (3, H, W).
    """
    twin = deepcopy(module).to("meta").eval()
    return Complexity(count_parameters(twin), _count_macs(twin, torch.empty(1, *input_shape, device="meta")))


def _count_macs(module: nn.Module, inputs: Any) -> int:
    """MACs of one forward pass of a module on the meta device, in eval mode, which is used up by it."""
    pooled = 0

    def count_pool(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal pooled
        pooled += inputs[0].numel()

    for part in module.modules():
        if isinstance(part, nn.AdaptiveAvgPool2d):
            part.register_forward_pre_hook(count_pool)
    with FlopCounterMode(display=False) as counter:
        module(inputs)
    return counter.get_total_flops() // 2 + pooled


@dataclass(frozen=True)
class ProfileRow:
    """One figure of the paper beside ours.

    Attributes:
        table: the paper's table, or ``"Sec. 3.2"``.
        row: the row as the paper names it.
        params_paper: parameters in millions as printed; None where the paper gives none.
        params: ours, in millions.
        macs_paper: MACs in G as printed.
        macs: ours, in G.
        note: what to know when comparing; where the paper contradicts itself, how.
        ratio_paper: for a row that is a reduction (baseline / ours), the factor as printed.
        ratio: ours.
        input: height x width of the image, where it is not 224 x 224.
        neck_macs_paper: of a segmentation model, MACs of the neck alone in G as printed.
        neck_macs: ours, in G.
    """

    table: int | str
    row: str
    params_paper: float | None
    params: float | None
    macs_paper: float | None
    macs: float | None
    note: str = ""
    ratio_paper: float | None = None
    ratio: float | None = None
    input: str | None = None
    neck_macs_paper: float | None = None
    neck_macs: float | None = None


# row, model, preset, parameters (M) and MACs (G) as printed, note
_Printed = tuple[str, str, str, float, float, str]

_TABLE_1: tuple[_Printed, ...] = (
    ("R-18", "resnet18", "counts", 11.67, 1.814, ""),
    (
        "VT-R-18",
        "vt_resnet18",
        "counts",
        12.76,
        1.587,
        "Sec. 5.1's 'up to 4.84 points' is LR-R-18's gain in this table; VT-R-18 gains 4.53, as the abstract says",
    ),
    ("R-34", "resnet34", "counts", 21.78, 3.664, ""),
    ("VT-R-34", "vt_resnet34", "text", 18.02, 3.151, "matches with L = 8; Table 3 prints 3.217 G, which is L = 16"),
    ("R-50", "resnet50", "counts", 25.5, 4.089, ""),
    ("VT-R-50", "vt_resnet50", "counts", 21.4, 3.412, "matches with L = 4; the text says 8, which costs 3.456 G"),
    ("R-101", "resnet101", "counts", 44.44, 7.802, ""),
    ("VT-R-101", "vt_resnet101", "counts", 40.33, 7.127, "matches with L = 4; the text says 8, which costs 7.168 G"),
)
_TABLE_3: tuple[_Printed, ...] = (
    ("VT-R-18", "vt_resnet18", "counts", 12.76, 1.587, "matches with L = 16; the text says 8"),
    ("VT-R-18 -TF", "vt_resnet18", "no_transformer", 8.57, 1.519, ""),
    ("VT-R-18 -PE", "vt_resnet18", "no_position_encoding", 12.69, 1.586, ""),
    ("VT-R-18 -DT", "vt_resnet18", "no_dynamic", 12.22, 1.608, ""),
    ("VT-R-34", "vt_resnet34", "counts", 18.02, 3.217, "matches with L = 16; Table 1 prints 3.151 G, which is L = 8"),
    ("VT-R-34 -TF", "vt_resnet34", "no_transformer", 17.24, 3.204, ""),
    ("VT-R-34 -PE", "vt_resnet34", "no_position_encoding", 17.90, 3.216, ""),
    ("VT-R-34 -DT", "vt_resnet34", "no_dynamic", 16.92, 3.246, ""),
)

# depth, preset: MACs total, MACs stage 5, parameters total, parameters stage 5, as printed
_TABLE_2: dict[tuple[int, str], tuple[float, float, float, float]] = {
    (18, "counts"): (1.14, 2.4, 0.91, 0.9),
    (34, "text"): (1.16, 5.0, 1.21, 1.5),
    (50, "counts"): (1.20, 6.1, 1.19, 1.26),
    (101, "counts"): (1.09, 6.9, 1.19, 1.26),
}
_TABLE_2_NOTES = {
    "R-18 MACs stage 5": "contradicts Table 1, whose 227 M saved of stage 5's 411 M are 2.23x",
    "R-101 MACs stage 5": "contradicts Table 1, whose 675 M saved of stage 5's 809 M are 6.04x; Sec. 5.1 repeats 6.9x",
    "R-101 params total": "contradicts Table 1, whose 44.44 M / 40.33 M is 1.10x; 1.19x is R-50's",
}

# set, (H, W), classes; family: MACs of its neck, and of the whole on R-50 and R-101, G, as printed
_TABLE_4: tuple[tuple[str, tuple[int, int], int, dict[str, tuple[float, float, float]]], ...] = (
    ("COCO-Stuff", (800, 1216), 54, {"FPN": (55.1, 159, 231), "VT-FPN": (8.5, 113, 185)}),
    ("LIP", (473, 473), 20, {"FPN": (12.8, 37.1, 54.4), "VT-FPN": (2.0, 26.4, 43.6)}),
)
_TABLE_4_NOTES = {
    "R-50 FPN, COCO-Stuff": "bottlenecks stride in their first 1x1, as Detectron2's do; with torchvision's 163.6 G",
    "R-50 VT-FPN, COCO-Stuff": "the paper leaves the neck's inside open: many designs fit, this is one",
    "R-101 FPN, COCO-Stuff": "bottlenecks stride in their first 1x1, as Detectron2's do; with torchvision's 235.6 G",
    "R-101 VT-FPN, COCO-Stuff": "the table says that the neck saves 6.48x, the text 6.4x and 6.5x",
}


@cache
def _build(model: str, preset: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(model, preset)


@cache
def _measure(model: str, preset: str) -> Complexity:
    return count_complexity(_build(model, preset))


def _measure_last_stage(model: str, preset: str) -> Complexity:
    built: Any = _build(model, preset)
    stage = built.backbone.layer4 if isinstance(built, ResNet) else built.stage
    return count_complexity(stage, (built.backbone.channels[2], *STAGE_4_SIZE))


def _printed_rows(table: int, printed: tuple[_Printed, ...]) -> list[ProfileRow]:
    rows = []
    for row, model, preset, params, macs, note in printed:
        ours = _measure(model, preset)
        rows.append(ProfileRow(table, row, params, ours.params / 1e6, macs, ours.macs / 1e9, note))
    return rows


def _reduction_rows() -> list[ProfileRow]:
    """Table 2: baseline / VT-ResNet, of the whole model and of the stage that was replaced (without the head)."""
    rows = []
    for (depth, preset), printed in _TABLE_2.items():
        base, ours = f"resnet{depth}", f"vt_resnet{depth}"
        total = _measure(base, "counts"), _measure(ours, preset)
        stage = _measure_last_stage(base, "counts"), _measure_last_stage(ours, preset)
        ratios = {
            "MACs total": total[0].macs / total[1].macs,
            "MACs stage 5": stage[0].macs / stage[1].macs,
            "params total": total[0].params / total[1].params,
            "params stage 5": stage[0].params / stage[1].params,
        }
        for (what, ratio), ratio_paper in zip(ratios.items(), printed, strict=True):
            row = f"R-{depth} {what}"
            note = _TABLE_2_NOTES.get(row, "")
            rows.append(ProfileRow(2, row, None, None, None, None, note, ratio_paper, ratio))
    return rows


def _segmentation_rows() -> list[ProfileRow]:
    """Table 4."""
    rows = []
    for i, depth in enumerate((50, 101)):
        for data, (height, width), classes, families in _TABLE_4:
            for family, (neck, *totals) in families.items():
                name = f"{'vt_fpn' if family == 'VT-FPN' else 'panoptic_fpn'}_resnet{depth}"
                ours = _measure_segmenter(name, height, width, classes)
                row = f"R-{depth} {family}, {data}"
                figures = (None, ours[0].params / 1e6, totals[i], ours[0].macs / 1e9)
                rows.append(
                    ProfileRow(
                        4,
                        row,
                        *figures,
                        note=_TABLE_4_NOTES.get(row, ""),
                        input=f"{height}x{width}",
                        neck_macs_paper=neck,
                        neck_macs=ours[1] / 1e9,
                    )
                )
    return rows


@cache
def _measure_segmenter(model: str, height: int, width: int, classes: int) -> tuple[Complexity, int]:
    built: Any = deepcopy(_build(model, "counts"))
    built.reset_classifier(classes)
    return count_segmenter(built, height, width)


def count_segmenter(model: Segmenter, height: int, width: int) -> tuple[Complexity, int]:
    """What a segmentation model costs for one image of height x width pixels, and the MACs of its neck alone."""
    twin = deepcopy(model).to("meta").eval()
    features = twin.backbone(torch.empty(1, twin.config.in_channels, height, width, device="meta"))
    whole = count_complexity(twin, (twin.config.in_channels, height, width))
    return whole, _count_macs(twin.neck, features)


def _transformer_rows() -> list[ProfileRow]:
    """Sec. 3.2's example; its non-local operation is the same transformer with the 7 x 7 pixels as tokens."""
    with torch.device("meta"):
        transformer, as_built = (Transformer(c, heads=16, kqv_groups=1) for c in (512, 1024))
    pixels, tokens = count_complexity(transformer, (512, 7 * 7)), count_complexity(transformer, (512, 8))
    wide = count_complexity(as_built, (1024, 8))
    section = "Sec. 3.2"
    cut = "in full 40.379 M: the paper cuts digits off"
    taken = f"takes C_T = 512, but the models have C_T = 1024, which costs {wide.macs / 1e6:.1f} M"
    factor = f"with the models' C_T = 1024 it would be {pixels.macs / wide.macs:.1f}x"
    millions = pixels.params / 1e6
    return [
        ProfileRow(section, "non-local, 7x7, C = 512", None, millions, 0.0403, pixels.macs / 1e9, cut),
        ProfileRow(section, "transformer, L = 8", None, millions, 0.0063, tokens.macs / 1e9, taken),
        ProfileRow(section, "reduction of MACs", None, None, None, None, factor, 6.4, pixels.macs / tokens.macs),
    ]


TABLES: dict[int | str, Callable[[], list[ProfileRow]]] = {
    1: lambda: _printed_rows(1, _TABLE_1),
    2: _reduction_rows,
    3: lambda: _printed_rows(3, _TABLE_3),
    4: _segmentation_rows,
    "Sec. 3.2": _transformer_rows,
}
"""What :func:`profile_rows` covers, in print order. Table 1's rows of other papers are not ours to reproduce."""


def profile_rows(table: int | str | None = None) -> list[ProfileRow]:
    """The paper's complexity figures beside ours, measured now.

    Args:
        table: a key of :data:`TABLES`; None for all.

    Raises:
        ConfigError: for a table that is not covered.
    """
    if table is not None and table not in TABLES:
        raise ConfigError(f"no table {table!r}; choose from {', '.join(map(str, TABLES))}")
    return [row for key in (TABLES if table is None else (table,)) for row in TABLES[key]()]
