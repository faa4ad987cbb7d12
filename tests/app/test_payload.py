import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from app.payload import (
    PHOTO_SIDE,
    accuracy_note,
    decode_layer,
    encode,
    encode_array,
    encode_photo,
    encode_prediction,
    encode_shares,
)
from vtviz.errors import DataError
from vtviz.explain.lineage import lineage
from vtviz.explain.token_classes import segmentation_scores, token_classes
from vtviz.geometry import Geometry
from vtviz.predictor import Predictor
from vtviz.segmentation import UNSEEN, from_maps
from vtviz.statistics import map_statistics


@pytest.fixture(scope="module")
def predictor(shelf) -> Predictor:
    return shelf.get("own")


@pytest.fixture(scope="module")
def maps(predictor, astronaut):
    return predictor.extract(astronaut, crop="center")


def decoded(address: str) -> Image.Image:
    head, data = address.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, array_shapes(min_dims=4, max_dims=4, max_side=5), elements=st.floats(width=32)))
def test_arrays_survive_bit_for_bit(array):
    back = decode_layer({"coefficients": encode_array(array), "shape": list(array.shape)})
    assert back.dtype == np.float32
    assert back.tobytes() == array.tobytes()


def test_the_payload_is_json_with_the_maps_as_the_model_made_them(maps, predictor):
    payload = json.loads(json.dumps(encode(maps, None, predictor.card)))
    assert (payload["model"], payload["trained"], payload["segmentation"]) == ("own", True, None)
    assert Geometry.from_dict(payload["geometry"]) == maps.geometry
    assert [p["label"] for p in payload["prediction"]] == [p.label for p in maps.topk(5)]
    for got, layer in zip(payload["layers"], maps.layers, strict=True):
        np.testing.assert_array_equal(decode_layer(got), layer.coefficients)
        assert (got["name"], got["stride"], got["kept"], got["error"]) == (
            layer.name,
            layer.stride,
            layer.kept,
            layer.error,
        )


def decode_shares(part) -> np.ndarray:
    return np.frombuffer(base64.b64decode(part["data"]), "<u2").reshape(part["shape"]) / 65535


def test_attention_projector_and_lineage_travel_with_the_maps(maps, predictor):
    payload = json.loads(json.dumps(encode(maps, None, predictor.card)))
    for got, layer in zip(payload["layers"], maps.layers, strict=True):
        np.testing.assert_allclose(decode_shares(got["attention"]), layer.attention, atol=0.5 / 65535 + 1e-7)
    first, second = payload["layers"]
    np.testing.assert_allclose(
        decode_shares(first["projector"]), maps.layers[0].projector.mean(axis=0), atol=0.5 / 65535 + 1e-7
    )
    assert second["projector"] is None  # the last block has none
    descent = lineage(maps).to_dict()
    assert payload["lineage"] == {key: descent[key] for key in ("joint", "tokens", "links")}
    assert payload["classes"] == list(maps.classes)


@settings(deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-0.5, 1.5, width=32)))
def test_shares_are_kept_to_a_65535th(values):
    np.testing.assert_allclose(decode_shares(encode_shares(values)), np.clip(values, 0, 1), atol=0.5 / 65535 + 1e-7)
    assert encode_shares(None) is None


def test_statistics_of_the_mean_come_first_and_then_those_of_each_head(maps, predictor):
    dynamic = encode(maps, None, predictor.card)["layers"][1]["statistics"]
    layer = maps.layers[1]
    assert len(dynamic) == 1 + layer.num_heads == 5
    assert dynamic[0]["peak"] == layer.statistics().peak
    third = map_statistics(layer.coefficients[2])
    assert dynamic[3] == third.summary() | {"tokens": dynamic[3]["tokens"]}
    assert [t["top10"] for t in dynamic[3]["tokens"]] == list(third.token_top10)
    peaks = layer.times_uniform(head=2).max(axis=(1, 2))
    np.testing.assert_allclose([t["peak"] for t in dynamic[3]["tokens"]], peaks, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "sent", "kind"),
    [
        ((2000, 3000), (853, 1280), "JPEG"),
        ((5000, 1), (1280, 1), "PNG"),
        ((1, 1), (1, 1), "PNG"),
        ((300, 400), (300, 400), "JPEG"),
        ((30, 40), (30, 40), "PNG"),
    ],
)
def test_photos_are_bounded_and_small_ones_exact(size, sent, kind):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = decoded(encode_photo(image))
    assert (picture.size[::-1], picture.format) == (sent, kind)
    if size == sent and kind == "PNG":
        np.testing.assert_array_equal(np.asarray(picture), image)


