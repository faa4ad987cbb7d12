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
    encode_array,
    encode_maps,
    encode_photo,
    encode_prediction,
)
from vtviz.geometry import Geometry
from vtviz.predictor import Predictor
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
    payload = json.loads(json.dumps(encode_maps(maps, predictor.card)))
    assert (payload["model"], payload["trained"]) == ("own", True)
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


def test_statistics_of_the_mean_come_first_and_then_those_of_each_head(maps, predictor):
    dynamic = encode_maps(maps, predictor.card)["layers"][1]["statistics"]
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
