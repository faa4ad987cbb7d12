"""FLOPs of a training step, and what a device can do."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtviz.models.complexity import count_complexity
from vtviz.models.registry import build_model
from vtviz.train import flops
from vtviz.train.flops import MEASURING_SECONDS, PEAKS, StepFlops, count_step, find_peak, measure_peak, peak_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "macs"),
    [("resnet18", 1.814e9), ("vt_resnet18", 1.587e9)],  # Table 1, of the forward pass
)
def test_a_step_is_six_times_the_paper_s_macs(name, macs):
    assert count_step(build_model(name, "counts")).of((1, 3, 224, 224)) == pytest.approx(6 * macs, rel=1e-3)


@pytest.mark.parametrize("name", ["vt_resnet18", "vt_fpn_resnet18"])
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (96, 160), (320, 320)])
def test_batches_of_any_size_lie_on_one_line(tiny_model, name, size):
    model = tiny_model(name)
    exact = 6 * count_complexity(model, (3, *size)).macs
    step = count_step(model)
    assert step.of((7, 3, *size)) == pytest.approx(7 * exact, rel=3e-3)
    assert step.fixed >= 0


def test_three_forward_passes_are_what_torch_counts_in_a_real_step(tiny_model):
    model = tiny_model("vt_resnet18").train()
    images = torch.randn(2, 3, 64, 64, requires_grad=True)  # so that the first layer, too, has a gradient to pass on
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    assert count_step(model).of(images.shape) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_frozen_stages_have_no_backward_pass(tiny_model):
    model = tiny_model("vt_resnet18").train()
    frozen = [model.backbone.conv1, model.backbone.bn1, model.backbone.layer1]
    for module in frozen:
        module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 64, 64)).sum().backward()
    whole, part = count_step(model), count_step(model, frozen)
    assert part.of((1, 3, 64, 64)) == pytest.approx(counter.get_total_flops(), rel=0.1)  # layer2 passes nothing on
    assert part.of((1, 3, 64, 64)) < 0.8 * whole.of((1, 3, 64, 64))


def test_counting_leaves_the_model_and_the_random_numbers_as_they_are(tiny_model):
    model = tiny_model("vt_resnet18").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    count_step(model)
    measure_peak(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_flops_add_up():
    assert StepFlops(10.0, 2.0).of((3, 3, 4, 5)) == 3 * (10 + 2 * 20)
    assert count_step(nn.Sequential(nn.Conv2d(3, 8, 1))).of((1, 3, 10, 10)) == 6 * 3 * 8 * 100


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("AMD Instinct MI300X", None),
        ("", None),
    ],
)
def test_gpus_are_known_by_whole_words(name, key):
    assert find_peak(name) == (PEAKS[key] if key else None)
    for half, single in PEAKS.values():
        assert half > 1.5 * single


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_device_without_a_data_sheet_is_measured(precision):
    assert 1e8 < peak_flops(CPU, precision) < 1e14


@pytest.mark.parametrize("speed", [1e9, 1e10, 3e11, 1e13, 1e15])
def test_measuring_finds_the_speed_and_ends_in_time(speed, monkeypatch):
    """On a clock of its own, whatever the machine does meanwhile."""
    now = 0.0

    class Matrix:
        def __init__(self, side: int, *_: int, **__: object) -> None:
            self.side = side

        def __matmul__(self, other: "Matrix") -> None:
            nonlocal now
            now += 2 * self.side**3 / speed

    monkeypatch.setattr(flops.torch, "ones", Matrix)
    monkeypatch.setattr(flops.time, "perf_counter", lambda: now)
    assert measure_peak(CPU, torch.float32) == pytest.approx(speed)
    assert 0 < now <= MEASURING_SECONDS


@pytest.mark.gpu
def test_a_gpu_does_not_beat_its_data_sheet():
    device = torch.device("cuda")
    for precision, kind in (("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)):
        listed = find_peak(torch.cuda.get_device_name())
        if listed is None:
            pytest.skip(f"no data sheet of {torch.cuda.get_device_name()}")
        assert 0.1 < measure_peak(device, kind) / peak_flops(device, precision) < 1.05