def test_a_photo_keeps_its_colours(coffee):
    picture = np.asarray(decoded(encode_photo(coffee))).astype(int)
    assert max(coffee.shape) < PHOTO_SIDE
    assert np.abs(picture - coffee).mean() < 3


def test_a_model_without_tokens_gives_photo_and_prediction(shelf, coffee):
    plain = shelf.get("plain")
    payload = encode_prediction(coffee, plain.predict(coffee), plain.name, plain.card)
    assert payload["layers"] == []
    assert payload["geometry"]["original"] == [400, 600]
    assert sum(p["probability"] for p in payload["prediction"]) == pytest.approx(1)


def test_the_note_states_the_card_and_nothing_else(shelf, tiny_card, tiny_model):
    card = shelf.get("own").card
    assert accuracy_note(card) == (
        "Its first guess is right for 62% of 5,450 validation photos. "
        f"It knows {len(card.classes)} classes (see About) and gives a photo of anything else one of them."
    )
    assert accuracy_note(shelf.get("blank").card) == ""
    assert accuracy_note(None) == ""
    claimed = tiny_card(tiny_model(), trained=False, accuracy={"top1": 0.9})
    assert accuracy_note(claimed) == ""


def test_the_note_of_a_segmentation_model_states_its_mean_iou(segment_shelf):
    assert accuracy_note(segment_shelf.get("scene").card) == (
        "The mean IoU of its classes is 0.62 on 101 validation photos (1 = all right). "
        "It knows 6 classes (see About) and gives every pixel one of them, also of photos unlike those it learned from."
    )


# --- segmentation


@pytest.fixture(scope="module")
def scene(segment_shelf) -> Predictor:
    return segment_shelf.get("scene")


def both(predictor, image, **options):
    maps = predictor.extract(image, **options)
    return maps, from_maps(maps, predictor.palette)


def pixels(address: str) -> np.ndarray:
    return np.asarray(decoded(address))


@pytest.mark.parametrize("crop", [None, "center"])
def test_labels_travel_as_one_palette_png_of_indices(scene, coffee, crop):
    maps, result = both(scene, coffee, crop=crop)
    sent = json.loads(json.dumps(encode(maps, result, scene.card)))["segmentation"]
    picture = decoded(sent["labels"])
    assert picture.mode == "P"
    assert picture.getpalette() == [value for index in range(256) for value in (index, index, index)]
    np.testing.assert_array_equal(np.asarray(picture), result.labels)
    assert (np.asarray(picture) == UNSEEN).any() == (crop is not None)
    assert [(each["name"], tuple(each["colour"])) for each in sent["classes"]] == list(
        zip(result.classes, result.palette, strict=True)
    )
    assert [each["area"] for each in sent["classes"]] == result.areas().tolist()
    assert sent["given"] is None


