import json

import numpy as np
import pytest
from PIL import Image

import vtviz
from vtviz.errors import CheckpointError, ConfigError
from vtviz.train.evaluation import evaluate_classifier
from vtviz.train.publish import publish_classifier


@pytest.fixture
def masks(tmp_path, chelsea):
    """Two photos with a "person" in the middle."""
    (tmp_path / "masks.d").mkdir()
    root = tmp_path / "masks.d"
    (root / "classes.txt").write_text("background\nperson\n")
    for split in ("train", "val"):
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        Image.fromarray(chelsea[:96, :96]).save(root / split / "images" / "a.png")
        mask = np.zeros((96, 96), np.uint8)
        mask[24:72, 24:72] = 1
        Image.fromarray(mask).save(root / split / "masks" / "a.png")
    return root


def test_the_card_says_what_evaluate_says(trained, balls, masks, tmp_path):
    said = []
    target = tmp_path / "out" / "balls18.safetensors"
    card = publish_classifier(
        trained, target, balls, sizes=[32], also=[balls], masks=masks, licence="mine", terms="toys", say=said.append
    )
    again = evaluate_classifier(str(target), balls)
    assert (card.accuracy["top1"], card.accuracy["top5"], card.accuracy["n"]) == (again.top1, again.top5, again.n)
    assert card.accuracy["top1_by_size"] == {
        "48": again.top1,
        "32": evaluate_classifier(str(target), balls, size=32).top1,
    }
    assert card.accuracy["also"] == {"data": {"top1": again.top1, "n": 12}}
    assert {k: card.tokens[k] for k in ("block0", "block1")} == again.tokens
    person = card.tokens["person"]
    assert person["n"] == 1
    assert 0 <= person["untrained_iou"] <= 1
    assert person["layer"] == "block0"
    assert (card.name, card.licence, card.data["terms"]) == ("balls18", "mine", "toys")
    assert json.loads(target.with_suffix(".json").read_text())["accuracy"] == card.accuracy
    loaded = vtviz.load_model(target, "cpu")
    assert loaded.card == card
    assert said[0].startswith("scoring balls18")


def test_a_model_without_tokens_has_no_token_figures(tiny_job, balls, masks, tmp_path):
    from vtviz.train.run import train

    run = train(tiny_job("plain", model="resnet18", recipe={"epochs": 1}))
    card = publish_classifier(run, tmp_path / "plain.safetensors", balls, sizes=[], masks=masks)
    assert card.tokens == {}


def test_nothing_to_publish(tmp_path, balls):
    with pytest.raises(CheckpointError):
        publish_classifier(tmp_path / "none", tmp_path / "x.safetensors", balls)


def test_two_folders_of_one_name_would_share_a_place_in_the_card(tmp_path, balls):
    folders = [tmp_path / "a" / "photos", tmp_path / "b" / "photos"]
    for folder in folders:
        (folder / "val").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"also: .*/a/photos and .*/b/photos would both be 'photos' in the card"):
        publish_classifier(tmp_path / "none", tmp_path / "x.safetensors", balls, also=folders)


def test_the_verb(trained, balls, tmp_path, capsys):
    from vtviz.cli import main

    out = tmp_path / "verb.safetensors"
    arguments = ["publish", "--run", str(trained), "--out", str(out), "--data", str(balls)]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--sizes", "", "--terms", "toys"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    card = vtviz.load_model(out, "cpu").card
    assert printed == {"accuracy": card.accuracy, "tokens": card.tokens}
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--sizes", "a,b"])
    assert stop.value.code == 2
    assert "--sizes takes numbers of pixels" in capsys.readouterr().err
