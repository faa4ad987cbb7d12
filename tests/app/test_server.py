"""The served page without a browser: the endpoint, what leaves the server, sessions."""

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from app.explore import VIEWS
from vtviz.shortcuts import extract_tokens

WHOLE, CENTRE = VIEWS


@pytest.fixture(scope="module")
def client(address, tmp_path_factory) -> Client:
    return Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def test_the_endpoint_gives_the_arrays_of_the_api(client, photo, models):
    summary, file = client.predict(handle_file(photo), "own", CENTRE, api_name="/extract")
    expected = extract_tokens(photo, str(models / "own.safetensors"), crop="center")
    assert summary["geometry"] == expected.geometry.to_dict()
    assert [p["label"] for p in summary["prediction"]] == [p.label for p in expected.topk(5)]
    assert [layer["shape"] for layer in summary["layers"]] == [list(x.coefficients.shape) for x in expected.layers]
    assert "photo" not in summary
    with np.load(file) as stored:
        assert set(stored.files) >= {"logits", "block0.coefficients", "block1.coefficients", "block1.attention"}
        np.testing.assert_array_equal(stored["logits"], expected.logits)
        for layer in expected.layers:
            np.testing.assert_array_equal(stored[f"{layer.name}.coefficients"], layer.coefficients)


def test_a_wrong_call_is_answered_with_the_line(client, photo, tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("hello")
    with pytest.raises(AppError, match="is not a JPEG, PNG"):
        client.predict(handle_file(text), "own", WHOLE, api_name="/extract")
    with pytest.raises(AppError, match="this page has no model"):
        client.predict(handle_file(photo), "twn", WHOLE, api_name="/extract")


def test_a_segmentation_s_summary_has_the_areas_and_its_file_the_labels(
    segment_address, segment_shelf, photo, tmp_path
):
    client = Client(segment_address, verbose=False, download_files=tmp_path)
    for model in ("scene", "scene_fpn"):
        summary, file = client.predict(handle_file(photo), model, WHOLE, api_name="/extract")
        expected = segment_shelf.get(model).segment(photo)
        found = summary["segmentation"]
        assert {each["name"]: each["area"] for each in found["classes"]} == dict(
            zip(expected.classes, expected.areas().tolist(), strict=True)
        )
        assert set(found) == {"classes", "matrix", "names"}
        assert [len(rows) for rows in found["matrix"]] == ([8, 8, 8, 8] if model == "scene" else [])
        with np.load(file) as stored:
            np.testing.assert_array_equal(stored["labels"], expected.labels)
