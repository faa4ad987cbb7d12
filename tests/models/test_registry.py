import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from vtviz.errors import ConfigError
from vtviz.models.registry import MODELS, build_model, config_to_dict, make_config, model_from_config

VT_NAMES = [name for name in MODELS if name.startswith("vt_resnet")]


def test_names():
    assert set(MODELS) >= {f"{prefix}resnet{depth}" for prefix in ("", "vt_") for depth in (18, 34, 50, 101)}
    assert all("counts" in entry.presets for entry in MODELS.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vt_resnet18", {"blocks": 2, "num_tokens": 16, "kqv_groups": 1, "channels": 512}),
        ("vt_resnet34", {"blocks": 3, "num_tokens": 16, "kqv_groups": 8, "channels": 512}),
        ("vt_resnet50", {"blocks": 3, "num_tokens": 4, "kqv_groups": 8, "channels": 1024}),
        ("vt_resnet101", {"blocks": 3, "num_tokens": 4, "kqv_groups": 8, "channels": 1024}),
    ],
)
def test_counts_preset_is_the_fit_and_text_preset_the_text(name, expected):
    stage = asdict(make_config(name).stage)
    assert expected.items() <= stage.items()
    assert (stage["token_channels"], stage["heads"], stage["static_scale"]) == (1024, 16, False)
    assert asdict(make_config(name, "text").stage) == stage | {"num_tokens": 8, "kqv_groups": 8}


@pytest.mark.parametrize("name", VT_NAMES)
@pytest.mark.parametrize(
    ("preset", "field"),
    [("no_transformer", "transformer"), ("no_position_encoding", "position_encoding"), ("no_dynamic", "dynamic")],
)
def test_an_ablation_changes_one_thing(name, preset, field):
    base, ablated = (asdict(make_config(name, p).stage) for p in ("counts", preset))
    assert {k for k in base if base[k] != ablated[k]} == {field}


def test_overrides_reach_the_model_and_its_stage():
    config = make_config("vt_resnet18", "text", num_classes=7, num_tokens=4, dropout=0.2)
    assert (config.num_classes, config.dropout, config.stage.num_tokens, config.stage.kqv_groups) == (7, 0.2, 4, 8)


def test_any_whole_number_will_do_and_is_kept_as_pythons():
    config = make_config("vt_resnet18", num_classes=np.int64(7), num_tokens=np.uint8(4))
    assert config == make_config("vt_resnet18", num_classes=7, num_tokens=4)
    assert json.loads(json.dumps(config_to_dict(config)))["num_classes"] == 7
    for wrong in (True, 7.0, np.float64(7), "7"):
        with pytest.raises(ConfigError, match="option 'num_classes' must be of type int"):
            make_config("vt_resnet18", num_classes=wrong)


@pytest.mark.parametrize(
    ("name", "preset"), [(n, p) for n in MODELS if not n.endswith("101") for p in MODELS[n].presets]
)
def test_a_model_is_rebuilt_from_its_configuration_as_json(name, preset):
    with torch.device("meta"):
        model = build_model(name, preset, num_classes=3)
        twin = model_from_config(name, json.loads(json.dumps(config_to_dict(model.config))))
    assert twin.config == model.config
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in twin.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_model("vt_resnet19"), "unknown model 'vt_resnet19'; did you mean 'vt_resnet1"),
        (lambda: build_model("zzz"), "unknown model 'zzz'; choose from .*vt_resnet50"),
        (lambda: make_config("vt_resnet18", "txt"), "unknown preset 'txt' of vt_resnet18; did you mean 'text'?"),
        (lambda: make_config("vt_resnet18", tokens=3), "vt_resnet18 has no option 'tokens'"),
        (lambda: make_config("resnet18", num_tokens=3), "resnet18 has no option 'num_tokens'"),
        (lambda: model_from_config("resnet18", {"depht": 18}), "no option 'depht'; did you mean 'depth'?"),
        (lambda: model_from_config("resnet18", {}), "configuration incomplete"),
        (lambda: model_from_config("resnet18", {"depth": [18]}), r"option 'depth' must be of type int, got \[18\]"),
        (lambda: model_from_config("vt_resnet18", {"depth": 18, "stage": 3}), "must be an object, got int"),
        (lambda: model_from_config("vt_resnet18", [1]), "must be an object, got list"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        {"depth": "18"},
        {"depth": 18, "num_classes": "many"},
        {"depth": 18.0},
        {"depth": True},
        {"depth": 18, "num_classes": 2.5},
        {"depth": 18, "dropout": "0.1"},
    ],
)
def test_a_card_with_values_of_the_wrong_kind_is_refused(data):
    with pytest.raises(ConfigError, match=r"resnet18"):
        model_from_config("resnet18", data)
