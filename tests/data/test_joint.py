import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from vtviz.data.joint import GREY, Mirror, ScaledCrop, SegmentationEvaluationSet, SegmentationTrainingSet
from vtviz.data.joint import segmentation_loader as loader
from vtviz.data.loading import Draw
from vtviz.data.segmentation import IGNORE, open_segmentation
from vtviz.errors import DataError
from vtviz.geometry import fit

CLASSES = "null", "left arm", "right arm"


def striped(height, width) -> np.ndarray:
    """A mask of vertical thirds, (H, W) uint8."""
    return np.repeat([[0, 1, 2]], height, axis=0).repeat(-(-width // 3), axis=1)[:, :width].astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Photos whose red channel is 80 x the label, of two sizes."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for split, count in (("train", 4), ("val", 3)):
        for name in ("images", "masks"):
            (tmp_path / split / name).mkdir(parents=True)
        for i in range(count):
            labels = striped(40, 60) if i % 2 else striped(60, 48)
            image = np.stack([80 * labels, np.full_like(labels, 7), np.full_like(labels, 9)], axis=-1)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{i}.png")
            Image.fromarray(labels).save(tmp_path / split / "masks" / f"{i}.png")
    return tmp_path


def training_set(folder, **options):
    options = {"eval_size": 48, "scale": (0.5, 2.0), "jitter": 0.0, "seed": 3} | options
    return SegmentationTrainingSet(open_segmentation(folder, "train"), **options)


def test_image_and_labels_stay_together(folder):
    images, labels = training_set(folder)[[Draw(i % 4, epoch, 32) for epoch in range(6) for i in range(4)]]
    assert (images.shape, images.dtype) == ((24, 3, 32, 32), torch.uint8)
    assert (labels.shape, labels.dtype) == ((24, 32, 32), torch.int64)
    inside = labels != IGNORE
    red = images[:, 0].float()
    wrong = 0
    for i in range(24):
        arms = red[i] / 80
        plain = (arms - labels[i]).abs()[inside[i]]
        swapped = (arms - torch.tensor([0, 2, 1, *[0] * 253])[labels[i]]).abs()[inside[i]]
        wrong += min((plain > 0.6).float().mean(), (swapped > 0.6).float().mean())
    assert wrong / 24 < 0.05  # but for the blurred borders of an enlarged stripe
    assert (labels == IGNORE).any()  # at half the scale the window is larger than the photo
    beyond = images.permute(0, 2, 3, 1)[~inside].float()
    assert (beyond - GREY).abs().median() == 0  # blurred where the photo begins
    assert {0, 1, 2} <= set(labels.unique().tolist()) <= {0, 1, 2, IGNORE}


@pytest.mark.parametrize("scale", [0.7, 1.6, 2.0])
def test_labels_lie_where_the_image_does(scale):
    """Both are the same ramp, down and across; the image's is smooth, the labels' goes in steps about it."""
    torch.manual_seed(0)
    crop = ScaledCrop(64, 100, (scale, scale))
    for ramp in (torch.arange(200, dtype=torch.uint8).expand(200, 200), torch.arange(200, dtype=torch.uint8)[:, None]):
        pixels = ramp.expand(200, 200).contiguous()
        image, labels = crop(tv_tensors.Image(pixels[None]), tv_tensors.Mask(pixels))
        assert (type(labels), labels.shape, labels.dtype) == (tv_tensors.Mask, (64, 64), torch.uint8)
        apart = (labels.float() - image[0].float()) * scale / 2  # in pixels of the crop
        assert abs(float(apart.mean())) < 0.15


def test_scale_one_is_what_the_model_will_see():
    """A window of the evaluation's size holds the whole of a square photo."""
    image = tv_tensors.Image(
        torch.arange(100 * 100, dtype=torch.int32).view(1, 100, 100).clamp(max=255).to(torch.uint8)
    )
    crop = ScaledCrop(64, 64, (1.0, 1.0))
    params = crop.make_params([image])
    assert params == {"beyond": [0, 0, 0, 0], "window": (0, 0, 100, 100)}
    doubled = ScaledCrop(64, 64, (2.0, 2.0)).make_params([image])
    assert doubled["window"][2:] == (50, 50)


def test_mirrored_samples_swap_left_and_right():
    mask = tv_tensors.Mask(torch.tensor([[0, 1, 1], [2, 255, 0]], dtype=torch.uint8))
    mirror = Mirror([(1, 2)])
    assert mirror.transform(mask, {"mirror": True}).tolist() == [[2, 2, 0], [0, 255, 1]]
    assert mirror.transform(mask, {"mirror": False}) is mask
    tossed = [mirror.make_params([])["mirror"] for _ in range(60)]
    assert 10 < sum(tossed) < 50


def test_a_sample_depends_on_seed_epoch_and_image_alone(folder):
    data = training_set(folder, jitter=0.4)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    alone = data[[Draw(2, 5, 32)]]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    among = data[[Draw(0, 5, 32), Draw(2, 5, 32)]]
    assert torch.equal(alone[0][0], among[0][1])
    assert torch.equal(alone[1][0], among[1][1])
    assert not torch.equal(data[[Draw(2, 6, 32)]][0], alone[0])
    assert not torch.equal(training_set(folder, jitter=0.4, seed=4)[[Draw(2, 5, 32)]][0], alone[0])
    assert not torch.equal(training_set(folder, jitter=0.0)[[Draw(2, 5, 32)]][0], alone[0])


def test_a_process_that_is_not_forked_gives_the_same_samples(folder):
    data = training_set(folder, jitter=0.4)
    draws = [Draw(2, 5, 32)]
    again = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(a, b) for a, b in zip(again[draws], data[draws], strict=True))


def test_a_file_that_cannot_be_read_is_left_out_up_to_a_bound(folder, caplog):
    data = training_set(folder)
    (folder / "train" / "images" / "1.png").write_bytes(b"no image")
    data[[Draw(1, 0, 32), Draw(1, 1, 32)]]
    assert caplog.text.count("left out") == 1
    assert "1.png" in caplog.text
    for i in (0, 2, 3):
        (folder / "train" / "masks" / f"{i}.png").write_bytes(b"")
    many = training_set(folder)
    many._left_out = set(range(100, 110))  # as many as are borne
    with pytest.raises(DataError, match=r"0\.png"):
        many[[Draw(0, 0, 32)]]
    with pytest.raises(DataError, match=r"^\d+ samples one after the other cannot be read; last: .*png"):
        many[[Draw(0, 1, 32)]]  # after the first epoch not for their number, but there is no other here


def test_validation_batches_have_one_size_and_whole_labels(folder):
    data = SegmentationEvaluationSet(open_segmentation(folder, "val"), lambda shape: fit(shape, size=64, multiple=32))
    batches = list(loader(data, 8))
    assert [(tuple(x.shape), tuple(y.shape)) for x, y in batches] == [
        ((2, 3, 64, 64), (2, 60, 48)),
        ((1, 3, 64, 64), (1, 40, 60)),
    ]
    assert batches[0][0].max() <= 1
    assert np.array_equal(batches[1][1][0].numpy(), striped(40, 60))
    shares = [list(loader(data, 1, rank=rank, world=2)) for rank in (0, 1)]
    assert sorted(len(share) for share in shares) == [1, 2]


def test_limit(folder):
    data = open_segmentation(folder, "train")
    assert len(data.limit(None)) == len(data.limit(9)) == 4
    some = data.limit(2, seed=1)
    assert len(some) == 2
    assert set(some.sources.images) < set(data.sources.images)
    assert [p.stem for p in some.sources.images] == [p.stem for p in some.sources.masks]
    with pytest.raises(DataError, match="at least 1 image, got 0"):
        data.limit(0)
    assert data.estimate_bytes() == pytest.approx(4 * 4 * (60 * 48 + 40 * 60) / 2)
