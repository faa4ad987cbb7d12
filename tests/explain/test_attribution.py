import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from vtviz.errors import ConfigError
from vtviz.explain import target as target_module
from vtviz.explain.attribution import attribute
from vtviz.explain.attribution_picture import attribution_overlay, attribution_png, save_attributions, scale_end
from vtviz.explain.explainer import METHODS, Explainer, at_cells, check_methods, rank_correlation
from vtviz.explain.target import Target, choose_target, images_at_once
from vtviz.geometry import to_tensor, upsample
from vtviz.predictor import Predictor

CAPTUMS = [name for name, method in METHODS.items() if not method.tokens]


@pytest.fixture(scope="module")
def predictor(tiny_model) -> Predictor:
    return Predictor(tiny_model())


@pytest.fixture(scope="module")
def found(predictor, chelsea):
    return attribute(predictor, chelsea, size=64, steps=8)


# --- one image, all methods


def test_every_method_answers_for_the_same_class_at_the_images_size(found, predictor, chelsea):
    assert [item.method for item in found.items] == list(METHODS)
    best = predictor.predict(chelsea, size=64, k=1)[0]
    assert (found.target, found.label) == (best.index, best.label)
    assert found.probability == pytest.approx(best.probability, rel=1e-5)
    assert found.score == pytest.approx(predictor.extract(chelsea, size=64).logits[best.index], rel=1e-5)
    for item in found.items:
        assert item.map.shape == chelsea.shape[:2]
        assert item.map.dtype == item.cells.dtype == np.float32
        assert item.cells.shape == tuple(side // 16 for side in found.geometry.input)
        assert np.ptp(item.map) > 0
        assert (item.map.min() < 0) <= item.signed
        assert (item.tokens is not None) == METHODS[item.method].tokens
        assert item.seconds > 0
    assert found["grad_cam"].map.min() >= 0
    assert {name: a.shape for name, a in found["gradient_x_token"].tokens.items()} == {"block0": (16,), "block1": (16,)}


def test_large_images_go_through_the_model_a_few_at_a_time_with_the_same_maps(found, predictor, chelsea, monkeypatch):
    sizes = ((64, 64), (224, 224), (384, 512), (2048, 2048))
    assert [images_at_once(torch.empty(1, 3, *size)) for size in sizes] == [8, 8, 2, 1]
    pixels = found.geometry.input[0] * found.geometry.input[1]
    monkeypatch.setattr(target_module, "PIXELS_AT_ONCE", 3 * pixels)
    largest = []
    monkeypatch.setattr(Target, "score", lambda self, logits: largest.append(len(logits)) or logits[:, self.index])
    few = attribute(predictor, chelsea, size=64, steps=8)
    assert max(largest) == 3
    for one, other in zip(found.items, few.items, strict=True):
        np.testing.assert_allclose(other.map, one.map, atol=1e-4 * np.abs(one.map).max())


def test_integrated_gradients_say_how_far_they_are_off(found, predictor, chelsea):
    promised = [item.method for item in found.items if item.completeness_error is not None]
    assert promised == ["token_integrated_gradients", "integrated_gradients"]
    for method in promised:
        assert found[method].completeness_error < 0.05 * abs(found[method].difference)
    coarse = attribute(predictor, chelsea, ["integrated_gradients"], size=64, steps=1).items[0]
    assert coarse.completeness_error > found["integrated_gradients"].completeness_error
    assert found["gradient_x_token"].completeness_error is None


def test_maps_are_drawn_where_the_network_looked(found):
    tokens = found["gradient_x_token"]
    assert np.array_equal(tokens.map, upsample(tokens.cells, found.geometry, stride=16))
    cam = found["grad_cam"]  # stage 4 has a stride of 16 too
    np.testing.assert_allclose(cam.map, upsample(cam.cells, found.geometry, stride=16), atol=1e-6)


def test_agreement_is_spearmans(found):
    cells = np.stack([item.cells.ravel() for item in found.items])
    np.testing.assert_allclose(found.agreement, scipy.stats.spearmanr(cells, axis=1).statistic, atol=1e-9)
    assert found.agreement[0, 1] > 0.5  # gradient x token is integrated gradients' one-step form


def test_rank_correlation_with_ties_and_constants():
    a, b = np.array([[0, 0, 0, 1], [2, 2, 3, 5]]), np.array([[1, 4, 2, 2], [2, 0, 9, 9]])
    matrix = rank_correlation([a, b, np.ones((2, 4)), -a])
    assert matrix[0, 1] == pytest.approx(scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic)
    assert matrix[0].tolist() == pytest.approx([1, matrix[0, 1], 0, -1])
    assert matrix[2].tolist() == [0] * 4


def test_an_unlikely_class_has_other_maps(predictor, found, chelsea):
    other = attribute(predictor, chelsea, ["grad_cam"], size=64, target=(found.target + 1) % 5)
    assert other.target != found.target
    assert other.probability < found.probability
    assert not np.array_equal(other.items[0].map, found["grad_cam"].map)


def test_what_a_crop_cut_off_is_unknown(predictor, coffee):
    found = attribute(predictor, coffee, ["gradient_x_token", "occlusion"], size=64, crop="center")
    for item in found.items:
        assert np.isnan(item.map[:, :40]).all()
        assert not np.isnan(item.map[150:250, 250:350]).any()
        assert item.to_dict()["range"][0] < item.to_dict()["range"][1]


def test_a_crop_that_left_no_pixel_s_centre_is_no_traceback(predictor, coffee, tmp_path):
    found = attribute(predictor, coffee[:1, :40], ["gradient_x_token"], size=64, crop="center")
    assert np.isnan(found["gradient_x_token"].map).all()
    written = save_attributions(found, tmp_path)
    (told,) = json.loads(written["attributions.json"].read_text(), parse_constant=pytest.fail)["methods"]
    assert told["range"] == [None, None]


@torch.inference_mode()
def test_inference_mode_around_it_changes_nothing(found, tiny_model, chelsea):
    """Also where the model was made in it."""
    again = attribute(Predictor(tiny_model()), chelsea, size=64, steps=8)
    assert torch.is_inference_mode_enabled()
    for ours, theirs in zip(again.items, found.items, strict=True):
        np.testing.assert_allclose(ours.map, theirs.map, atol=1e-6 * np.abs(theirs.map).max())


# --- the methods themselves


@pytest.fixture(scope="module")
def prepared(predictor, chelsea):
    """Explainer, input and target of the cat."""
    explainer = Explainer(predictor, steps=16)
    x = explainer.prepare(to_tensor(chelsea, predictor.fit(chelsea.shape[:2], size=64))[None])
    return explainer, x, choose_target(explainer.logits(x), predictor.classes)


def test_grad_cam_is_the_activation_weighted_by_its_mean_gradient(prepared):
    explainer, x, target = prepared
    made = explainer.make("grad_cam", x, target)
    stage = explainer.model.backbone(x)[-1].detach().requires_grad_()
    logits, _ = explainer.model.forward_edited([stage], [])
    (slope,) = torch.autograd.grad(logits[0, target.index], stage)
    expected = (slope.mean(dim=(2, 3), keepdim=True) * stage).sum(dim=1).relu()[0].detach().numpy()
    np.testing.assert_allclose(made.values, expected, rtol=1e-3, atol=1e-6)
    assert made.stride == 16


def test_occlusion_is_the_mean_fall_of_the_score_under_the_windows_over_a_pixel(prepared):
    explainer, x, target = prepared
    made = explainer.make("occlusion", x, target)
    height, width = x.shape[-2:]
    falls, windows = np.zeros((height, width)), np.zeros((height, width))
    for top in range(0, height - height // 4 + 1, height // 8):
        for left in range(0, width - width // 4 + 1, width // 8):
            place = np.s_[top : top + height // 4, left : left + width // 4]
            hidden = x.clone()
            hidden[(..., *place)] = 0
            falls[place] += float(explainer.logits(x)[0, target.index] - explainer.logits(hidden)[0, target.index])
            windows[place] += 1
    assert windows.min() == 1
    np.testing.assert_allclose(made.values, falls / windows, atol=1e-4)


def test_at_cells_averages_fine_maps_and_interpolates_coarse_ones():
    rng = np.random.default_rng(0)
    fine = rng.random((64, 96), np.float32)
    cells = at_cells(fine, 1, (64, 96))
    assert cells.shape == (4, 6)
    assert cells[1, 2] == pytest.approx(fine[8:24, 24:40].mean(), rel=1e-5)
    assert cells[0, 0] == pytest.approx(fine[:8, :8].mean(), rel=1e-5)  # centred at the first pixel
    assert cells[3, 5] == pytest.approx(fine[40:, 72:].mean(), rel=1e-5)
    same = rng.random((4, 6), np.float32)
    assert np.array_equal(at_cells(same, 16, (64, 96)), same)
    assert at_cells(same[:2, :3], 32, (64, 96))[:3, 1].tolist() == pytest.approx(
        [same[0, :2].mean(), same[:2, :2].mean(), same[1, :2].mean()], rel=1e-5
    )


# --- other models


def test_models_without_tokens_have_captums_methods_only(tiny_model, chelsea):
    plain = Predictor(tiny_model("resnet18"))
    found = attribute(plain, chelsea, size=64, steps=2)
    assert [item.method for item in found.items] == CAPTUMS
    assert found["grad_cam"].cells.shape == found["occlusion"].cells.shape
    with pytest.raises(ConfigError, match="is a model without tokens: gradient_x_token"):
        attribute(plain, chelsea, ["gradient_x_token"])


def test_a_segmenter_explains_the_pixels_of_a_class(tiny_model, chelsea):
    predictor = Predictor(tiny_model("vt_fpn_resnet18"))
    found = attribute(predictor, chelsea, ["token_integrated_gradients", "grad_cam"], size=64, steps=4)
    logits = predictor.segment(chelsea, size=64).logits
    labels = logits.argmax(axis=0)
    assert found.target == np.bincount(labels.ravel()).argmax()  # the class with the most pixels
    mine = labels == found.target
    assert found.score == pytest.approx(logits[found.target][mine].sum(), rel=1e-3)
    odds = np.exp(logits - logits.max(axis=0))
    assert found.probability == pytest.approx((odds / odds.sum(axis=0))[found.target][mine].mean(), rel=1e-3)
    assert found["grad_cam"].cells.shape == found.items[0].cells.shape  # from cells of 32 pixels and of 4
    assert np.ptp(found.items[0].map) > 0
    assert list(found.items[0].tokens) == ["p2", "p3", "p4", "p5"]
    absent = sorted(set(range(5)) - set(np.unique(labels)))
    for index in absent:
        with pytest.raises(ConfigError, match=f"no pixel is predicted as '{index}'"):
            attribute(predictor, chelsea, size=64, target=index)


# --- many threads, progress, errors


def test_forward_passes_beside_it_stay_bit_identical(predictor, found, chelsea, coffee):
    """Captum's hooks on a shared model would change what other threads get, and theirs what it gets."""
    expected = predictor.extract(coffee, size=64)
    stop, calls = Event(), []

    def go_on():
        while not stop.is_set():
            maps = predictor.extract(coffee, size=64)
            same = np.array_equal(maps.logits, expected.logits) and all(
                np.array_equal(a.coefficients, b.coefficients)
                for a, b in zip(maps.layers, expected.layers, strict=True)
            )
            calls.append(same)

    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(go_on) for _ in range(2)]
        methods = ["gradient_x_token", "integrated_gradients", "grad_cam"]
        runs = [pool.submit(attribute, predictor, chelsea, methods, size=64, steps=8) for _ in range(2)]
        results = [run.result() for run in runs]
        stop.set()
        for each in beside:
            each.result()
    assert len(calls) > 4
    assert all(calls)
    for result in results:
        for ours in result.items:
            np.testing.assert_allclose(ours.map, found[ours.method].map, rtol=1e-3, atol=1e-6)


def test_the_model_is_left_as_it_was(predictor, chelsea):
    model = predictor.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())
    model.train()
    try:
        attribute(predictor, chelsea, size=64, steps=2)
        assert model.training
    finally:
        model.eval()
    assert hooks == sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_progress_grows_to_its_total_and_may_stop_it(predictor, chelsea):
    calls = []
    attribute(predictor, chelsea, size=64, steps=8, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == totals[0] == totals[-1]
    assert len(calls) > 12

    class StopItError(Exception):
        pass

    def stop(done, total):
        if done > total / 2:
            raise StopItError

    with pytest.raises(StopItError):
        attribute(predictor, chelsea, size=64, steps=8, progress=stop)


def test_what_cannot_be_asked(predictor, chelsea, monkeypatch):
    with pytest.raises(ConfigError, match="unknown method 'gradcam'; did you mean 'grad_cam'"):
        attribute(predictor, chelsea, ["gradcam"])
    with pytest.raises(ConfigError, match="at least one method"):
        attribute(predictor, chelsea, [])
    with pytest.raises(ConfigError, match="at least 1 step, got 0"):
        attribute(predictor, chelsea, steps=0)
    with pytest.raises(ConfigError, match="there is no class 5"):
        attribute(predictor, chelsea, target=5)
    monkeypatch.setitem(sys.modules, "captum", None)
    assert check_methods(predictor, ["gradient_x_token"]) == ["gradient_x_token"]
    with pytest.raises(ConfigError, match="pip install captum"):
        attribute(predictor, chelsea)


# --- files and pictures


def test_saved_arrays_and_facts_are_those_of_the_result(found, tmp_path):
    written = save_attributions(found, tmp_path / "out")
    assert set(written) == {"attributions.npz", "attributions.json", "attributions.png"}
    facts = json.loads(written["attributions.json"].read_text())
    assert facts == found.to_dict()
    assert [m["method"] for m in facts["methods"]] == list(METHODS)
    with np.load(written["attributions.npz"]) as arrays:
        for item in found.items:
            assert np.array_equal(arrays[item.method], item.map)
            assert np.array_equal(arrays[f"{item.method}.cells"], item.cells)
    with Image.open(written["attributions.png"]) as picture:
        assert np.array_equal(np.array(picture), attribution_png(found))


def test_colours_are_symmetric_about_the_photo_alone():
    photo = np.full((3, 5, 3), 100, np.uint8)
    values = np.array([[-2, -1, 0, 1, 2]] * 3, np.float32)
    values[2] = np.nan
    drawn = attribution_overlay(photo, values, 2.0).astype(int)
    grey = drawn[0, 2]
    assert len(set(grey.tolist())) == 1
    assert grey[0] > 100
    red, blue = drawn[0, 4], drawn[0, 0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    for end, half in ((red, drawn[0, 3]), (blue, drawn[0, 1])):
        np.testing.assert_allclose(half, (end + grey) / 2, atol=1)
    assert np.array_equal(attribution_overlay(photo, values * 3, 2.0)[0, 0], blue)
    assert (drawn[2] == 35).all()  # cut off: dimmed


def test_a_wild_pixel_does_not_set_the_scale(found):
    item = found["occlusion"]
    values = item.map.copy()
    values[0, 0] = -1e6
    assert scale_end(replace(item, map=values)) == pytest.approx(scale_end(item), rel=0.01)
    nothing = np.full_like(values, np.nan)
    nothing[5:9] = 0
    assert scale_end(replace(item, map=nothing)) == 1.0


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (8, 8)])
def test_photos_of_any_shape_are_drawn(predictor, chelsea, shape):
    small = np.array(Image.fromarray(chelsea).resize(shape[::-1]))
    picture = attribution_png(attribute(predictor, small, ["gradient_x_token", "grad_cam"], size=64))
    assert picture.shape[0] > 400
    assert picture.shape[1] > 900
    assert np.ptp(picture) > 200
