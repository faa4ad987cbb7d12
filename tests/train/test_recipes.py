from dataclasses import asdict, replace

import pytest

from vtviz.errors import ConfigError
from vtviz.train.recipes import RECIPES, Recipe, make_recipe, recipe_from_dict


def test_the_papers_imagenet_recipe():
    """Sec. 5.1, word for word."""
    recipe = RECIPES["imagenet_paper"]
    assert (recipe.epochs, recipe.optimizer, recipe.batch_size) == (400, "rmsprop", 2048)
    rates = [recipe.lr * recipe.learning_rate(epoch) for epoch in (0, 2.5, 5, 6, 7, 400)]
    assert rates == pytest.approx([0.01, 0.085, 0.16, 0.16 * 0.9875, 0.16 * 0.9875**2, 0.16 * 0.9875**395])
    assert (recipe.augment, recipe.dropout, recipe.ema) == ("auto", 0.2, 0.99985)
    assert 1 - recipe.drop_path == 0.9
    assert recipe.label_smoothing > 0
    assert RECIPES["imagenet_ablation"] == replace(recipe, epochs=90)  # Sec. 5.2


def test_cosine():
    recipe = Recipe(epochs=11, warmup_epochs=1, warmup_from=0.1)
    assert [recipe.learning_rate(e) for e in (0, 0.5, 1, 6, 11, 12)] == pytest.approx([0.1, 0.55, 1, 0.5, 0, 0])
    assert Recipe(epochs=2, warmup_epochs=0).learning_rate(0) == 1
    assert 0 <= Recipe(epochs=1, warmup_epochs=1).learning_rate(1) <= 1


def test_the_papers_segmentation_recipes():
    """Sec. 5.3, and Detectron2's 1x schedule where it refers to that."""
    coco, lip = RECIPES["coco_stuff_paper"], RECIPES["lip_paper"]
    assert (coco.batch_size, coco.optimizer, coco.lr) == (32, "sgd", 0.04)
    steps = 118_287 / coco.batch_size  # an epoch of COCO's train2017
    assert coco.epochs * steps == pytest.approx(90_000, rel=0.02)
    at = [coco.learning_rate(step / steps) for step in (0, 500, 1001, 58_000, 62_000, 78_000, 82_000)]
    assert at == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01], rel=0.02)
    assert (lip.batch_size, lip.optimizer, lip.lr, lip.weight_decay) == (96, "sgd", 0.01, 5e-4)
    assert lip.sizes == "473"
    assert [lip.learning_rate(epoch) for epoch in (0, 75, 150)] == pytest.approx([1, 0.5**0.9, 0])


def test_a_recipe_of_one_task_has_no_fields_of_the_other():
    with pytest.raises(ConfigError, match="recipes have no field 'mixup'"):
        make_recipe("segment_small", mixup=0.2)
    with pytest.raises(ConfigError, match="recipes have no field 'scale_min'"):
        make_recipe("small", scale_min=0.5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *(("milestones", text, "must be rising fractions of all epochs") for text in ("0.9,0.5", "1", "0", "half")),
        ("scale_min", 0.0, r"must be in \(0, 1\], got 0.0"),
        ("scale_max", 0.5, "must be from 1 to 4, got 0.5"),
        ("jitter", 2.0, r"must be in \[0, 1\], got 2.0"),
        ("class_balance", -0.5, r"must be in \[0, 1\], got -0.5"),
    ],
)
def test_a_segmentation_value_that_cannot_work_is_named(field, value, message):
    with pytest.raises(ConfigError, match=f"^{field} {message}"):
        make_recipe("segment_small", **{field: value})


def test_fields_are_replaced_by_name():
    assert make_recipe("small", epochs=3, augment="none") == replace(RECIPES["small"], epochs=3, augment="none")
    assert make_recipe(RECIPES["finetune"], lr=1) == replace(RECIPES["finetune"], lr=1)
    with pytest.raises(ConfigError, match="unknown recipe 'smal'; did you mean 'small'"):
        make_recipe("smal")
    with pytest.raises(ConfigError, match="recipes have no field 'epoch'; did you mean 'epochs'"):
        make_recipe("small", epoch=3)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_its_dict(name):
    assert recipe_from_dict(asdict(RECIPES[name])) == RECIPES[name]
    with pytest.raises(ConfigError, match="no field 'lrr'"):
        recipe_from_dict({"lrr": 1})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer", "adam", "must be one of adamw, sgd, nesterov, rmsprop, got 'adam'"),
        ("schedule", "stairs", "must be one of cosine, exponential, poly, step, got 'stairs'"),
        ("augment", "blur", "must be one of none, flip, crop, jitter, trivial, auto, got 'blur'"),
        ("precision", "64-true", "must be one of 32-true, bf16-mixed, 16-mixed, got '64-true'"),
        ("epochs", 0, "must be from 1 to 100000, got 0"),
        ("epochs", 10**9, "must be from 1 to 100000, got 1000000000"),
        ("batch_size", 0, "must be at least 1, got 0"),
        ("batch_size", -8, "must be at least 1, got -8"),
        ("lr", 0.0, "must be positive, got 0.0"),
        ("lr", float("nan"), "must be a finite number, got nan"),
        ("temperature", -1.0, "must be positive, got -1.0"),
        ("rmsprop_eps", 0.0, "must be positive"),
        *((name, 1.0, r"must be in \[0, 1\), got 1.0") for name in ("label_smoothing", "ema", "dropout", "drop_path")),
        ("momentum", 1.0, r"must be in \[0, 1\)"),
        *(
            (n, 0.0, r"must be in \(0, 1\], got 0.0")
            for n in ("crop_scale_min", "lr_decay", "layer_decay", "rmsprop_decay")
        ),
        ("logit_weight", 1.5, r"must be in \[0, 1\], got 1.5"),
        ("warmup_from", -0.1, r"must be in \[0, 1\], got -0.1"),
        *(
            (name, -1.0, "must be 0 or more, got -1.0")
            for name in ("feature_weight", "feature_weight_end", "token_weight")
        ),
        *(
            (name, -1.0, "must be 0 or more, got -1.0")
            for name in ("diversity_weight", "mixup", "clip", "weight_decay")
        ),
        ("warmup_epochs", -1.0, "must be 0 or more"),
        ("seed", -1, "must be from 0 to 4294967295, got -1"),
        ("freeze", 6, "must be a number of stages from 0 to 5, got 6"),
        ("eval_size", 8, "must be from 32 to 1024 pixels, got 8"),
        ("sizes", "big", "expected LOW-HIGH@FRACTION or SIZE, got 'big'"),
        ("epochs", 2.5, "must be a whole number, got 2.5"),
        ("epochs", True, "must be a whole number, got True"),
        ("lr", "fast", "must be a number, got 'fast'"),
        ("sizes", 224, "must be a word, got 224"),
    ],
)
def test_a_value_that_cannot_work_is_named(field, value, message):
    with pytest.raises(ConfigError, match=f"^{field}:? ?{message}"):
        make_recipe("small", **{field: value})
