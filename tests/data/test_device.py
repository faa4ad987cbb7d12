import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tvf

from vtviz.data.device import DeviceLoader, _jitter, _resample
from vtviz.data.loading import JITTER, BatchPlan, parse_sizes
from vtviz.data.store import PixelStore
from vtviz.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path, chelsea, astronaut):
    """Ten photos in three shapes, mixed."""
    paths = []
    for i in range(10):
        height, width = ((96, 96), (80, 120), (110, 90))[i % 3]
        image = np.roll(chelsea if i % 2 else astronaut, -20 * i, axis=1)[:300, :400]
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).resize((width, height)).save(paths[-1])
    return PixelStore(paths, workers=1)


def loader(store, augment="none", *, seed=5, rank=0, world=1, batch_size=5, scale=(0.3, 1.0), sizes="64"):
    plan = BatchPlan(len(store), batch_size, parse_sizes(sizes), epochs=2, seed=seed, rank=rank, world=world)
    return DeviceLoader(store, range(50, 60), plan, augment=augment, crop_scale=scale, device=CPU)


def test_unaugmented_batches_are_resized_photos_in_the_plans_order(store):
    batches = loader(store)
    assert len(batches) == 2
    for (images, targets), draws in zip(batches, batches.sampler, strict=True):
        assert targets.tolist() == [50 + draw.image for draw in draws]
        assert (images.dtype, images.shape) == (torch.float32, (5, 3, 64, 64))
        for image, draw in zip(images, draws, strict=True):
            wanted = tvf.resize(store[draw.image], [64, 64], antialias=True).float() / 255
            assert (image - wanted).abs().mean() < 0.02  # of another photo: > 0.1
            others = [
                tvf.resize(store[i], [64, 64], antialias=True).float() / 255 for i in range(10) if i != draw.image
            ]
            assert min((image - other).abs().mean() for other in others) > 0.05


def test_batches_depend_on_seed_epoch_and_their_number_alone(store):
    first = list(loader(store, "jitter"))
    for again in (loader(store, "jitter"),):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    other = loader(store, "jitter")
    other.sampler.set_epoch(1)
    assert not torch.equal(next(iter(other))[0], first[0][0])
    for rank in range(2):  # two processes make the same micro-batches as one
        (part,) = loader(store, "jitter", rank=rank, world=2)
        assert torch.equal(part[0], first[rank][0])
        assert torch.equal(part[1], first[rank][1])


def test_crops_lie_inside_the_image_with_the_area_and_aspect_asked_for(store):
    aspect = np.repeat([1.0, 1.5, 0.6], 1000)  # width / height
    theta = loader(store, "crop", scale=(0.3, 0.5))._crops(aspect, np.random.default_rng(0))
    width, height = np.abs(theta[:, 0, 0]), theta[:, 1, 1]
    assert np.all(np.abs(theta[:, 0, 2]) + width <= 1 + 1e-9)
    assert np.all(np.abs(theta[:, 1, 2]) + height <= 1 + 1e-9)
    assert 0.3 <= (width * height).min() < 0.31
    assert 0.49 < (width * height).max() <= 0.5 + 1e-9
    shape = aspect * width / height  # in pixels
    for value in (1.0, 1.5, 0.6):
        drawn = shape[aspect == value]
        assert 3 / 4 - 1e-9 <= drawn.min() < 0.78
        assert 1.28 < drawn.max() <= 4 / 3 + 1e-9
        assert abs(np.median(np.log(drawn))) < 0.06
    assert 0.45 < (theta[:, 0, 0] < 0).mean() < 0.55
    assert np.abs(theta[:, 0, 2]).max() > 0.3  # and not only in the middle


@pytest.mark.parametrize("shape", [(256, 384), (256, 512), (384, 256), (256, 256)])
def test_crops_are_spread_as_torchvisions(store, shape):
    """Of an image that is not square a crop that does not fit is drawn again; of all ten the middle is taken."""
    torch.manual_seed(0)
    image, scale = torch.empty(3, *shape), (0.08, 1.0)
    found = [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(4000)]
    theirs = np.array(found) / np.tile(shape, 2)  # top, left, height, width as shares
    theta = loader(store, "crop", scale=scale)._crops(np.full(4000, shape[1] / shape[0]), np.random.default_rng(0))
    width, height = np.abs(theta[:, 0, 0]), theta[:, 1, 1]
    ours = np.stack([(1 + theta[:, 1, 2] - height) / 2, (1 + theta[:, 0, 2] - width) / 2, height, width], axis=1)
    for mine, wanted in ((ours, theirs), (ours[:, 2:].prod(axis=1), theirs[:, 2:].prod(axis=1))):
        assert mine.mean(axis=0) == pytest.approx(wanted.mean(axis=0), abs=0.015)
        quantiles = [np.quantile(each, (0.02, 0.1, 0.5, 0.9, 0.98), axis=0) for each in (mine, wanted)]
        assert quantiles[0] == pytest.approx(quantiles[1], abs=0.035)
    ratio = shape[1] * width / (shape[0] * height)
    assert ratio.min() >= 3 / 4 - 1e-9
    assert ratio.max() <= 4 / 3 + 1e-9


