import numpy as np
import pytest
from PIL import Image

from vtviz.data.segmentation import IGNORE, open_segmentation
from vtviz.errors import ConfigError
from vtviz.explain.dissection import best_token, token_iou
from vtviz.predictor import Predictor


@pytest.fixture
def predictor(tiny_model):
    return Predictor(tiny_model())


@pytest.fixture
def outlined(tmp_path, chelsea, coffee, predictor):
    """Photos whose masks are the region of one token (3) of the tiny model, with a rim that is to be ignored."""
    (tmp_path / "classes.txt").write_text("background\nregion\n")
    for split, photos in (("train", [chelsea, coffee]), ("val", [coffee[:, ::-1]])):
        for name in ("images", "masks"):
            (tmp_path / split / name).mkdir(parents=True)
        for i, whole in enumerate(photos):
            photo = np.ascontiguousarray(whole[:160, :200])
            mask = (predictor.extract(photo).at_image_size(0, 3) > 1).astype(np.uint8)
            mask[:5] = IGNORE
            Image.fromarray(photo).save(tmp_path / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
    return tmp_path


def test_a_token_covers_its_own_region_exactly(predictor, outlined):
    train = open_segmentation(outlined, "train")
    done = []
    iou = token_iou(predictor, train, [1], progress=lambda *call: done.append(call))
    assert iou.shape == (16,)
    assert iou[3] == 1
    assert (np.delete(iou, 3) < 1).all()
    assert done == [(1, 2), (2, 2)]
    result = best_token(predictor, train, open_segmentation(outlined, "val"), [1])
    assert (result.layer, result.token, result.iou, result.chosen_iou, result.n) == ("block0", 3, 1, 1, 1)


def test_iou_is_over_all_pixels_that_are_known(predictor, outlined):
    train = open_segmentation(outlined, "train")
    both = either = 0
    for image, mask in (train[0], train[1]):
        region = predictor.extract(image).at_image_size(0, 7) > 2
        inside, known = mask.numpy() == 1, mask.numpy() != IGNORE
        both += (region & inside & known).sum()
        either += ((region | inside) & known).sum()
    assert token_iou(predictor, train, [1], threshold=2)[7] == pytest.approx(both / either)
    # background and region together are everything: a token covers just the share of pixels that it is above uniform on
    everything = token_iou(predictor, train, [0, 1], limit=1)
    region = (predictor.extract(train[0][0]).at_image_size(0, 0) > 1)[5:]
    assert everything[0] == pytest.approx(region.mean())


def test_a_later_layer_has_half_as_many(predictor, outlined):
    assert token_iou(predictor, open_segmentation(outlined, "val"), [1], layer=1).shape == (8,)


def test_what_cannot_be_asked(predictor, outlined, tiny_model):
    train = open_segmentation(outlined, "train")
    with pytest.raises(ConfigError, match="at least one class"):
        token_iou(predictor, train, [])
    with pytest.raises(ConfigError, match="no layer 5"):
        token_iou(predictor, train, [1], layer=5)
