"""What a run keeps of its data in memory."""

import os

import numpy as np
import pytest
from PIL import Image

from vtviz.data.store import PixelStore
from vtviz.train import setup, setup_classifier
from vtviz.train.setup_classifier import short_side


@pytest.mark.parametrize(
    ("fields", "side"),
    [({"sizes": "64"}, 256), ({"sizes": "224"}, 256), ({"sizes": "64-448@0.5,224"}, 512), ({"eval_size": 448}, 512)],
)
def test_pixels_are_kept_for_the_largest_crop(tiny_job, fields, side):
    assert short_side(tiny_job(recipe=fields).recipe) == side


@pytest.mark.parametrize(("gigabytes", "kept"), [(8, 4), (64, 12)])
def test_at_most_half_of_the_machine_s_memory_is_taken(monkeypatch, gigabytes, kept):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": gigabytes * 2**18, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert setup.image_memory(1) == kept * 2**30
    assert setup.image_memory(4) == kept * 2**28


@pytest.mark.parametrize(("share", "in_memory"), [(2, [True, True]), (1.5, [True, False]), (0.5, [False, False])])
def test_validation_gets_the_memory_that_training_left(share, in_memory, monkeypatch, tiny_job, make_folder):
    data, stores = make_folder(train=4, val=4), []

    def keep(*arguments, **options):
        stores.append(PixelStore(*arguments, **options))
        return stores[-1]

    pixels = sum(np.asarray(Image.open(file)).size for file in (data / "train").rglob("*.png"))
    monkeypatch.setattr(setup_classifier, "PixelStore", keep)
    monkeypatch.setattr(setup, "MEMORY", share * pixels)
    setup_classifier.set_up_classifier(tiny_job(data=data))
    assert [store.in_memory for store in stores] == in_memory
    assert stores[0].nbytes == pixels * in_memory[0]
