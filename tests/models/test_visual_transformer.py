import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from vtviz.errors import ConfigError
from vtviz.models.layers import Pointwise, groups_for
from vtviz.models.position_encoder import PositionEncoder
from vtviz.models.visual_transformer import (
    PointwiseTransformer,
    Projector,
    Tokenizer,
    Transformer,
    VTStage,
    VTStageConfig,
)

SIZES = [(1, 1), (1, 9), (14, 14), (17, 5)]


def static_tokenizer(channels=64, tokens=6, **options):
    defaults = {"heads": 4, "dynamic": False, "position_encoding": True, "static_scale": False}
    return Tokenizer(channels, 32, tokens, **{**defaults, **options}).eval()


def dynamic_tokenizer(channels=64, tokens=6, **options):
    return static_tokenizer(channels, tokens, **{"dynamic": True, **options})


def gathered_in_float64(out):
    """Eq. 1 from the tokenizer's own parts."""
    return torch.einsum("nhlxy,nhcxy->nhcl", out.coefficients.double(), out.values.double())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_maps_are_distributions_over_the_pixels_and_gather_the_tokens(dynamic, size):
    torch.manual_seed(0)
    tokenizer = static_tokenizer(dynamic=dynamic)
    tokens = torch.randn(2, 32, 6) if dynamic else None
    out = tokenizer(torch.randn(2, 64, *size), tokens)
    heads, new = (4, 3) if dynamic else (1, 6)
    assert out.coefficients.shape == (2, heads, new, *size)
    assert out.coefficients.dtype == torch.float32
    assert out.coefficients.min() >= 0
    torch.testing.assert_close(out.coefficients.sum((-2, -1)), torch.ones(2, heads, new), atol=1e-5, rtol=0)
    assert out.tokens.shape == (2, 32, 6)
    torch.testing.assert_close(out.gathered.double(), gathered_in_float64(out), atol=1e-5, rtol=1e-5)


def test_dynamic_filters_come_from_the_first_half_and_the_second_half_is_kept():
    torch.manual_seed(0)
    tokenizer, feature, tokens = dynamic_tokenizer(), torch.randn(1, 64, 5, 7), torch.randn(1, 32, 6)
    out = tokenizer(feature, tokens)
    assert torch.equal(out.tokens[:, :, :3], tokens[:, :, 3:])  # Eq. 5: T_b, unchanged and first
    kept_changed, filters_changed = tokens.clone(), tokens.clone()
    kept_changed[:, :, 3:] += 1
    filters_changed[:, :, 0] *= -1
    assert torch.equal(tokenizer(feature, kept_changed).coefficients, out.coefficients)
    changed = tokenizer(feature, filters_changed).coefficients
    assert not torch.allclose(changed[:, :, 0], out.coefficients[:, :, 0])
    assert torch.allclose(changed[:, :, 1:], out.coefficients[:, :, 1:], atol=1e-6)  # one filter, one map


def test_each_head_reads_its_own_channels():
    torch.manual_seed(0)
    tokenizer, tokens = dynamic_tokenizer(), torch.randn(1, 32, 6)
    assert tokenizer.key.conv.groups == 1
    feature = torch.randn(1, 64, 3, 4)
    before = tokenizer(feature, tokens).coefficients
    with torch.no_grad():
        tokenizer.key.conv.weight[16:32] *= -1  # the second of 4 heads
    after = tokenizer(feature, tokens).coefficients
    same = [torch.equal(before[:, h], after[:, h]) for h in range(4)]
    assert same == [True, False, True, True]


def test_without_position_encoding_a_tokenizer_does_not_know_where_pixels_are():
    torch.manual_seed(0)
    feature, order = torch.randn(2, 64, 14, 14), torch.randperm(196)
    shuffled = feature.flatten(2)[:, :, order].unflatten(-1, (14, 14))
    blind, seeing = static_tokenizer(position_encoding=False), static_tokenizer()
    assert (blind(shuffled).tokens - blind(feature).tokens).abs().max() < 1e-5
    assert (seeing(shuffled).tokens - seeing(feature).tokens).abs().max() > 1e-4  # small before training
    expected = seeing(feature).coefficients.flatten(3)[..., order]
    torch.testing.assert_close(seeing(shuffled).coefficients.flatten(3), expected, atol=1e-5, rtol=1e-4)


