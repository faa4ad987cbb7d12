import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from vtviz.data.classes import make_palette
from vtviz.errors import ConfigError
from vtviz.geometry import Geometry, fit, upsample
from vtviz.predictor import Predictor
from vtviz.segmentation import BAND, UNSEEN, Segmentation, from_maps, label_map

CLASSES = ("road", "sky", "tree", "car")
PALETTE = make_palette(CLASSES)


def smooth_logits(geometry, classes: int = 4) -> np.ndarray:
    """Logits that vary slowly and cross each other often."""
    y, x = np.indices(geometry.input, dtype=np.float32)
    waves = [np.sin(y / (3 + c) + c) + np.cos(x / (4 + 2 * c) - c) for c in range(classes)]
    return 3 * np.stack(waves).astype(np.float32)


def make(geometry, logits: np.ndarray | None = None) -> Segmentation:
    logits = smooth_logits(geometry) if logits is None else logits
    return Segmentation(label_map(logits, geometry), logits, CLASSES, PALETTE, geometry, "model", source="street.jpg")


SHAPES = [(300, 451), (1, 1), (3, 2000), (2 * BAND + 1, 31), (700, 90), (BAND, BAND)]


@pytest.mark.parametrize("crop", [None, "center"])
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_are_the_argmax_of_the_logits_drawn_at_the_images_size(shape, crop):
    geometry = fit(shape, size=96, crop=crop, multiple=32)
    logits = smooth_logits(geometry)
    drawn = upsample(logits, geometry, stride=1)  # the same positions by dense matrix products
    unseen = np.isnan(drawn[0])
    labels = label_map(logits, geometry)
    assert (labels.dtype, labels.shape) == (np.uint8, shape)
    assert np.array_equal(labels == UNSEEN, unseen)
    assert unseen.any() == (crop is not None and shape != (1, 1))
    differ = (labels != drawn.argmax(axis=0)) & ~unseen
    first, second = np.sort(drawn, axis=0)[[-1, -2]]
    assert (first - second)[differ].max(initial=0) < 1e-4  # only where two classes tie


def test_borders_lie_where_the_input_has_them():
    geometry = Geometry((300, 400), (96, 128), (0, 0), (96, 128))
    logits = np.zeros((2, *geometry.input), np.float32)
    assert not label_map(logits, geometry).any()  # of equal ones the first
    logits[0], logits[1, :, 64:] = 0.4, 1
    labels = label_map(logits, geometry)
    # class 1 rises from 0 to 1 between the centres of columns 63 and 64, at 197.9 and 201.1 of the photo's pixels
    assert np.array_equal(labels, np.repeat([[0] * 200 + [1] * 200], 300, axis=0))


def test_a_pixel_on_the_edge_of_a_crop_is_seen_as_it_is_in_maps():
    geometry = Geometry((10, 10), (20, 20), (3, 3), (14, 14))  # both edges go through the centres of pixels
    labels = label_map(smooth_logits(geometry), geometry)
    seen = np.zeros((10, 10), bool)
    seen[1:9, 1:9] = True
    assert np.array_equal(labels != UNSEEN, seen)
    assert np.array_equal(~np.isnan(upsample(np.ones((14, 14), np.float32), geometry, stride=1)), seen)


def test_areas_count_the_pixels_that_were_seen():
    whole, cropped = make(fit((300, 451), size=96)), make(fit((300, 451), size=96, crop="center"))
    for segmentation in (whole, cropped):
        seen = segmentation.labels != UNSEEN
        assert segmentation.pixels().sum() == seen.sum()
        np.testing.assert_allclose(
            segmentation.areas(), [(segmentation.labels[seen] == c).mean() for c in range(len(CLASSES))]
        )
        assert segmentation.areas().sum() == pytest.approx(1)
    assert (cropped.labels == UNSEEN).any()
    blind = make(fit((1, 5000), size=96, crop="center"))  # the square lies between the centres of two pixels
    assert (blind.labels == UNSEEN).all()
    assert blind.areas().tolist() == [0, 0, 0, 0]
    assert np.isnan(blind.confidence()).all()


