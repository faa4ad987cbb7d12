import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vtviz.errors import ConfigError, DataError
from vtviz.explain import faithfulness
from vtviz.explain.curves import STEPS, area, blurred, bootstrap, curves, order
from vtviz.explain.faithfulness import BASELINES, measure_faithfulness, pick_images, with_random_weights
from vtviz.geometry import fit, to_tensor
from vtviz.predictor import Predictor

# --- curves


@pytest.fixture(scope="module")
def cat(chelsea):
    """A photo as a model's input, (3, 128, 192) in [0, 1]."""
    return to_tensor(chelsea, fit(chelsea.shape[:2], size=157, multiple=64))


def inside(images):
    """A "model" that looks at one region only: how much of its detail is there, 0 to 1."""
    return images[:, :, 40:72, 80:128].std(dim=(1, 2, 3))


def region(value=1.0, elsewhere=0.0):
    cells = np.full((8, 12), elsewhere, np.float32)
    cells[3:5, 5:8] = value
    return cells


def test_pixels_go_in_equal_shares_highest_first():
    cells = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)
    share = order(cells, (128, 192))
    assert np.bincount(share.ravel()).tolist() == pytest.approx([128 * 192 / STEPS] * STEPS, abs=1)
    assert share[-1, -1] == 0
    assert share[0, 0] == STEPS - 1
    assert order(-cells, (128, 192))[:8].max() < 3
    lifted = order(region(), (128, 192))  # a cell of 16 pixels is centred at pixel 16 i
    assert (lifted[48:65, 80:113] == 0).all()


def test_equal_pixels_go_from_no_side_first():
    flat = order(np.zeros((8, 12), np.float32), (128, 192))
    assert np.bincount(flat.ravel()).tolist() == pytest.approx([128 * 192 / STEPS] * STEPS, abs=1)
    for half in (flat[:64], flat[64:], flat[:, :96], flat[:, 96:]):
        assert half.mean() == pytest.approx(flat.mean(), rel=0.02)
    assert np.array_equal(flat, order(np.ones((8, 12), np.float32), (128, 192)))


def test_a_map_that_knows_where_the_model_looks_beats_one_that_does_not(cat):
    nothing = blurred(cat)
    ends = tuple(inside(torch.stack((cat, nothing))).tolist())
    knows, blind = (curves(cells, cat, nothing, ends, inside) for cells in (region(), region(0, 1)))
    assert knows.deletion[0] == knows.insertion[-1] == ends[0]
    assert knows.deletion[-1] == knows.insertion[0] == ends[1]
    assert len(knows.deletion) == STEPS + 1
    assert area(knows.deletion) < area(blind.deletion) - 0.05
    assert area(knows.insertion) > area(blind.insertion) + 0.05
    # what is left after k shares of the one map is what the opposite map has brought in before
    np.testing.assert_allclose(knows.deletion, curves(-region(), cat, nothing, ends, inside).insertion[::-1], atol=0.05)


def test_the_curve_is_that_of_images_changed_by_hand(cat):
    nothing = blurred(cat)
    cells = np.random.default_rng(0).random((8, 12), np.float32)
    share = torch.from_numpy(order(cells, (128, 192)))
    found = curves(cells, cat, nothing, (9.0, 7.0), lambda x: x.mean(dim=(1, 2, 3)))
    for k in (1, 7, STEPS - 1):
        gone = torch.where(share < k, nothing, cat)
        come = torch.where(share < k, cat, nothing)
        assert found.deletion[k] == pytest.approx(float(gone.mean()), abs=1e-6)
        assert found.insertion[k] == pytest.approx(float(come.mean()), abs=1e-6)
    assert (found.deletion[0], found.deletion[-1], found.insertion[0], found.insertion[-1]) == (9, 7, 7, 9)


def test_the_blur_keeps_brightness_and_nothing_else(cat):
    nothing = blurred(cat)
    assert nothing.shape == cat.shape
    np.testing.assert_allclose(nothing.mean(dim=(1, 2)), cat.mean(dim=(1, 2)), atol=0.03)
    steps = (nothing[:, 1:] - nothing[:, :-1]).abs().max()
    assert steps < 0.1 * (cat[:, 1:] - cat[:, :-1]).abs().max()


