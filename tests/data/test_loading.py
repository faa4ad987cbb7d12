import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vtviz import geometry
from vtviz.data.loading import (
    AUGMENTATIONS,
    BatchPlan,
    Draw,
    EvaluationSet,
    SameShapeBatches,
    SizeStep,
    TrainingSet,
    evaluation_loader,
    mix_seed,
    parse_sizes,
    training_loader,
    training_transform,
)
from vtviz.data.store import PixelStore
from vtviz.errors import ConfigError
from vtviz.predictor import Predictor
from vtviz.train.run import _default_workers

SIZES = parse_sizes("32-64@0.5,64")


@pytest.fixture
def store(tmp_path, chelsea, coffee):
    """Twelve crops of photos, of two shapes, the sixth file damaged."""
    paths = []
    for i in range(12):
        side = (60, 90) if i % 2 else (70, 50)
        image = (chelsea if i % 3 else coffee)[i : i + side[0], 5 * i : 5 * i + side[1]]
        paths.append(tmp_path / f"{i:02d}.png")
        Image.fromarray(image).save(paths[-1])
    paths[5].write_bytes(b"nothing")
    return PixelStore(paths, workers=1)


TARGETS = list(range(100, 112))


def plan(length=23, batch_size=4, *, epochs=4, seed=7, **place):
    return BatchPlan(length, batch_size, SIZES, epochs=epochs, seed=seed, **place)


def epoch_of(plan, epoch):
    plan.set_epoch(epoch)
    return list(plan)


# --- sizes


def test_sizes():
    assert parse_sizes("64-96@0.5, 128") == (SizeStep(0.5, 64, 96), SizeStep(1, 128, 128))
    assert parse_sizes("224") == (SizeStep(1, 224, 224),)


@pytest.mark.parametrize(
    "text", ["", "big", "64-", "96-64", "16", "64-2048", "64@0.5", "64@0.5,96@0.4,128", "64,96", "64@x"]
)
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match=r"^sizes: "):
        parse_sizes(text)


# --- the plan


def test_an_epoch_draws_every_image_once_and_each_batch_has_one_size():
    batches = epoch_of(plan(24), 0)
    assert len(batches) == len(plan(24)) == 6
    assert sorted(draw.image for batch in batches for draw in batch) == list(range(24))
    assert all(len({draw.size for draw in batch}) == 1 for batch in batches)
    assert all(len(batch) == 4 for batch in epoch_of(plan(23), 0))  # a smaller last batch is left for another epoch


def test_sizes_follow_the_progress():
    sizes = [{draw.size for batch in epoch_of(plan(400), epoch) for draw in batch} for epoch in range(4)]
    assert sizes[0] == sizes[1] == {32, 48, 64}
    assert sizes[2] == sizes[3] == {64}


def test_the_order_depends_on_seed_and_epoch_alone():
    first = epoch_of(plan(), 1)
    assert first == epoch_of(plan(), 1)
    used = plan()
    list(used)
    assert epoch_of(used, 1) == first
    assert epoch_of(plan(), 2) != first
    assert epoch_of(plan(seed=8), 1) != first
    assert {draw.epoch for batch in first for draw in batch} == {1}


@pytest.mark.parametrize("world", [2, 3])
def test_process_r_of_n_takes_every_nth_micro_batch(world):
    whole = epoch_of(plan(24), 1)
    for rank in range(world):
        part = plan(24, rank=rank, world=world)
        assert epoch_of(part, 1) == whole[rank::world]
        assert len(part) == 6 // world


@pytest.mark.parametrize(("length", "size"), [(9, 8), (3, 3), (17, 8)])
def test_micro_batches_of_a_step_that_the_set_does_not_fill_have_one_size(length, size):
    """An image alone in one would weigh as much as eight, and batch norm may have no statistics of it."""
    drawn = list(BatchPlan(length, 8, SIZES, epochs=1, seed=0, accumulate=4))
    assert [len(batch) for batch in drawn] == [size] * 4
    counts = np.bincount([draw.image for batch in drawn for draw in batch], minlength=length)
    assert counts.max() - counts.min() <= 1  # round and round


