"""VT-ResNet beside ResNet, VT-FPN's neck beside FPN's, and the engines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row, Work, compare
from vtviz.engines import PRECISIONS, TorchEngine, check_engine, inference, open_engine
from vtviz.errors import ConfigError
from vtviz.models.registry import build_model
from vtviz.models.vt_fpn import FPNNeck, VTFPNConfig, VTNeck

RESNET50 = (256, 512, 1024, 2048)
"""Channels of its stages 2 to 5."""


def forward() -> Iterator[Row]:
    """Inference at 224 x 224."""
    ours, plain = build_model("vt_resnet18").eval(), build_model("resnet18").eval()
    for dtype in ("float32", "bf16"):
        for batch in (1, 16):
            x = torch.randn(batch, 3, 224, 224)
            a, b = (partial(open_engine("torch", model, dtype=dtype), x) for model in (ours, plain))
            yield compare(
                f"forward.{dtype}.b{batch}",
                f"VT-ResNet-18 ÷ ResNet-18, forward, {dtype}, batch {batch}",
                a,
                b,
                goal="<= 0.90",
                seconds=6 if batch == 1 else 20,  # for ten rounds or so
            )


def training() -> Iterator[Row]:
    """A step of training: bf16 autocast, channels_last, AdamW, as ``vtviz train`` does it."""
    for side, batch, goal in ((224, 16, "<= 1.00"), (96, 64, None)):  # at 96 px VT has the more MACs: as many tokens
        x = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        target = torch.randint(100, (batch,))
        steps = [_step(build_model(name, num_classes=100).train(), x, target) for name in ("vt_resnet18", "resnet18")]
        what = f"VT-ResNet-18 ÷ ResNet-18, training step, bf16, {side} × {side}, batch {batch}"
        yield compare(f"training.{side}.b{batch}", what, *steps, goal=goal, seconds=40)


def necks() -> Iterator[Row]:
    """The necks alone, on a ResNet-50's features of a picture of 800 x 1216."""
    features = [
        torch.randn(1, c, 200 >> i, 304 >> i).contiguous(memory_format=torch.channels_last)
        for i, c in enumerate(RESNET50)
    ]
    fpn, vt = FPNNeck(RESNET50, 256).eval(), VTNeck(RESNET50, VTFPNConfig(50)).eval()
    cpu = torch.device("cpu")

    def run(neck: nn.Module) -> Work:
        def work() -> None:
            with inference(neck, cpu):
                neck(features)

        return work

    yield compare(
        "neck.800x1216", "FPN's neck ÷ VT-FPN's, ResNet-50, 800 × 1216", run(fpn), run(vt), goal=">= 5", seconds=30
    )


def engines() -> Iterator[Row]:
    """Each engine beside PyTorch in float32, VT-ResNet-18, 224 x 224, batch 1."""
    model = build_model("vt_resnet18").eval()
    x = torch.randn(1, 3, 224, 224)
    base = partial(TorchEngine(model), x)
    for name, dtypes in PRECISIONS.items():
        for dtype in dtypes:
            if (name, dtype) == ("torch", "float32"):
                continue
            row, what = f"engine.{name}.{dtype}", f"{name}, {dtype} ÷ PyTorch, float32: VT-ResNet-18 with its maps"
            try:
                check_engine(name, dtype)
                engine = open_engine(name, model, dtype=dtype)
            except ConfigError as error:
                yield Row(row, what, note=f"not measured: {error}")
            else:
                yield compare(row, what, partial(engine, x), base, seconds=4)


def gpu() -> Iterator[Row]:
    """What wants a CUDA device."""
    rows = {
        "gpu.extraction.b1": ("extraction ÷ plain forward, throughput, bf16 and compiled, batch 1", ">= 0.95", 1),
        "gpu.extraction.b256": ("extraction ÷ plain forward, throughput, bf16 and compiled, batch 256", ">= 0.95", 256),
    }
    there = torch.cuda.is_available()
    for name, (what, goal, batch) in rows.items():
        yield _gpu_extraction(name, what, goal, batch) if there else Row(name, what, goal=goal, note=NO_GPU)
    name, what = "gpu.training", "VT-ResNet-50 ÷ ResNet-50, training step, bf16, 224 × 224, batch 64"
    if not there:
        yield Row(name, what, note=NO_GPU)
        return
    x = torch.randn(64, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    target = torch.randint(1000, (64,), device="cuda")
    steps = [_step(build_model(model).cuda().train(), x, target) for model in ("vt_resnet50", "resnet50")]
    yield compare(name, what, *(_waited(step) for step in steps))


NO_GPU = "not measured: no CUDA device here"


def _gpu_extraction(name: str, what: str, goal: str, batch: int) -> Row:
    model = build_model("vt_resnet18").cuda().eval()
    x = torch.randn(batch, 3, 224, 224, device="cuda")
    compiled: Any = torch.compile(model)

    def plain() -> None:
        with inference(model, x.device, torch.bfloat16):
            compiled(x)

    def extract() -> None:
        with inference(model, x.device, torch.bfloat16):
            compiled(x, return_maps=True)

    return compare(name, what, _waited(plain), _waited(extract), goal=goal)  # times, so throughputs the other way round


def _waited(work: Work) -> Work:
    def run() -> None:
        work()
        torch.cuda.synchronize()

    return run


def _step(model: nn.Module, x: Tensor, target: Tensor) -> Work:
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def work() -> None:
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work