def test_area_is_the_mean_height():
    assert area(np.full(STEPS + 1, 0.3)) == pytest.approx(0.3)
    assert area(np.linspace([1, 0.5], [0, 0.5], STEPS + 1).T).tolist() == pytest.approx([0.5, 0.5])
    assert area(np.array([0, 1, 1])) == 0.75


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = [low <= 3 <= high for _, low, high, _ in (bootstrap(rng.normal(3, 2, 60), seed) for seed in range(200))]
    assert 0.88 <= np.mean(covered) <= 0.99
    values = rng.normal(3, 2, 400)
    mean, low, high, n = bootstrap(values)
    assert n == 400
    assert mean == pytest.approx(values.mean())
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap(np.array([0.25])) == (0.25, None, None, 1)  # of one image nobody knows
    assert bootstrap(values + 1).low == pytest.approx(low + 1)  # the same seed draws the same images


# --- over a folder

METHODS = ["token_integrated_gradients", "grad_cam"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory, chelsea, coffee):
    folder = tmp_path_factory.mktemp("photos")
    for name, photo in {"cat": chelsea, "cup": coffee}.items():
        Image.fromarray(photo).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


@pytest.fixture(scope="module")
def predictor(tiny_model) -> Predictor:
    return Predictor(tiny_model())


@pytest.fixture(scope="module")
def found(predictor, photos):
    return measure_faithfulness(predictor, sorted(photos.iterdir()), METHODS, size=64)


def test_every_method_is_measured_beside_the_baselines(found, predictor, photos):
    assert [each.method for each in found.methods] == [*METHODS, *BASELINES]
    assert [path.rsplit("/", 1)[1] for path in found.images] == ["cat.png", "cup.png"]
    assert list(found.skipped) == [str(photos / "broken.png")]
    best = [predictor.predict(path, size=64, k=1)[0] for path in found.images]
    assert list(found.targets) == [p.label for p in best]
    for each in found.methods:
        assert each.deletion.shape == each.insertion.shape == (2, STEPS + 1)
        np.testing.assert_allclose(each.deletion[:, 0], [p.probability for p in best], rtol=1e-4)
        assert np.array_equal(each.deletion[:, -1], each.insertion[:, 0])
        assert (each.seconds > 0).all() == (each.method not in BASELINES)
        assert np.isnan(each.randomization).all() == (each.method in BASELINES)
        assert (np.abs(np.nan_to_num(each.randomization)) <= 1).all()
    assert len({each.deletion.tobytes() for each in found.methods}) == len(found.methods)


def test_summary_is_of_areas_and_of_pairs(found):
    summary = found.summary()
    grad_cam, centre = (next(m for m in found.methods if m.method == name) for name in ("grad_cam", "centre"))
    told = summary["grad_cam"]
    assert told["deletion"].mean == pytest.approx(area(grad_cam.deletion).mean())
    assert told["insertion_over_centre"].mean == pytest.approx(
        (area(grad_cam.insertion) - area(centre.insertion)).mean()
    )
    assert told["randomization"].mean == pytest.approx(grad_cam.randomization.mean())
    assert all(each.low <= each.mean <= each.high for each in told.values())
    assert summary["centre"]["deletion_over_centre"] == (0, 0, 0, 2)
    assert "randomization" not in summary["random"]


def test_json_and_arrays(found, tmp_path):
    written = found.save(tmp_path / "out")
    facts = json.loads(written["faithfulness.json"].read_text())
    assert facts == found.to_dict()
    assert (facts["n"], len(facts["skipped"]), facts["input"]) == (2, 1, list(found.input))
    told = facts["methods"][0]
    assert told["deletion"]["low"] <= told["deletion"]["mean"] <= told["deletion"]["high"]
    assert np.mean(told["deletion_curve"][:1]) == pytest.approx(facts["probability"])
    with np.load(written["faithfulness.npz"]) as arrays:
        assert np.array_equal(arrays["grad_cam.insertion"], found.methods[1].insertion)