@pytest.mark.parametrize("length", [3, 5, 16, 23, 24, 30, 33])
def test_processes_and_accumulated_steps_see_the_same_micro_batches(length):
    """Four of them are a step of the optimiser; whoever takes them, an epoch is as many whole steps."""
    whole = epoch_of(plan(length, accumulate=4), 1)
    assert len(whole) == len(plan(length, accumulate=4)) == 4 * max(1, length // 16)
    for world, accumulate in ((2, 2), (4, 1)):
        parts = [plan(length, rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
        assert [epoch_of(part, 1) for part in parts] == [whole[rank::world] for rank in range(world)]
        assert {len(part) % accumulate for part in parts} == {0}


def test_a_set_smaller_than_a_batch_is_one_batch_for_every_process():
    assert [len(batch) for batch in epoch_of(plan(3), 0)] == [3]
    for rank in range(2):
        (batch,) = epoch_of(plan(3, rank=rank, world=2), 0)
        assert sorted(draw.image for draw in batch) == [0, 1, 2]


@pytest.mark.parametrize("bad", [{"length": 0}, {"batch_size": 0}])
def test_an_empty_plan_is_an_error(bad):
    with pytest.raises(ConfigError, match="at least one image and a batch of one"):
        plan(**bad)


# --- training batches


def batches_of(store, *, workers=0, seed=7, epochs=(0, 1), augment="jitter"):
    data = TrainingSet(store, TARGETS, augment=augment, crop_scale=(0.3, 1), seed=seed)
    the_plan = BatchPlan(len(data), 4, SIZES, epochs=4, seed=3)
    loader = training_loader(data, the_plan, workers=workers)
    for epoch in epochs:
        the_plan.set_epoch(epoch)
        yield from loader


def test_batches_are_augmented_uint8_with_the_targets_of_their_images(store):
    images, targets = next(batches_of(store, augment="none"))
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, images.shape[-1], images.shape[-1])
    the_plan = BatchPlan(11, 4, SIZES, epochs=4, seed=3)
    for image, target, draw in zip(images, targets, epoch_of(the_plan, 0)[0], strict=True):
        assert target == TARGETS[store.kept[draw.image]]  # the damaged file moves no target
        assert torch.equal(image, v2.Resize((draw.size, draw.size), antialias=True)(store[draw.image]))


def test_augmentation_depends_on_seed_epoch_and_image_alone(store):
    serial = list(batches_of(store))
    torch.rand(5)
    for other in (batches_of(store), batches_of(store, workers=2)):
        for ours, theirs in zip(serial, other, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
    assert not torch.equal(serial[0][0], next(batches_of(store, seed=8))[0])
    data = TrainingSet(store, TARGETS, augment="crop", crop_scale=(0.3, 1), seed=7)
    state = torch.get_rng_state()
    alone, _ = data[[Draw(3, 0, 48)]]
    assert torch.equal(torch.get_rng_state(), state)
    among, _ = data[[Draw(1, 0, 48), Draw(3, 0, 48)]]
    later, _ = data[[Draw(3, 1, 48)]]
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(alone, later)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_every_augmentation_gives_squares(augment, chelsea):
    image = torch.from_numpy(chelsea.copy()).permute(2, 0, 1)
    out = training_transform(48, augment, (0.5, 1))(image)
    assert (out.shape, out.dtype) == ((3, 48, 48), torch.uint8)


def test_an_unknown_augmentation_is_an_error_at_once(store):
    with pytest.raises(ConfigError, match=r"augment must be one of none, flip, .*, got 'blur'"):
        TrainingSet(store, TARGETS, augment="blur", crop_scale=(0.3, 1), seed=0)


def test_files_that_cannot_be_read_later_give_their_place_to_the_next(store):
    later = PixelStore([*store.paths[:3], store.paths[0].parent / "gone.png", *store.paths[3:]], memory=-1)
    data = TrainingSet(later, TARGETS, augment="none", crop_scale=(1, 1), seed=0)
    images, targets = data[[Draw(3, 0, 32), Draw(4, 0, 32)]]
    assert targets.tolist() == [TARGETS[4]] * 2
    assert torch.equal(images[0], images[1])


def test_seeds_differ_and_stay():
    seeds = [mix_seed(a, b, c) for a in range(3) for b in range(10) for c in range(10)]
    assert len(set(seeds)) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(0, 1, 2) == 1535930435702422785


# --- evaluation batches


def test_evaluation_sees_what_the_predictor_sees(store, tiny_model):
    predictor = Predictor(tiny_model())
    data = EvaluationSet(store, TARGETS, predictor.fit)
    for i in (0, 7):
        image = store[i].permute(1, 2, 0).numpy()
        pixels, target = data[i]
        assert target == TARGETS[store.kept[i]]
        assert data.input_shape(i) == tuple(pixels.shape[1:])
        logits, _ = predictor.forward(pixels[None])
        assert np.array_equal(logits[0].numpy(), predictor.extract(image).logits)


def test_evaluation_batches_have_one_shape_and_miss_nothing(store):
    data = EvaluationSet(store, TARGETS, lambda shape: geometry.fit(shape, size=64))
    batches = list(evaluation_loader(data, 4))
    assert sorted(t for _, targets in batches for t in targets.tolist()) == [t for t in TARGETS if t != 105]
    assert len({tuple(images.shape[2:]) for images, _ in batches}) == 2
    assert max(len(targets) for _, targets in batches) == 4
    assert len(evaluation_loader(data, 4)) == len(batches) == 4


def test_processes_share_the_evaluation_out():
    shapes = [(1, 1), (2, 2), (1, 1), (1, 1), (2, 2)]
    whole = list(SameShapeBatches(shapes, 2))
    assert whole == [[0, 2], [3], [1, 4]]
    parts = [list(SameShapeBatches(shapes, 2, rank=rank, world=2)) for rank in range(2)]
    assert Counter(map(tuple, parts[0] + parts[1])) == Counter(map(tuple, whole))


@pytest.mark.parametrize(("batch_size", "world"), [(64, 2), (2, 4), (64, 5), (3, 5)])
def test_each_image_is_counted_once_and_no_process_goes_empty(batch_size, world):
    """It would wait for the others for ever."""
    shapes = [(1, 1), (1, 1), (1, 1), (1, 1), (2, 2)]
    parts = [list(SameShapeBatches(shapes, batch_size, rank=rank, world=world)) for rank in range(world)]
    assert all(parts)
    assert sorted(i for part in parts for batch in part for i in batch) == [0, 1, 2, 3, 4]
    assert all(len({shapes[i] for i in batch}) == 1 for part in parts for batch in part)


def test_with_fewer_images_than_processes_each_takes_all():
    parts = [list(SameShapeBatches([(1, 1), (2, 2)], 8, rank=rank, world=3)) for rank in range(3)]
    assert parts == [[[0], [1]]] * 3


def test_data_processes_are_forked_on_linux_and_nowhere_else(store, monkeypatch):
    data, the_plan = (
        TrainingSet(store, TARGETS, augment="none", crop_scale=(1, 1), seed=0),
        BatchPlan(5, 4, SIZES, epochs=1, seed=0),
    )
    for system, way in (("linux", "fork"), ("darwin", None)):
        monkeypatch.setattr(sys, "platform", system)
        context = training_loader(data, the_plan, workers=1).multiprocessing_context
        assert (context and context.get_start_method()) == way
    assert _default_workers("cuda", 1) == 0  # there each would get a copy of all photos
    assert training_loader(data, the_plan).multiprocessing_context is None