def test_static_scale_is_the_listings_square_root_of_the_channels():
    feature = torch.randn(1, 64, 6, 6)
    plain, scaled = static_tokenizer(), static_tokenizer(static_scale=True)
    scaled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(plain.logits(feature, None), scaled.logits(feature, None) * math.sqrt(64))
    assert plain(feature).coefficients.max() > scaled(feature).coefficients.max()


def test_dynamic_logits_are_scaled_by_the_width_of_a_head():
    torch.manual_seed(0)
    tokenizer, feature, tokens = dynamic_tokenizer(), torch.randn(1, 64, 2, 3), torch.randn(1, 32, 6)
    query, key = tokenizer.query(tokens[:, :, :3]), tokenizer.key(feature).flatten(2)
    by_head = [(query[:, c : c + 16].mT @ key[:, c : c + 16]) / 4.0 for c in range(0, 64, 16)]
    torch.testing.assert_close(tokenizer.logits(feature, tokens), torch.stack(by_head, 1))


def test_a_dynamic_tokenizer_needs_tokens():
    with pytest.raises(ConfigError, match=r"previous block's tokens, got None"):
        dynamic_tokenizer()(torch.randn(1, 64, 4, 4))


def test_tokenizers_softmax_stays_in_float32_under_bfloat16_autocast():
    torch.manual_seed(0)
    stage = VTStage(64, VTStageConfig(2, 4, channels=32, token_channels=64, heads=4)).eval()
    feature = torch.randn(2, 64, 14, 14)
    with torch.autocast("cpu", torch.bfloat16):
        first, last = stage(feature)
    assert first.feature.dtype == torch.bfloat16 or first.tokenizer.values.dtype == torch.bfloat16  # autocast was on
    maps = [first.tokenizer.coefficients, last.tokenizer.coefficients]
    for probabilities, dims in [*((m, (-2, -1)) for m in maps), (first.transformer.attention, -1)]:
        assert probabilities.dtype == torch.float32
        assert (probabilities.sum(dims) - 1).abs().max() < 1e-5  # bfloat16 would be off by 1e-2
    assert first.projector.coefficients.dtype == torch.float32


# --- position encoding


def blob(height, width, centre=(0.4, 0.6), sigma=0.15):
    """A Gaussian map summing to 1 whose place and extent are fractions of the image, (1, 1, 1, H, W)."""
    y, x = (torch.arange(n).add(0.5).div(n) for n in (height, width))
    values = torch.exp(-((y[:, None] - centre[0]) ** 2 + (x[None] - centre[1]) ** 2) / (2 * sigma**2))
    return (values / values.sum())[None, None, None]


def test_position_encoding_takes_a_14x14_map_as_it_is():
    torch.manual_seed(0)
    encoder, maps = PositionEncoder(1).eval(), torch.rand(2, 1, 5, 14, 14)
    expected = encoder.encode(encoder.reduce(maps.transpose(1, 2).flatten(0, 1)).reshape(2, 5, 196).mT)
    assert torch.equal(encoder(maps), expected)
    assert expected.shape == (2, 32, 5)


@pytest.mark.parametrize("size", [(28, 28), (12, 16), (42, 9), (56, 56)])
def test_position_encoding_hardly_depends_on_the_resolution(size):
    torch.manual_seed(0)
    encoder = PositionEncoder(1).eval()
    reference, other = encoder(blob(14, 14)), encoder(blob(*size))
    assert (other - reference).norm() < 0.1 * reference.norm()
    moved = encoder(blob(*size, centre=(0.6, 0.4)))
    assert (moved - reference).norm() > 0.5 * reference.norm()


def test_position_encoding_mixes_the_heads():
    torch.manual_seed(0)
    encoder, maps = PositionEncoder(4).eval(), torch.rand(1, 4, 2, 14, 14)
    for head in range(4):
        changed = maps.clone()
        changed[:, head] *= 2
        assert not torch.allclose(encoder(changed), encoder(maps))


# --- transformer and projector


