"""What a training step computes and what a device could: the two sides of model FLOPs utilisation (MFU)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIDES = (64, 224)
"""Square images at which a model is counted; all other sizes lie on the line through these two."""
BACKWARD = 2
"""Forward passes that a backward pass costs: products of the same size for the gradients of inputs and of weights."""
PEAKS = {
    "H200": (989.4, 494.7),
    "H100": (989.4, 494.7),
    "H100 NVL": (835.5, 417.5),
    "H100 PCIe": (756.0, 378.0),
    "A100": (312.0, 156.0),
    "A10": (125.0, 62.5),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}
"""Words of a GPU's name -> TFLOP/s without sparsity in half precision, and in float32 (TF32 where it has that).

From NVIDIA's data sheets of these products; for the RTX cards, which have none, from the appendices of the whitepapers
on Ada and GA102 (float16 products added up in float32). Half of what the sheets print "with sparsity".
"""
PARTS = frozenset({"MIG", "Laptop", "D"})
"""Words in the names of GPUs that are less than their number says."""
MEASURING_SECONDS = 0.3


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one image's forward and backward pass: ``fixed + per_pixel * height * width``.

    Convolutions, and attention between a fixed number of tokens and the pixels, grow with the pixels; what tokens do
    among themselves is fixed.
    """

    fixed: float
    per_pixel: float

    def of(self, shape: Iterable[int]) -> float:
        """FLOPs of a batch of images (N, 3, height, width)."""
        count, _, height, width = shape
        return count * (self.fixed + self.per_pixel * height * width)


def count_step(model: nn.Module, frozen: Iterable[nn.Module] = ()) -> StepFlops:
    """Count a model on the meta device, where nothing is computed: two for each multiply-accumulate.

    Trained parts count 1 + :data:`BACKWARD` forward passes, the lowest ``frozen`` parts, which get no gradient, one.
    """
    names = [name for name, module in model.named_modules() if any(module is other for other in frozen)]
    twin = deepcopy(model).to("meta").eval()
    low, high = (_count(twin, side, names) for side in SIDES)
    per_pixel = (high - low) / (SIDES[1] ** 2 - SIDES[0] ** 2)
    return StepFlops(low - per_pixel * SIDES[0] ** 2, per_pixel)


def _count(twin: nn.Module, side: int, frozen: Iterable[str]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(torch.empty(1, 3, side, side, device="meta"))
    parts = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
    once = sum(parts.get(f"{type(twin).__name__}.{name}", 0) for name in frozen)
    return (1 + BACKWARD) * counter.get_total_flops() - BACKWARD * once


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s that a device could reach in a precision of Lightning's.

    For the GPUs of :data:`PEAKS` what their data sheets promise; for anything else what matrix products reach here and
    now, measured in :data:`MEASURING_SECONDS`.
    """
    half = "16" in precision
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if (listed := find_peak(name)) is not None:
        return listed[0 if half else 1] * 1e12
    kind = torch.float16 if precision.startswith("16") and device.type != "cpu" else torch.bfloat16
    return measure_peak(device, kind if half else torch.float32)


def find_peak(name: str) -> tuple[float, float] | None:
    """The entry of :data:`PEAKS` for a GPU's name: of those whose words are all in it the one with the most."""
    words = set(re.split(r"[\s-]+", name))
    if words & PARTS:
        return None
    found = [key for key in PEAKS if set(key.split()) <= words]
    return PEAKS[max(found, key=len)] if found else None


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several products of square matrices, larger and larger while there is time."""
    best, end = 0.0, time.perf_counter() + MEASURING_SECONDS
    for side in (256, 512, 1024, 2048, 4096, 8192):
        matrix = torch.ones(side, side, dtype=dtype, device=device)
        for _ in range(4):  # the first one warms up
            _wait(device)
            began = time.perf_counter()
            matrix @ matrix
            _wait(device)
            took = time.perf_counter() - began
            best = max(best, 2 * side**3 / took)
        if time.perf_counter() + 8 * 4 * took > end:  # what the next size would take
            break
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
