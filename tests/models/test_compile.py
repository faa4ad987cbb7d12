"""torch.compile and every model, token maps included."""

import numpy as np
import pytest
import torch

from vtviz.explain.attribution import attribute
from vtviz.explain.dissection import untrained_twin
from vtviz.models.registry import MODELS
from vtviz.predictor import Predictor

PRESETS = [("vt_resnet18", preset) for preset in MODELS["vt_resnet18"].presets if preset != "counts"]
WITH_MAPS = [(name, None) for name in MODELS if name.startswith("vt_")] + PRESETS
WITHOUT_MAPS = [name for name in MODELS if not name.startswith("vt_")]


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_same_maps(compiled: Predictor, plain: Predictor, photo) -> None:
    got, expected = compiled.extract(photo, size=64, hook_free=True), plain.extract(photo, size=64)
    torch.testing.assert_close(torch.from_numpy(got.logits), torch.from_numpy(expected.logits), atol=1e-3, rtol=1e-3)
    assert expected.layers
    for one, other in zip(got.layers, expected.layers, strict=True):
        assert abs(one.times_uniform() - other.times_uniform()).max() < 1e-3 * other.times_uniform().max()
        assert one.error < 1e-3


def assert_same_output(compiled: torch.nn.Module, plain: torch.nn.Module) -> None:
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = plain(x)
        torch.testing.assert_close(compiled(x), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), WITH_MAPS)
def test_models_with_maps_are_one_graph(name, preset, tiny_model, chelsea):
    """``fullgraph``: nothing in it that torch.compile would have to leave to Python. Code is not generated."""
    model = tiny_model(name, preset)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same_maps(Predictor(compiled), Predictor(model), chelsea)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_MAPS)
def test_models_without_maps_are_one_graph(name, tiny_model):
    model = tiny_model(name)
    assert_same_output(torch.compile(model, backend="eager", fullgraph=True), model)


@pytest.mark.parametrize("name", ["vt_resnet18", "vt_fpn_resnet18"])
def test_a_compiled_model_is_explained_as_the_model_itself(name, tiny_model, chelsea):
    model = tiny_model(name)
    plain, compiled = Predictor(model), Predictor(torch.compile(model, backend="eager"))
    for method in ("gradient_x_token", "token_integrated_gradients"):
        one, other = (attribute(p, chelsea, [method], size=64).items[0] for p in (plain, compiled))
        np.testing.assert_allclose(one.map, other.map, rtol=1e-4, atol=1e-6)
    twins = [untrained_twin(p).model.state_dict() for p in (plain, compiled)]
    assert all(torch.equal(twins[1][key], value) for key, value in twins[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vt_resnet18", "vt_fpn_resnet18", "resnet18", "panoptic_fpn_resnet18"])
def test_generated_code_gives_the_same(name, tiny_model, chelsea):
    """One of each family: deeper ones have the same parts more often, and take minutes to generate."""
    model = tiny_model(name)
    compiled = torch.compile(model, fullgraph=True)
    try:
        if name.startswith("vt_"):
            assert_same_maps(Predictor(compiled), Predictor(model), chelsea)
        else:
            assert_same_output(compiled, model)
    except torch._inductor.exc.InvalidCxxCompiler as error:
        pytest.skip(f"torch.compile needs a C++ compiler: {error}")
