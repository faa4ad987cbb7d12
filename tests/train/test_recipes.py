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
        ("optimizer", "adam", "must be one of adamw, sgd, rmsprop, got 'adam'"),
        ("schedule", "step", "must be one of cosine, exponential, got 'step'"),
        ("augment", "blur", "must be one of none, flip, crop, jitter, trivial, auto, got 'blur'"),
        ("precision", "64-true", "must be one of 32-true, bf16-mixed, 16-mixed, got '64-true'"),
        ("epochs", 0, "must be at least 1, got 0"),
        ("batch_size", -8, "must be at least 1, got -8"),
        ("lr", 0.0, "must be positive, got 0.0"),
        ("lr", float("nan"), "must be positive, got nan"),
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
        ("seed", -1, "must be 0 or more, got -1"),
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
