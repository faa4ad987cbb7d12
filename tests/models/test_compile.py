"""torch.compile and each family of models, token maps included."""

import pytest
import torch

from vtviz.predictor import Predictor


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_same_maps(compiled: Predictor, plain: Predictor, photo) -> None:
    got, expected = compiled.extract(photo, size=64, hook_free=True), plain.extract(photo, size=64)
    torch.testing.assert_close(torch.from_numpy(got.logits), torch.from_numpy(expected.logits), atol=1e-3, rtol=1e-3)
    for one, other in zip(got.layers, expected.layers, strict=True):
        assert abs(one.times_uniform() - other.times_uniform()).max() < 1e-3 * other.times_uniform().max()
        assert one.error < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vt_resnet18", "vt_resnet50", "vt_fpn_resnet18"])
def test_models_with_maps_are_one_graph(name, tiny_model, chelsea):
    """``fullgraph``: nothing in it that torch.compile would have to leave to Python. Code is not generated."""
    model = tiny_model(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same_maps(Predictor(compiled), Predictor(model), chelsea)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "panoptic_fpn_resnet18"])
def test_models_without_maps_are_one_graph(name, tiny_model):
    model, x = tiny_model(name), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


@pytest.mark.slow
def test_generated_code_gives_the_maps(tiny_model, chelsea):
    model = tiny_model()
    try:
        assert_same_maps(Predictor(torch.compile(model, fullgraph=True)), Predictor(model), chelsea)
    except torch._inductor.exc.InvalidCxxCompiler as error:
        pytest.skip(f"torch.compile needs a C++ compiler: {error}")