def test_a_seed_gives_the_same_again_and_another_gives_other_baselines(predictor, photos):
    def measure(seed):
        done = measure_faithfulness(
            predictor, [photos / "cat.png"], ["gradient_x_token"], size=64, seed=seed, randomize=True
        )
        return [(m.deletion, m.randomization) for m in done.methods]

    first, again, other = measure(0), measure(0), measure(1)
    for (a, b), (c, d) in zip(first, again, strict=True):
        np.testing.assert_allclose(a, c, atol=1e-6)
        np.testing.assert_allclose(b, d, atol=1e-6)
    assert np.allclose(first[0][0], other[0][0], atol=1e-6)  # the method's own map does not depend on it
    assert first[0][1] != other[0][1]
    assert not np.allclose(first[1][0], other[1][0], atol=1e-6)
    assert np.allclose(first[2][0], other[2][0], atol=1e-6)  # nor does the centre


def test_random_weights_are_another_network_with_every_branch_awake(predictor):
    twin, other = with_random_weights(predictor, 0), with_random_weights(predictor, 1)
    assert twin.classes == predictor.classes
    theirs = dict(twin.model.named_parameters())
    for name, value in predictor.model.named_parameters():
        assert value.shape == theirs[name].shape
    assert theirs["stage.blocks.0.transformer.ff.norm.weight"].min() == 1
    kernel = "stage.blocks.0.tokenizer.value.conv.weight"
    assert not torch.equal(theirs[kernel], dict(other.model.named_parameters())[kernel])
    assert torch.equal(theirs[kernel], dict(with_random_weights(predictor, 0).model.named_parameters())[kernel])


def test_segmenters_and_models_without_tokens_are_measured_too(tiny_model, photos):
    for name, methods in (("vt_fpn_resnet18", ["gradient_x_token", "grad_cam"]), ("resnet18", ["grad_cam"])):
        predictor = Predictor(tiny_model(name))
        found = measure_faithfulness(predictor, [photos / "cat.png"], methods, size=64, randomize=False)
        assert [each.method for each in found.methods] == [*methods, *BASELINES]
        assert "randomization" not in found.to_dict()["methods"][0]
        for each in found.methods:
            assert ((each.deletion >= 0) & (each.deletion <= 1)).all()
            assert np.ptp(each.deletion) > 0


