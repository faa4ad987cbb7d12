import numpy as np
import pytest
import torch

from vtviz.explain.target import choose_target, private_copy
from vtviz.explain.token_attribution import TokenSpace, gradient_x_token, layer_groups, token_integrated_gradients
from vtviz.geometry import to_tensor
from vtviz.predictor import Predictor


@pytest.fixture(scope="module")
def make_space(chelsea):
    """The tokens of a cat's photo in a model, and the score of the class that the model answers with."""

    def make(model) -> tuple[TokenSpace, float]:
        predictor = Predictor(model)
        x = predictor.preprocessing.normalize(to_tensor(chelsea, predictor.fit(chelsea.shape[:2], size=64))[None])
        mine = private_copy(predictor)
        with torch.no_grad():
            logits = mine(x)
            target = choose_target(logits, predictor.classes)
            return TokenSpace(mine, x, target), float(target.score(logits))

    return make


@pytest.fixture(scope="module", params=["vt_resnet18", "vt_fpn_resnet18"])
def scored(request, make_space, tiny_model):
    return make_space(tiny_model(request.param))


@torch.no_grad()
def rise(space: TokenSpace, layers: range) -> float:
    """f(T) - f(0)."""
    return float(space.score(layers, tokens_of(space, layers)) - space.score(layers, tokens_of(space, layers, 0)))


def tokens_of(space, layers, factor=1.0):
    return [factor * space.tokens[i] for i in layers]


@torch.no_grad()
def test_with_its_own_tokens_the_score_is_the_models(scored):
    space, score = scored
    for layers in layer_groups(space.model):
        doubled = space.score(layers, [t.expand(2, -1, -1) for t in tokens_of(space, layers)])
        assert doubled.tolist() == pytest.approx([score] * 2, rel=1e-4)


def test_integrated_gradients_add_up_to_what_the_score_rises_by(scored):
    space, _ = scored
    rows = []
    found = token_integrated_gradients(space, 24, rows.append)
    groups = layer_groups(space.model)
    for layers in groups:
        expected = rise(space, layers)
        assert abs(expected) > 0.05
        assert sum(found.tokens[i].sum() for i in layers) == pytest.approx(
            expected, rel=0.02
        )  # a segmenter's head has ReLUs
    assert found.difference == pytest.approx(rise(space, groups[-1]))
    assert found.total == pytest.approx(sum(found.tokens[i].sum() for i in groups[-1]))
    assert sum(rows) == 24 * len(groups)
    coarse = token_integrated_gradients(space, 1)
    assert abs(coarse.total - coarse.difference) > 3 * abs(found.total - found.difference)


def test_gradient_x_token_is_the_slope_as_one_token_grows(scored):
    space, _ = scored
    found = gradient_x_token(space)
    assert found.difference is None
    for layers in layer_groups(space.model):
        layer, token, step = layers[-1], 5, 1e-2
        ends = []
        for factor in (1 - step, 1 + step):
            tokens = [t.clone() for t in tokens_of(space, layers)]
            tokens[-1][..., token] *= factor
            with torch.no_grad():
                ends.append(float(space.score(layers, tokens)))
        slope = (ends[1] - ends[0]) / (2 * step)
        assert found.tokens[layer][token] == pytest.approx(slope, rel=0.05, abs=2e-3 * abs(found.total))


def test_where_the_score_is_linear_in_the_tokens_one_step_is_exact(make_space, tiny_model):
    """Without a transformer the last block's tokens meet a 1x1 convolution, a mean and a linear layer only."""
    space, _ = make_space(tiny_model("vt_resnet18", "no_transformer"))
    one, many, slope = (
        found.tokens[-1]
        for found in (
            token_integrated_gradients(space, 1),
            token_integrated_gradients(space, 9),
            gradient_x_token(space),
        )
    )
    np.testing.assert_allclose(one, many, atol=1e-5)
    np.testing.assert_allclose(one, slope, atol=1e-5)
    assert np.ptp(one) > 0.01


def test_the_map_is_the_tokens_maps_weighted(make_space, tiny_model, chelsea):
    model = tiny_model()
    space, _ = make_space(model)
    first, last = (layer.times_uniform() for layer in Predictor(model).extract(chelsea, size=64).layers)
    np.testing.assert_allclose(space.maps[0], first, rtol=1e-5)
    kept = np.concatenate([first[8:], last])  # those were gathered before
    np.testing.assert_allclose(space.maps[1], kept, rtol=1e-5)
    found = gradient_x_token(space)
    assert found.stride == 16
    expected = sum(a * map_ for a, map_ in zip(found.tokens[1], space.maps[1], strict=True))
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-6)
    assert found.values.mean() == pytest.approx(found.total, rel=1e-4)


def test_statically_appended_tokens_have_maps_too(make_space, tiny_model):
    space, _ = make_space(tiny_model("vt_resnet18", "no_dynamic"))
    assert [len(maps) for maps in space.maps] == [16, 24]
    assert [len(a) for a in gradient_x_token(space).tokens] == [16, 24]


def test_a_segmenters_map_sums_its_levels(make_space, tiny_model):
    space, _ = make_space(tiny_model("vt_fpn_resnet18"))
    found = gradient_x_token(space)
    assert [len(a) for a in found.tokens] == [8] * 4
    assert (found.stride, found.values.shape) == (4, space.maps[0].shape[1:])
    assert found.values.shape != space.maps[3].shape[1:]
    alone = [sum(a * m for a, m in zip(*pair, strict=True)) for pair in zip(found.tokens, space.maps, strict=True)]
    # at pixel 0 all levels have a cell's centre, so nothing is interpolated
    assert found.values[0, 0] == pytest.approx(sum(each[0, 0] for each in alone), rel=1e-4)
    assert found.values[8, 8] == pytest.approx(
        alone[0][8, 8] + alone[1][4, 4] + alone[2][2, 2] + alone[3][1, 1], rel=1e-4
    )
