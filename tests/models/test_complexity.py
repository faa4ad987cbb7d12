import pytest
import torch
from torch import nn

from vtviz.errors import ConfigError
from vtviz.models.complexity import TABLES, count_complexity, count_parameters, profile_rows
from vtviz.models.registry import build_model
from vtviz.models.visual_transformer import Transformer


@pytest.fixture(scope="module")
def rows():
    return {(r.table, r.row): r for r in profile_rows()}


def test_every_figure_of_tables_1_and_3_is_within_a_thousandth(rows):
    printed = [r for r in rows.values() if r.table in (1, 3)]
    assert len(printed) == 16
    for r in printed:
        assert r.params == pytest.approx(r.params_paper, rel=1e-3), r.row
        assert r.macs == pytest.approx(r.macs_paper, rel=1e-3), r.row
        assert r.ratio is r.ratio_paper is None


@pytest.mark.parametrize(
    ("table", "row", "params", "macs"),
    [
        (1, "R-18", 11.6789, 1.81410),
        (1, "R-101", 44.4428, 7.80151),
        (1, "VT-R-34", 18.0199, 3.15153),
        (1, "VT-R-50", 21.3889, 3.41236),
        (1, "VT-R-101", 40.3288, 7.12458),
        (3, "VT-R-18", 12.7646, 1.58670),
        (3, "VT-R-34", 18.0220, 3.21741),
        (3, "VT-R-34 -DT", 16.9242, 3.24587),
    ],
)
def test_our_figures_stay_what_they_are(rows, table, row, params, macs):
    assert rows[table, row].params == pytest.approx(params, abs=6e-5)
    assert rows[table, row].macs == pytest.approx(macs, abs=6e-6)


def test_table_2_agrees_where_the_paper_agrees_with_itself_and_says_where_not(rows):
    table = [r for r in rows.values() if r.table == 2]
    contradictions = {r.row for r in table if "contradicts" in r.note}
    assert contradictions == {"R-18 MACs stage 5", "R-101 MACs stage 5", "R-101 params total"}
    assert len(table) == 16
    for r in table:
        assert (abs(r.ratio / r.ratio_paper - 1) > 0.05) == (r.row in contradictions), r
        assert r.params is r.macs is r.params_paper is r.macs_paper is None


def test_sec_3_2_takes_512_token_channels(rows):
    pixels, tokens, ratio = (r for r in rows.values() if r.table == "Sec. 3.2")
    assert pixels.macs * 1e9 == 3 * 49 * 512**2 + 1.5 * 49**2 * 512  # 40.379 M, printed as 40.3
    assert tokens.macs * 1e9 == 3 * 512**2 * 8 + 1.5 * 8**2 * 512  # 6.341 M, printed as 6.3
    assert (pixels.macs_paper, tokens.macs_paper, ratio.ratio_paper) == (0.0403, 0.0063, 6.4)
    assert round(ratio.ratio, 1) == 6.4
    assert "25.3 M" in tokens.note


# how near the neck alone must come at 800 x 1216 and at 473 x 473
NECKS = {"R-50 FPN": (0.005, 0.01), "R-101 FPN": (0.005, 0.01), "R-50 VT-FPN": (0.05, 0.1), "R-101 VT-FPN": (0.05, 0.1)}


@pytest.mark.parametrize("model", NECKS)
@pytest.mark.parametrize(("number", "data", "size"), [(0, "COCO-Stuff", "800x1216"), (1, "LIP", "473x473")])
def test_every_figure_of_table_4(rows, model, number, data, size):
    row = rows[4, f"{model}, {data}"]
    assert row.input == size
    assert row.macs == pytest.approx(row.macs_paper, rel=0.01)
    assert row.neck_macs == pytest.approx(row.neck_macs_paper, rel=NECKS[model][number])