@pytest.mark.parametrize(("size", "sent"), [((1700, 2560), (850, 1280)), ((1, 1), (1, 1)), ((3, 2000), (2, 1280))])
def test_a_large_label_map_is_sampled_and_never_blended(scene, coffee, size, sent):
    image = (
        np.resize(coffee, (*size, 3)) if min(size) < 9 else np.kron(coffee[:425, :512], np.ones((5, 5, 1), np.uint8))
    )
    maps, result = both(scene, np.ascontiguousarray(image[: size[0], : size[1]]), size=128)
    segmentation = encode(maps, result, scene.card)["segmentation"]
    rows, columns = (
        ((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(sent, result.labels.shape, strict=True)
    )
    np.testing.assert_array_equal(pixels(segmentation["labels"]), result.labels[np.ix_(rows, columns)])
    confidence = pixels(segmentation["confidence"])
    assert confidence.shape == tuple(np.minimum(sent, result.geometry.resized))


def test_confidence_is_the_probability_of_the_pixel_s_class(scene, coffee):
    maps, result = both(scene, coffee, size=640, crop="center")  # finer than the photo, so nothing is sampled
    sent = encode(maps, result, scene.card)["segmentation"]
    picture = decoded(sent["confidence"])
    assert picture.mode == "L"
    expected = result.confidence()
    seen = result.labels != UNSEEN
    assert 0 < seen.mean() < 1
    np.testing.assert_allclose(np.asarray(picture)[seen] / 255, expected[seen], atol=0.5 / 255 + 1e-6)
    assert (np.asarray(picture)[~seen] == 0).all()


def test_the_matrix_is_that_of_the_api_and_logits_stay_on_the_server(scene, astronaut):
    maps, result = both(scene, astronaut)
    payload = encode(maps, result, scene.card)
    sent = payload["segmentation"]
    for i in range(len(maps.layers)):
        expected = token_classes(maps, result.labels, layer=i)
        np.testing.assert_allclose(sent["matrix"][i], expected.mass, atol=5.1e-5)
        assert [None if n is None else result.classes[n] for n in sent["names"][i]] == list(expected.names)
    maps_alone = sum(len(layer["coefficients"]) for layer in payload["layers"])
    shares = sum(len(layer[name]["data"]) for layer in payload["layers"] for name in ("attention", "projector"))
    assert shares < 0.7 * maps_alone
    assert len(json.dumps(payload)) < maps_alone + shares + 350_000  # the logits alone would take 1.2 MB
    assert payload["prediction"] == []


def test_a_mask_gives_scores_and_its_own_classes(scene, coffee):
    maps, result = both(scene, coffee, crop="center")
    truth = np.zeros(coffee.shape[:2], np.uint8)
    truth[:, 300:] = 1
    truth[:50] = 255
    sent = encode(maps, result, scene.card, truth)["segmentation"]
    scores = segmentation_scores(result.labels, truth, 6)
    assert sent["miou"] == scores.miou
    assert [each["iou"] for each in sent["classes"]] == [None if np.isnan(v) else v for v in scores.iou.tolist()]
    assert sent["classes"][5]["iou"] is None  # neither predicted nor given
    given = np.where(result.labels == UNSEEN, UNSEEN, truth)
    np.testing.assert_array_equal(pixels(sent["given"]["labels"]), given)
    assert sum(sent["given"]["areas"]) == pytest.approx(1)
    assert sent["given"]["areas"][1] == pytest.approx((given == 1).sum() / (given != UNSEEN).sum())
    np.testing.assert_allclose(sent["given"]["matrix"][0], token_classes(maps, given).mass, atol=5.1e-5)
    with pytest.raises(DataError, match="nothing to compare"):
        encode(maps, result, scene.card, np.full_like(truth, 255))


def test_a_token_that_looks_at_one_class_is_named_by_it(scene, coffee):
    maps, result = both(scene, coffee)
    token = maps.at_image_size(0, 3)
    truth = (token > np.quantile(token, 0.9)).astype(np.uint8) * 2
    names = encode(maps, result, scene.card, truth)["segmentation"]["given"]["names"]
    assert names[0][3] == 2


def test_a_segmentation_model_without_tokens_sends_its_classes_alone(segment_shelf, coffee):
    predictor = segment_shelf.get("scene_fpn")
    result = predictor.segment(coffee)
    payload = encode(None, result, predictor.card)
    assert (payload["layers"], payload["segmentation"]["matrix"], payload["segmentation"]["names"]) == ([], [], [])
    assert payload["geometry"] == result.geometry.to_dict()
    np.testing.assert_array_equal(pixels(payload["segmentation"]["labels"]), result.labels)