@pytest.mark.parametrize("crop", [None, "center"])
def test_probabilities_and_confidence(crop):
    segmentation = make(fit((200, 150), size=96, crop=crop))
    unseen = segmentation.labels == UNSEEN
    probabilities = segmentation.probabilities()
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (4, 200, 150))
    assert np.array_equal(np.isnan(probabilities).any(axis=0), unseen)
    seen = probabilities[:, ~unseen]
    np.testing.assert_allclose(seen.sum(axis=0), 1, atol=1e-5)
    assert seen.min() >= 0
    powers = np.exp(segmentation.logits.astype(np.float64))
    drawn = upsample(powers / powers.sum(axis=0), segmentation.geometry, stride=1)
    np.testing.assert_allclose(probabilities, drawn, atol=1e-5)
    confidence = segmentation.confidence()
    own = np.take_along_axis(probabilities, np.where(unseen, 0, segmentation.labels)[None].astype(int), axis=0)[0]
    np.testing.assert_array_equal(confidence, np.where(unseen, np.float32(np.nan), own))
    # labels are of resampled logits and probabilities resampled themselves: they agree but for some border pixels
    assert (probabilities.argmax(axis=0) == segmentation.labels)[~unseen].mean() > 0.97


def test_large_logits_do_not_overflow():
    geometry = fit((64, 64), size=64)
    segmentation = make(geometry, 1000 * smooth_logits(geometry))
    assert np.nanmin(segmentation.confidence()) > 0
    assert np.isfinite(segmentation.probabilities()).all()


def test_to_dict_is_json_and_complete():
    segmentation = make(fit((300, 451), size=96, crop="center"))
    stated = json.loads(json.dumps(segmentation.to_dict(), allow_nan=False))
    assert (stated["image"], stated["model"], stated["size"], stated["input"]) == (
        "street.jpg", "model", [300, 451], [96, 96],
    )  # fmt: skip
    assert [(c["index"], c["name"], tuple(c["colour"])) for c in stated["classes"]] == [
        (i, name, PALETTE[i]) for i, name in enumerate(CLASSES)
    ]
    assert [c["pixels"] for c in stated["classes"]] == segmentation.pixels().tolist()
    assert [c["area"] for c in stated["classes"]] == segmentation.areas().tolist()
    assert stated["unseen"] + sum(c["pixels"] for c in stated["classes"]) == 300 * 451


def test_token_maps_and_segmentation_come_from_one_run(tiny_model, chelsea):
    predictor = Predictor(tiny_model("vt_fpn_resnet18"))
    maps = predictor.extract(chelsea, size=96, layers=[3])
    ours, other = from_maps(maps, predictor.palette), predictor.segment(chelsea, size=96)
    assert np.array_equal(ours.labels, other.labels)
    assert np.array_equal(ours.logits, other.logits)
    assert ours.to_dict() == other.to_dict()
    assert len(np.unique(ours.labels)) > 1
    assert ours.image is maps.image


def test_what_cannot_work_is_one_line(tiny_model, chelsea):
    maps = Predictor(tiny_model("vt_fpn_resnet18")).extract(chelsea, size=64)
    with pytest.raises(ConfigError, match="5 classes need as many colours, got 4"):
        from_maps(maps, PALETTE)
    with pytest.raises(ConfigError, match=r"labels need a segmentation model's logits.*\(5,\)"):
        from_maps(replace(maps, logits=np.zeros(5, np.float32)), PALETTE)
    with pytest.raises(ConfigError, match=r"\(32, 32\) pixels do not fit a model input of"):
        label_map(np.zeros((3, 32, 32), np.float32), maps.geometry)
    with pytest.raises(ConfigError, match="1 to 255 classes, got 256"):
        label_map(np.zeros((256, *maps.geometry.input), np.float32), maps.geometry)


def test_labels_of_a_large_photo_take_little_more_memory_than_themselves():
    geometry = fit((3000, 4000), size=320, multiple=32)
    logits = smooth_logits(geometry, 54)
    tracemalloc.start()
    try:
        labels = label_map(logits, geometry)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert labels.nbytes == 12e6
    assert len(np.unique(labels)) > 20
    assert peak < 32e6


def test_a_photo_of_4000_x_3000_with_54_classes_fits_into_1500_mb():
    """All of it, from the photo to labels and facts, with PyTorch and the model."""
    code = r"""
import re, numpy as np, vtviz
model = vtviz.create_model("vt_fpn_resnet18", num_classes=54).eval()
photo = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
found = vtviz.segment(photo, vtviz.Predictor(model), size=320)
assert found.labels.shape == (3000, 4000)
assert sum(c["pixels"] for c in found.to_dict()["classes"]) == 12_000_000
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])  # ru_maxrss would be the parent's too
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 1.5e9