def test_progress_may_stop_it(predictor, photos):
    calls = []

    def progress(done, total):
        calls.append((done, total))
        if len(calls) == stop:
            raise KeyboardInterrupt

    def measure(images):
        measure_faithfulness(predictor, images, ["gradient_x_token"], size=64, randomize=False, progress=progress)

    stop = None
    images = [photos / "cat.png", photos / "cup.png"]
    measure(images)
    done, totals = zip(*calls, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
    assert 0 < max(np.diff(done)) <= 8  # images at once: nobody waits for the end of a map
    stop = 4
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        measure(images)
    assert len(calls) == stop


def test_images_in_memory_are_measured_as_their_files_are_and_for_any_class(predictor, photos, chelsea):
    def measure(image, **options):
        return measure_faithfulness(predictor, [image], ["grad_cam"], size=64, randomize=False, **options)

    likeliest = predictor.predict(chelsea, size=64, k=2)
    for each, other in zip(measure(chelsea).methods, measure(photos / "cat.png").methods, strict=True):
        assert np.array_equal(each.deletion, other.deletion)
        assert np.array_equal(each.insertion, other.insertion)
    assert measure(chelsea).images == ("image 0",)
    second = measure(chelsea, target=likeliest[1].index)
    assert second.targets == (likeliest[1].label,)
    assert second.methods[0].deletion[0, 0] == pytest.approx(likeliest[1].probability, rel=1e-4)
    with pytest.raises(ConfigError, match="there is no class 9999"):
        measure(chelsea, target=9999)


def test_a_seed_below_zero_is_one_line(predictor, chelsea):
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        measure_faithfulness(predictor, [chelsea], seed=-1)


def test_each_image_has_a_random_map_of_its_own(predictor, chelsea):
    """One for all would make the baseline's interval that of a single map."""
    found = measure_faithfulness(predictor, [chelsea] * 2, ["gradient_x_token"], size=64, randomize=False)
    by_name = {each.method: each for each in found.methods}
    assert not np.allclose(*by_name["random"].deletion)
    for name in ("gradient_x_token", "centre"):
        np.testing.assert_allclose(*by_name[name].deletion, atol=1e-5)


def test_each_image_has_random_weights_of_its_own(predictor, chelsea):
    """One network for all would make the interval that of this network."""
    found = measure_faithfulness(predictor, [chelsea] * 3, ["gradient_x_token"], size=64)
    assert len(set(found.methods[0].randomization.tolist())) == 3
    again = measure_faithfulness(predictor, [b"nothing", chelsea, chelsea], ["gradient_x_token"], size=64)
    assert again.methods[0].randomization == pytest.approx(found.methods[0].randomization[1:], abs=1e-6)


def test_two_seeds_have_no_random_weights_in_common(predictor, chelsea):
    """The next seed would try a measurement again with the same networks, but for one."""
    measured = [measure_faithfulness(predictor, [chelsea] * 3, ["gradient_x_token"], size=64, seed=s) for s in (0, 1)]
    assert len({value for found in measured for value in found.methods[0].randomization.tolist()}) == 6


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_map_that_ranks_nothing_passes_no_check(predictor, chelsea, monkeypatch, weight):
    def dead(given, seed):
        twin = with_random_weights(given, seed)
        if seed == 1:
            nn.init.constant_(twin.model.fc.weight, weight)  # no gradient comes back
        return twin

    monkeypatch.setattr(faithfulness, "with_random_weights", dead)
    found = measure_faithfulness(predictor, [chelsea] * 3, ["gradient_x_token"], size=64)
    told = found.summary()["gradient_x_token"]
    assert np.isnan(found.methods[0].randomization).tolist() == [False, True, False]
    assert told["randomization"].mean == pytest.approx(np.nanmean(found.methods[0].randomization))
    assert (told["randomization"].n, told["deletion"].n) == (2, 3)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_photo_without_the_class_is_skipped_and_named(tiny_model, chelsea):
    model = tiny_model("vt_fpn_resnet18")
    last = [part for part in model.modules() if isinstance(part, nn.Conv2d)][-1]
    nn.init.normal_(last.weight, std=5, generator=torch.Generator().manual_seed(0))  # its photos have several classes
    predictor = Predictor(model)
    tall = np.ascontiguousarray(chelsea[:, :1].repeat(300, axis=1))  # stripes
    labels = [set(np.unique(predictor.segment(photo, size=64).labels)) for photo in (chelsea, tall)]
    (index, *_) = labels[1] - labels[0]
    found = measure_faithfulness(predictor, [chelsea, tall], ["grad_cam"], target=int(index), size=64, randomize=False)
    assert found.images == ("image 1",)
    assert list(found.skipped) == ["image 0"]
    assert found.skipped["image 0"].startswith(f"image 0: no pixel is predicted as '{predictor.classes[index]}'")
    with pytest.raises(ConfigError, match="no pixel is predicted as"):
        measure_faithfulness(predictor, [chelsea], ["grad_cam"], target=int(index), size=64)


@torch.inference_mode()
def test_inference_mode_around_it_changes_nothing(tiny_model, chelsea):
    predictor = Predictor(tiny_model())
    found = measure_faithfulness(predictor, [chelsea], ["gradient_x_token", "integrated_gradients"], size=64)
    with torch.inference_mode(False):
        again = measure_faithfulness(predictor, [chelsea], ["gradient_x_token", "integrated_gradients"], size=64)
    for ours, theirs in zip(found.methods, again.methods, strict=True):
        np.testing.assert_allclose(ours.deletion, theirs.deletion, atol=1e-6)
        np.testing.assert_allclose(ours.randomization, theirs.randomization)


def test_images_are_picked_evenly_and_by_seed(tmp_path):
    files = [tmp_path / f"{i:03d}.png" for i in range(97)]
    for seed in (0, 1):
        picked = [int(path.stem) for path in pick_images(files, 10, seed)]
        assert all(i * 9.7 - 1 < place < (i + 1) * 9.7 for i, place in enumerate(picked))
        assert picked == [int(path.stem) for path in pick_images(files, 10, seed)]
    assert pick_images(files, 10, 0) != pick_images(files, 10, 1)
    for n in (60, 64, 96):  # stretches of less than two files share some with their neighbours
        picked = [pick_images(files, n, seed) for seed in range(50)]
        assert all(len(set(each)) == n and each == sorted(each) for each in picked)
        assert set().union(*picked) == set(files)
    assert pick_images(files, 200) == files
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        pick_images(files, 0)


def test_a_folder_of_nothing_is_one_line(predictor, photos):
    with pytest.raises(DataError, match=r"none of 1 images can be used: .*broken\.png"):
        measure_faithfulness(predictor, [photos / "broken.png"], ["gradient_x_token"], size=64)