def randomised(module):
    """The module in eval mode with the zero-initialised norms opened."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize("groups", [1, 4])
def test_transformer_treats_tokens_as_a_set(groups):
    torch.manual_seed(0)
    transformer, order = randomised(Transformer(64, heads=4, kqv_groups=groups)), torch.randperm(7)
    tokens = torch.randn(2, 64, 7)
    out, shuffled = transformer(tokens), transformer(tokens[:, :, order])
    torch.testing.assert_close(shuffled.tokens, out.tokens[:, :, order], atol=1e-4, rtol=1e-4)
    assert out.attention.shape == (2, 4, 7, 7)
    torch.testing.assert_close(out.attention.sum(-1), torch.ones(2, 4, 7))
    torch.testing.assert_close(shuffled.attention, out.attention[:, :, order][..., order], atol=1e-5, rtol=1e-4)


def test_attention_rows_are_queries():
    torch.manual_seed(0)
    transformer = randomised(Transformer(64, heads=4, kqv_groups=1))
    with torch.no_grad():
        transformer.query.conv.weight.zero_()
        transformer.query.norm.bias.normal_()
    attention = transformer(torch.randn(1, 64, 5)).attention
    # all tokens ask the same, so every row is the same, and rows still prefer some keys
    torch.testing.assert_close(attention, attention[:, :, :1].expand_as(attention))
    assert attention.std(-1).min() > 1e-4


def test_pointwise_transformer_keeps_tokens_apart():
    torch.manual_seed(0)
    pointwise, tokens = PointwiseTransformer(32).eval(), torch.randn(1, 32, 4)
    changed = tokens.clone()
    changed[:, :, 1] += 1
    out, after = pointwise(tokens), pointwise(changed)
    assert out.attention is None
    assert (out.tokens != after.tokens).any(1)[0].tolist() == [False, True, False, False]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("cin", "channels", "token_channels"), [(64, 64, 64), (64, 32, 64), (32, 64, 128)])
def test_every_cell_reads_the_tokens_with_weights_summing_to_one(cin, channels, token_channels, size):
    torch.manual_seed(0)
    projector = randomised(Projector(cin, channels, token_channels, heads=4))
    feature, tokens, order = torch.randn(2, cin, *size), torch.randn(2, token_channels, 6), torch.randperm(6)
    out, shuffled = projector(feature, tokens), projector(feature, tokens[:, :, order])
    assert out.feature.shape == (2, channels, *size)
    assert out.coefficients.shape == (2, 4, 6, *size)
    assert out.coefficients.min() >= 0
    torch.testing.assert_close(out.coefficients.sum(2), torch.ones(2, 4, *size))
    torch.testing.assert_close(shuffled.feature, out.feature, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shuffled.coefficients, out.coefficients[:, :, order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (Transformer(64, heads=4, kqv_groups=1, drop_path=1.0), [(4, 64, 7)]),
        (Projector(32, 32, 64, heads=4, drop_path=1.0), [(4, 32, 5, 6), (4, 64, 7)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_dropped_path_leaves_its_input(module, inputs):
    torch.manual_seed(0)
    module = randomised(module)
    given = [torch.randn(shape) for shape in inputs]
    assert not torch.equal(module(*given)[0], given[0])
    assert torch.equal(module.train()(*given)[0], given[0])


def test_projector_has_an_adapter_and_a_value_only_where_widths_differ():
    same, other = Projector(64, 64, 64, heads=4), Projector(32, 64, 128, heads=4)
    assert isinstance(same.adapter, nn.Identity)
    assert isinstance(same.value, nn.Identity)
    assert isinstance(other.adapter, Pointwise)
    assert isinstance(other.value, Pointwise)


# --- stage


def test_a_fresh_stage_passes_its_input_through_and_tokens_leave_first_in_first_out():
    torch.manual_seed(0)
    config = VTStageConfig(4, 8, channels=64, token_channels=64, heads=4)
    feature = torch.randn(2, 64, 9, 6)
    blocks = VTStage(64, config).eval()(feature)
    for out in blocks:
        assert torch.equal(out.feature, feature)  # zero-initialised projections
        assert torch.equal(out.tokens, out.tokenizer.tokens)  # and transformers
    for before, after in pairwise(blocks):
        assert torch.equal(after.tokens[:, :, :4], before.tokens[:, :, 4:])
    assert blocks[-1].projector is None


def test_the_adapter_follows_the_first_tokenizer():
    torch.manual_seed(0)
    stage = VTStage(64, VTStageConfig(2, 4, channels=32, token_channels=64, heads=4)).eval()
    feature = torch.randn(1, 64, 5, 5)
    first, last = stage(feature)
    assert first.tokenizer.values.shape == (1, 1, 64, 5, 5)
    assert torch.equal(first.feature, stage.blocks[0].projector.adapter(feature))
    assert last.tokenizer.values.shape == (1, 4, 8, 5, 5)
    assert last.feature is first.feature


@pytest.mark.parametrize(
    ("change", "tokens", "maps", "heads"),
    [
        ({}, [16, 16, 16], [16, 8, 8], [1, 4, 4]),
        ({"dynamic": False}, [16, 24, 28], [16, 16, 16], [1, 1, 1]),  # Table 3, -DT: T_b and L new ones
        ({"transformer": False}, [16, 16, 16], [16, 8, 8], [1, 4, 4]),
        ({"position_encoding": False}, [16, 16, 16], [16, 8, 8], [1, 4, 4]),
    ],
)
def test_tokens_maps_and_heads_of_each_block(change, tokens, maps, heads):
    config = VTStageConfig(3, 16, **{"channels": 32, "token_channels": 64, "heads": 4, **change})
    blocks = VTStage(64, config).eval()(torch.randn(1, 64, 4, 4))
    assert [out.tokens.shape[2] for out in blocks] == tokens
    assert [out.tokenizer.coefficients.shape[2] for out in blocks] == maps
    assert [out.tokenizer.coefficients.shape[1] for out in blocks] == heads
    assert all((out.transformer.attention is None) != config.transformer for out in blocks)


def test_ablations_leave_their_part_out():
    def parts(**change):
        config = VTStageConfig(2, 4, **{"channels": 32, "token_channels": 64, "heads": 4, **change})
        return {type(m) for m in VTStage(64, config).modules()}

    everything = parts()
    assert {Transformer, PositionEncoder} < everything
    assert Transformer not in parts(transformer=False)
    assert PositionEncoder not in parts(position_encoding=False)
    assert parts(dynamic=False) == everything


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (64, 1), (256, 4), (512, 8), (1024, 16), (2048, 16)])
def test_groups(channels, groups):
    assert groups_for(channels) == groups


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"num_tokens": 0}, "num_tokens must be at least 1, got 0"),
        ({"num_tokens": 7}, "num_tokens must be even .*got 7"),
        ({"channels": -512}, "channels must be at least 1, got -512"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"heads": 12}, "heads=12 must divide channels=512 .*token_channels=1024"),
        ({"channels": 520, "heads": 16}, "heads=16 must divide channels=520"),
        ({"token_channels": 100}, "half of token_channels=100"),
        ({"kqv_groups": 3}, "kqv_groups=3 must divide half of token_channels=1024"),
    ],
)
def test_configuration_errors_name_the_value(change, message):
    with pytest.raises(ConfigError, match=message):
        VTStageConfig(**{"blocks": 2, "num_tokens": 8, "channels": 512, **change})


def test_one_block_may_have_an_odd_number_of_tokens():
    config = VTStageConfig(1, 7, channels=32, token_channels=64, heads=4)
    assert VTStage(64, config).eval()(torch.randn(1, 64, 3, 3))[0].tokens.shape == (1, 64, 7)


@pytest.mark.parametrize("channels_in", [96, 256])
@pytest.mark.parametrize("channels", [96, 160, 192, 320, 336, 448, 640, 1008])
def test_widths_that_the_configuration_allows_can_be_built(channels, channels_in):
    """groups_for must not pick a number of groups that does not divide the channels, before or after."""
    config = VTStageConfig(2, 4, channels=channels, token_channels=64, heads=4)
    stage = VTStage(channels_in, config).eval()
    assert stage(torch.randn(1, channels_in, 3, 3))[-1].tokens.shape == (1, 64, 4)