def test_table_4_stays_what_it_is(rows):
    ours = {(r.row, round(r.macs, 2), round(r.neck_macs, 3)) for r in rows.values() if r.table == 4}
    assert ours == {
        ("R-50 FPN, COCO-Stuff", 159.13, 55.099),
        ("R-101 FPN, COCO-Stuff", 231.11, 55.099),
        ("R-50 VT-FPN, COCO-Stuff", 112.58, 8.543),
        ("R-101 VT-FPN, COCO-Stuff", 184.55, 8.543),
        ("R-50 FPN, LIP", 37.33, 12.893),
        ("R-101 FPN, LIP", 54.38, 12.893),
        ("R-50 VT-FPN, LIP", 26.50, 2.058),
        ("R-101 VT-FPN, LIP", 43.55, 2.058),
    }


@pytest.mark.parametrize("depth", [50, 101])
def test_torchvision_placement_costs_what_the_note_says(rows, depth):
    with torch.device("meta"):
        torchvision = build_model(f"panoptic_fpn_resnet{depth}")
    total = f"{count_complexity(torchvision, (3, 800, 1216)).macs / 1e9:.1f} G"
    assert total in rows[4, f"R-{depth} FPN, COCO-Stuff"].note


def test_slips_of_the_paper_are_noted(rows):
    assert "4.84" in rows[1, "VT-R-18"].note
    assert "3.217" in rows[1, "VT-R-34"].note
    assert "3.151" in rows[3, "VT-R-34"].note
    assert "6.9x" in rows[2, "R-101 MACs stage 5"].note


@pytest.mark.parametrize(
    ("name", "gigamacs"), [("vt_resnet18", 1.517), ("vt_resnet50", 3.456), ("vt_resnet101", 7.168)]
)
def test_eight_tokens_cost_what_the_notes_say(name, gigamacs):
    assert round(count_complexity(build_model(name, num_tokens=8)).macs / 1e9, 3) == gigamacs


@pytest.mark.parametrize("table", TABLES)
def test_one_table_alone(rows, table):
    assert profile_rows(table) == [r for r in rows.values() if r.table == table]


def test_unknown_table_is_named():
    with pytest.raises(ConfigError, match=r"no table 5; choose from 1, 2, 3, 4"):
        profile_rows(5)


def test_counting_rules_one_by_one():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, 5))
    weights = 3 * 8 * 9 + 8 * 5  # no bias, no norm
    assert count_parameters(model) == weights
    cost = count_complexity(model, (3, 6, 7))
    assert cost.params == weights
    assert cost.macs == 3 * 8 * 9 * 42 + 8 * 42 + 8 * 5  # convolution, pool's input, linear


@pytest.mark.parametrize(("channels", "tokens"), [(64, 1), (512, 8), (1024, 16)])
def test_transformer_costs_exactly_what_sec_3_2_says(channels, tokens):
    cost = count_complexity(Transformer(channels, heads=16, kqv_groups=1), (channels, tokens))
    assert cost.macs == 3 * channels**2 * tokens + 1.5 * tokens**2 * channels


def test_kqv_groups_divide_keys_queries_and_values_only():
    one, eight = (count_complexity(Transformer(1024, heads=16, kqv_groups=g), (1024, 8)) for g in (1, 8))
    assert one.params == 3 * 1024**2
    assert eight.params == 2 * 1024**2 / 8 + 1024**2


def test_counting_leaves_the_model_as_it_was():
    model = build_model("vt_resnet18", num_tokens=4).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_complexity(model)
    assert model.training
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_macs_grow_with_the_image_and_parameters_do_not():
    model = build_model("vt_resnet18")
    small, large = (count_complexity(model, (3, side, side)) for side in (96, 224))
    assert small.params == large.params
    assert small.macs < large.macs


@pytest.mark.parametrize(("side", "ratio"), [(64, 1.69), (96, 1.20), (128, 1.02), (224, 0.87)])
def test_a_vt_saves_macs_on_large_photos_only(side, ratio):
    """What docs/ablations.md says: the tokens' part hardly depends on the size."""
    with torch.device("meta"):
        ours, plain = (build_model(name, num_classes=10) for name in ("vt_resnet18", "resnet18"))
    macs = [count_complexity(model, (3, side, side)).macs for model in (ours, plain)]
    assert round(macs[0] / macs[1], 2) == ratio
