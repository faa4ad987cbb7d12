"""The verbs ``attribute`` and ``faithfulness``."""

import json

import numpy as np
import pytest
from PIL import Image
from torch import nn

from vtviz.cli import main
from vtviz.explain import faithfulness
from vtviz.explain.attribution import attribute
from vtviz.explain.faithfulness import measure_faithfulness, pick_images, with_random_weights
from vtviz.predictor import load_model


@pytest.fixture
def run(run, tiny_checkpoint):
    """Runs a verb with the tiny model on the CPU: exit code, stdout, stderr."""

    def call(verb, *args):
        return run(verb, *args, "--model", "tiny", "--device", "cpu", "--size", "64")

    return call


@pytest.fixture
def photos(tmp_path, chelsea, coffee):
    """A data folder: photos/val/cats/*.png, photos/val/cups/*.png."""
    for name, photo in {"cats": chelsea, "cups": coffee}.items():
        folder = tmp_path / "photos" / "val" / name
        folder.mkdir(parents=True)
        Image.fromarray(photo[:160, :200]).save(folder / "left.png")
        Image.fromarray(photo[:160, -200:]).save(folder / "right.png")
    return tmp_path / "photos"


FAST = ("--method", "gradient_x_token", "--method", "grad_cam")


def test_attribute_says_what_speaks_for_the_class_and_writes_it(run, photos, tmp_path):
    photo = photos / "val" / "cats" / "left.png"
    code, out, err = run("attribute", photo, *FAST, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.startswith("tiny: what speaks for class ")
    assert "2 grad_cam" in out
    assert "gradient_x_token, block1: token " in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "attributions.png", "attributions.npz", "attributions.json",
    }  # fmt: skip


def test_attribute_json_is_what_the_api_says(run, photos, tmp_path):
    photo = photos / "val" / "cats" / "left.png"
    code, out, err = run("attribute", photo, *FAST, "--class", "class 3", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    found = attribute(load_model("tiny", "cpu"), photo, ["gradient_x_token", "grad_cam"], target=3, size=64)
    assert told["target"]["label"] == "class 3"
    assert told["image"] == str(photo)
    assert "files" not in told
    for ours, theirs in zip(told["methods"], found.to_dict()["methods"], strict=True):
        assert ours.pop("seconds") > 0
        theirs.pop("seconds")
        assert ours == theirs
    assert told["agreement"] == found.agreement.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class", "class 9"], "the model has no class 'class 9'"),
        (["--method", "lime"], "unknown method 'lime'; choose from"),
        (["--steps", "0"], "--steps"),
        (["--crop", "left"], "'left'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_attribute_says_in_one_line_what_is_wrong(run, photos, options, message):
    code, out, err = run("attribute", photos / "val" / "cats" / "left.png", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_faithfulness_prints_a_table_and_json_as_the_api_says(run, photos, tmp_path):
    command = ("faithfulness", "--data", photos, "--n", "2", "--method", "gradient_x_token", "--seed", "3")
    code, out, err = run(*command, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.startswith("tiny on 2 images")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert [line.count("[") for line in (rows["gradient_x_token"], rows["random"], rows["centre"])] == [4, 3, 3]
    code, out, err = run(*command, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    picked = pick_images(sorted(photos.rglob("*.png")), 2, 3)
    assert [i["image"] for i in told["images"]] == [str(p) for p in picked]
    assert {p.parent.name for p in picked} == {"cats", "cups"}
    found = measure_faithfulness(load_model("tiny", "cpu"), picked, ["gradient_x_token"], size=64, seed=3).to_dict()
    saved = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    for other in (found, saved):
        for ours, theirs in zip(told["methods"], other["methods"], strict=True):
            for measure in ("deletion", "insertion", "insertion_over_centre"):
                assert ours[measure] == pytest.approx(theirs[measure])
    with np.load(tmp_path / "out" / "faithfulness.npz") as arrays:
        assert arrays["gradient_x_token.deletion"].mean(axis=0).tolist() == pytest.approx(
            saved["methods"][0]["deletion_curve"]
        )


def test_faithfulness_without_random_weights_does_not_speak_of_them(run, photos):
    code, out, _ = run("faithfulness", "--data", photos, "--n", "1", "--method", "grad_cam", "--no-randomize", "--json")
    assert code == 0
    assert "randomization" not in out


def test_faithfulness_of_one_photo_has_no_interval(run, photos):
    code, out, err = run("faithfulness", "--data", photos, "--n", "1", "--method", "gradient_x_token")
    assert (code, err) == (0, "")
    (row,) = (line for line in out.splitlines() if line.split()[0] == "gradient_x_token")
    assert row.count("[–]") == 4
    code, out, _ = run("faithfulness", "--data", photos, "--n", "1", "--method", "gradient_x_token", "--json")
    told = json.loads(out)["methods"][0]
    assert [told[name]["low"] for name in ("deletion", "randomization")] == [None, None]


def test_faithfulness_says_of_how_many_photos_a_mean_is(run, photos, monkeypatch):
    def dead(given, seed):
        twin = with_random_weights(given, seed)
        if seed:
            nn.init.zeros_(twin.model.fc.weight)  # no gradient comes back
        return twin

    monkeypatch.setattr(faithfulness, "with_random_weights", dead)
    code, out, err = run("faithfulness", "--data", photos, "--n", "3", "--method", "gradient_x_token")
    assert (code, err) == (0, "")
    (row,) = (line for line in out.splitlines() if line.split()[0] == "gradient_x_token")
    assert row.count("[") == 4
    assert row.count("[–] of 1") == 1


def test_faithfulness_skips_a_bad_image_and_says_so(run, photos):
    flat = photos / "val" / "cats"
    (flat / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    code, out, err = run("faithfulness", "--data", flat, "--method", "grad_cam", "--no-randomize", "--json")
    assert code == 2
    assert err.count("\n") == 1
    assert "broken.png" in err
    told = json.loads(out)
    assert (told["n"], len(told["skipped"])) == (2, 1)
    code, out, err = run("faithfulness", "--data", flat / "nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_help_names_methods_and_measures(capsys):
    for verb, words in {"attribute": ("grad_cam", "occlusion"), "faithfulness": ("deletion", "insertion")}.items():
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        out = capsys.readouterr().out
        assert all(word in out for word in words)
        assert f"vtviz {verb}" in out