def test_what_never_fits_is_the_largest_middle_of_an_allowed_ratio(store):
    aspect = np.array([4.0, 0.25, 1.2])
    theta = loader(store, "crop", scale=(1.0, 1.0))._crops(aspect, np.random.default_rng(0))
    assert np.abs(theta[:, 0, 0]) == pytest.approx([1 / 3, 1, 1])
    assert theta[:, 1, 1] == pytest.approx([1, 1 / 3, 1])
    assert np.all(theta[:, :, 2] == 0)


def test_files_that_cannot_be_read_give_their_place_to_the_next(store, caplog):
    """As on the host, where the pixels do not fit into memory and are read when they are wanted."""
    paths = list(store.paths)
    paths[4] = paths[4].parent / "gone.png"
    later = PixelStore(paths, memory=-1)
    batches = loader(later)
    order = [draw.image for draws in batches.sampler for draw in draws]
    made = list(batches)
    assert torch.cat([targets for _, targets in made]).tolist() == [50 + (5 if i == 4 else i) for i in order]
    found = torch.cat([images for images, _ in made])
    assert torch.equal(found[order.index(4)], found[order.index(5)])
    whole = torch.cat([images for images, _ in loader(store)])
    assert all(torch.equal(found[k], whole[k]) for k, i in enumerate(order) if i != 4)
    assert len(later.skipped) == len(caplog.records) == 1


def test_flip_keeps_the_whole_image(store):
    theta = loader(store, "flip")._crops(np.full(100, 1.5), np.random.default_rng(0))
    assert set(theta[:, 0, 0]) == {-1.0, 1.0}
    assert np.all(theta[:, 1, 1] == 1)
    assert np.all(theta[:, :, 2] == 0)


def test_resampling_finds_the_part_that_is_asked_for():
    pixels = torch.zeros(1, 3, 40, 40)
    pixels[:, :, :20, 20:] = 255  # the upper right quarter
    theta = torch.tensor([[[0.5, 0, 0.5], [0, 0.5, -0.5]]])
    assert _resample(pixels, theta, 20)[:, :, 1:-1, 1:-1].min() == 255
    mirrored = torch.tensor([[[-0.5, 0, -0.5], [0, 0.5, -0.5]]])
    assert _resample(pixels, mirrored, 20)[:, :, 1:-1, 1:-1].max() == 0


def test_jitter_is_the_identity_for_ones_and_stays_in_range(store):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(_jitter(images, torch.ones(3, 4, 1, 1, 1)), images, atol=1e-6)
    grey = _jitter(images, torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1, 1, 1).expand(3, 4, 1, 1, 1))
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-6)
    flat = _jitter(images, torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1, 1).expand(3, 4, 1, 1, 1))
    assert flat.std(dim=(1, 2, 3)).max() < 1e-6
    dark = _jitter(images, torch.tensor([0.5, 1.0, 1.0]).view(3, 1, 1, 1, 1).expand(3, 4, 1, 1, 1))
    assert torch.allclose(dark, images / 2, atol=1e-6)
    for drawn, _ in loader(store, "jitter"):
        assert 0 <= drawn.min() <= drawn.max() <= 1
    # brightness alone may change a photo's mean, and by no more than its range
    plain, jittered = (next(iter(loader(store, a, scale=(1.0, 1.0))))[0] for a in ("crop", "jitter"))
    ratio = jittered.mean(dim=(1, 2, 3)) / plain.mean(dim=(1, 2, 3))
    assert (ratio - 1).abs().max() > 0.05
    assert 1 - JITTER - 0.1 < ratio.min() <= ratio.max() < 1 + JITTER + 0.1


def test_what_the_device_does_not_have_is_an_error(store):
    with pytest.raises(ConfigError, match="augment on the device must be one of none, flip, crop, jitter, got 'auto'"):
        loader(store, "auto")


@pytest.mark.gpu
def test_a_gpu_makes_the_batches_that_the_cpu_makes(store):
    plan = BatchPlan(len(store), 5, parse_sizes("64"), epochs=2, seed=5)
    make = {"augment": "jitter", "crop_scale": (0.3, 1.0)}
    on_gpu = DeviceLoader(store, range(50, 60), plan, device=torch.device("cuda"), **make)
    for ours, theirs in zip(on_gpu, loader(store, "jitter"), strict=True):
        assert torch.allclose(ours[0].cpu(), theirs[0], atol=1e-3)
