"""The visual transformer: tokenizer, position encoder, transformer, projector (Wu et al. 2020, Sec. 3, Appendix A).

The paper leaves channel groups, normalisation and initialisation open. The choices here reproduce the parameter and
MAC counts of its Tables 1 and 3 to the printed digit; they are a fit to those tables, not the authors' word.

Shapes: N images, C feature channels, H x W cells, L tokens, C_T token channels, h heads. Feature maps are
(N, C, H, W), tokens (N, C_T, L), token coefficients A (N, h, L, H, W) with every map summing to 1 over H x W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vtviz.errors import ConfigError
from vtviz.models.layers import BatchNorm2d, Pointwise, folds, groups_for, masked_softmax, scale_and_shift
from vtviz.models.position_encoder import POSITION_CHANNELS, PositionEncoder

MOST_BLOCKS = 64
"""Of a stage; the paper has 3 at most, and a configuration must not take for ever to build."""


def check_widths(channels: int, token_channels: int, heads: int, kqv_groups: int) -> None:
    """Raise ConfigError unless heads and groups divide the channels that they split."""
    if channels % heads or token_channels % (2 * heads):
        raise ConfigError(f"heads={heads} must divide channels={channels} and half of token_channels={token_channels}")
    if token_channels % (2 * kqv_groups):
        raise ConfigError(f"kqv_groups={kqv_groups} must divide half of token_channels={token_channels}")


@dataclass(frozen=True)
class VTStageConfig:
    """One visual-transformer stage, in the paper's terms (Sec. 4, Table 5).

    Attributes:
        blocks: visual transformer blocks; the first tokenizer is static, later ones dynamic.
        num_tokens: L, the tokens of the first block. Dynamic blocks replace half of them, so L must be even.
        token_channels: C_T.
        channels: C, the feature channels after the first block.
        heads: attention heads of dynamic tokenizers, transformers and projectors.
        kqv_groups: groups of the transformer's key, query and value convolutions (Listing 3).
        position_encoding: Eq. 2; off in Table 3's "-PE".
        transformer: Eq. 3; off in Table 3's "-TF", which puts a 1x1 convolution in its place.
        dynamic: Sec. 3.4; off in Table 3's "-DT", where later blocks append L statically extracted tokens.
        static_scale: divide static logits by sqrt(C) as in Listing 1. Eq. 1 has no scale, and since batch norm has
            scaled these logits already, the listing's form keeps the maps close to uniform.
    """

    blocks: int
    num_tokens: int
    channels: int
    token_channels: int = 1024
    heads: int = 16
    kqv_groups: int = 8
    position_encoding: bool = True
    transformer: bool = True
    dynamic: bool = True
    static_scale: bool = False

    def __post_init__(self) -> None:
        for name in ("blocks", "num_tokens", "channels", "token_channels", "heads", "kqv_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.blocks > MOST_BLOCKS:
            raise ConfigError(f"blocks must be at most {MOST_BLOCKS}, got {self.blocks}")
        if self.blocks > 1 and self.num_tokens % 2:
            raise ConfigError(f"num_tokens must be even when later blocks replace half of them, got {self.num_tokens}")
        check_widths(self.channels, self.token_channels, self.heads, self.kqv_groups)


class TokenizerOutput(NamedTuple):
    """What a tokenizer computed: everything needed to check Eq. 1 from outside."""

    tokens: Tensor
    """(N, C_T, L_out): tokens for the transformer, the kept ones (T_b) first."""
    coefficients: Tensor
    """A, (N, h, L_new, H, W) float32, non-negative, each map summing to 1 over H x W (Eq. 1)."""
    values: Tensor
    """V, (N, h, C / h, H, W): what A averages."""
    gathered: Tensor
    """T = A^T V before normalisation and position encoding, (N, h, C / h, L_new)."""


class TransformerOutput(NamedTuple):
    """Tokens after the transformer and how they attended."""

    tokens: Tensor
    """(N, C_T, L)."""
    attention: Tensor | None
    """(N, h, L_query, L_key) float32, rows summing to 1; None where a 1x1 convolution stands in (-TF)."""


class ProjectorOutput(NamedTuple):
    """The feature map with the tokens fused in, and which token each cell read."""

    feature: Tensor
    """(N, C, H, W)."""
    coefficients: Tensor
    """(N, h, L, H, W) float32, summing to 1 over L at every cell (softmax of Eq. 4)."""


class BlockOutput(NamedTuple):
    """One visual transformer block's result and its parts."""

    feature: Tensor
    tokens: Tensor
    tokenizer: TokenizerOutput
    transformer: TransformerOutput
    projector: ProjectorOutput | None
    absent: Tensor | None = None
    """(N, L) bool: tokens that an :class:`Edit` of this block or an earlier one took out."""


class Edit(NamedTuple):
    """What is changed in one layer for each row of a batch, between its tokenizer and its transformer."""

    absent: Tensor | None = None
    """(N, L) bool over the layer's tokens, the kept ones first: taken out. Their places stay, but no softmax reads them
    any more, a dynamic tokenizer makes nothing of them, and the classifier's mean leaves them out."""
    tokens: Tensor | None = None
    """(N, C_T, L), in the place of what the tokenizer gave."""


class Tokenizer(nn.Module):
    """Gathers pixels into tokens: T = A^T V (Eq. 1; Listing 1), with static filters or with filters made from tokens.

    Static (``dynamic=False``): A = softmax over the pixels of a learned 1x1 convolution, one head, ``new_tokens`` maps.
    Dynamic (Eq. 5): the first half T_a of the incoming tokens becomes the filters, in ``heads`` heads, and the tokens
    that they gather are appended to the kept half T_b, so tokens leave first in, first out.
    """

    def __init__(
        self,
        channels: int,
        token_channels: int,
        new_tokens: int,
        *,
        heads: int,
        dynamic: bool,
        position_encoding: bool,
        static_scale: bool,
        groups: int | None = None,
    ) -> None:
        """``groups``: of the key and value convolutions; :func:`groups_for` ``(channels)`` by default."""
        super().__init__()
        groups = groups or groups_for(channels)
        self.dynamic = dynamic
        self.heads = heads if dynamic else 1
        self.scale = 1.0 / math.sqrt(channels / heads if dynamic else channels if static_scale else 1.0)
        if dynamic:
            self.query = Pointwise(1, token_channels, channels)
            self.key = Pointwise(2, channels, channels, groups)
        else:
            self.coefficients = Pointwise(2, channels, new_tokens)
        self.value = Pointwise(2, channels, channels, groups)
        self.norm = nn.BatchNorm1d(channels)
        self.position = PositionEncoder(self.heads) if position_encoding else None
        self.token = Pointwise(1, channels + (POSITION_CHANNELS if position_encoding else 0), token_channels)

    def logits(self, feature: Tensor, tokens: Tensor | None) -> Tensor:
        """Unnormalised token coefficients, (N, h, L_new, H W)."""
        if not self.dynamic:
            return self.coefficients(feature).flatten(2).unsqueeze(1) * self.scale
        if tokens is None:
            raise ConfigError("a dynamic tokenizer needs the previous block's tokens, got None")
        filters = self.query(tokens[:, :, : tokens.shape[2] // 2]).unflatten(1, (self.heads, -1))
        key = self.key(feature).flatten(2).unflatten(1, (self.heads, -1))
        return filters.transpose(2, 3) @ key * self.scale

    def forward(self, feature: Tensor, tokens: Tensor | None = None) -> TokenizerOutput:
        """Tokenize ``feature`` (N, C, H, W), given the previous block's ``tokens`` (N, C_T, L) if there was one."""
        size = feature.shape[-2:]
        coefficients = self.logits(feature, tokens).float().softmax(dim=-1)
        values = self.value(feature).flatten(2).unflatten(1, (self.heads, -1))
        return self.gather(values.unflatten(-1, size), coefficients.unflatten(-1, size), tokens)

    def gather(self, values: Tensor, maps: Tensor, tokens: Tensor | None = None) -> TokenizerOutput:
        """Gather values (N, h, C / h, H, W) with any coefficient maps (N, h, L_new, H, W), and what follows from that.

        ``tokens`` are those of the previous block, half of which stay.
        """
        # Eq. 1 as (A V^T)^T: of channels_last values a CPU makes V A^T some twenty times slower
        gathered = (maps.flatten(3).to(values.dtype) @ values.flatten(3).transpose(2, 3)).transpose(2, 3)
        new = self.norm(gathered.flatten(1, 2))
        if self.position is not None:
            new = torch.cat((new, self.position(maps).to(new.dtype)), dim=1)
        new = self.token(new)
        if tokens is not None:
            new = torch.cat((tokens[:, :, tokens.shape[2] // 2 :], new), dim=2)  # Eq. 5
        return TokenizerOutput(new, maps, values, gathered)

    def places(self, absent: Tensor | None) -> Tensor | None:
        """Which of this tokenizer's tokens are absent where ``absent`` (N, L) of the previous block's are.

        What was kept keeps its state, and nothing is made with a filter that is not there.
        """
        if absent is None:
            return None
        filters, kept = absent.split((absent.shape[1] // 2, -(-absent.shape[1] // 2)), dim=1)
        made = filters if self.dynamic else absent.new_zeros(len(absent), self.coefficients.conv.out_channels)
        return torch.cat((kept, made), dim=1)


class Transformer(nn.Module):
    """Multi-head self-attention over the tokens and a point-wise layer, each with its residual (Eq. 3, Listing 3).

    With kqv_groups = 1 it costs 3 C_T^2 L + 1.5 L^2 C_T MACs (Sec. 3.2).
    """

    def __init__(self, token_channels: int, *, heads: int, kqv_groups: int, drop_path: float = 0.0) -> None:
        super().__init__()
        half = token_channels // 2
        self.heads = heads
        self.scale = 1.0 / math.sqrt(half / heads)
        self.key = Pointwise(1, token_channels, half, kqv_groups)
        self.query = Pointwise(1, token_channels, half, kqv_groups)
        self.value = Pointwise(1, token_channels, token_channels, kqv_groups)
        self.norm = nn.BatchNorm1d(token_channels)
        nn.init.zeros_(self.norm.weight)  # a fresh block passes its input through
        self.ff = Pointwise(1, token_channels, token_channels, zero_init=True)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor, absent: Tensor | None = None) -> TransformerOutput:
        """(N, C_T, L) -> tokens of the same shape, attention (N, h, L_query, L_key); ``absent`` (N, L) is not read."""
        key, query, value = (f(tokens).unflatten(1, (self.heads, -1)) for f in (self.key, self.query, self.value))
        out = None if absent is None else absent[:, None, None, :]
        attention = masked_softmax(query.transpose(2, 3) @ key * self.scale, -1, out)
        mixed = value @ attention.to(value.dtype).transpose(2, 3)
        tokens = tokens + self.drop_path(self.norm(mixed.flatten(1, 2)))
        tokens = tokens + self.drop_path(self.ff(tokens))
        return TransformerOutput(tokens, attention)


class PointwiseTransformer(nn.Module):
    """Table 3's "-TF": a point-wise convolution in the transformer's place; tokens no longer see each other."""

    def __init__(self, token_channels: int) -> None:
        super().__init__()
        self.ff = Pointwise(1, token_channels, token_channels)

    def forward(self, tokens: Tensor, absent: Tensor | None = None) -> TransformerOutput:  # noqa: ARG002
        """(N, C_T, L) -> tokens of the same shape, no attention; no token reads another, absent or not."""
        return TransformerOutput(self.ff(tokens), None)


class Projector(nn.Module):
    """Fuses the tokens back into the feature map: each cell reads the tokens that it asks for (Eq. 4, Listing 4)."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        token_channels: int,
        *,
        heads: int,
        groups: int | None = None,
        drop_path: float = 0.0,
    ) -> None:
        """``groups``: of the query convolution; :func:`groups_for` both widths by default."""
        super().__init__()
        self.heads = heads
        self.scale = 1.0 / math.sqrt(channels / heads)
        self.key = Pointwise(1, token_channels, channels)
        self.value = nn.Identity() if token_channels == channels else Pointwise(1, token_channels, channels)
        self.query = Pointwise(2, channels_in, channels, groups or groups_for(channels, channels_in))
        self.norm = BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)  # a fresh block passes its input through
        self.adapter = nn.Identity() if channels_in == channels else Pointwise(2, channels_in, channels)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, feature: Tensor, tokens: Tensor, absent: Tensor | None = None) -> ProjectorOutput:
        """Feature (N, C_in, H, W) and tokens (N, C_T, L) -> feature (N, C, H, W), coefficients (N, h, L, H, W).

        No cell reads the tokens of ``absent`` (N, L).
        """
        size = feature.shape[-2:]
        query = self.query(feature).flatten(2).unflatten(1, (self.heads, -1))
        key = self.key(tokens).unflatten(1, (self.heads, -1))
        value = self.value(tokens).unflatten(1, (self.heads, -1))
        out = None if absent is None else absent[:, None, :, None]
        coefficients = masked_softmax(key.transpose(2, 3) @ query * self.scale, 2, out)
        folded = not self.training and absent is None and folds(self.norm)
        if folded:  # the coefficients sum to 1: normalise values, and not the map
            scale, shift = (part.view(self.heads, -1, 1) for part in scale_and_shift(self.norm))
            value = value * scale + shift
        projection = (value @ coefficients.to(value.dtype)).flatten(1, 2).unflatten(-1, size)
        feature = self.adapter(feature) + (projection if folded else self.drop_path(self.norm(projection)))
        return ProjectorOutput(feature, coefficients.unflatten(-1, size))


class VTBlock(nn.Module):
    """Tokenizer, transformer and, unless it is a classifier's last block, projector (Fig. 1)."""

    def __init__(
        self, config: VTStageConfig, channels_in: int, *, first: bool, projector: bool, drop_path: float
    ) -> None:
        super().__init__()
        dynamic = config.dynamic and not first
        self.tokenizer = Tokenizer(
            channels_in,
            config.token_channels,
            config.num_tokens,
            heads=config.heads,
            dynamic=dynamic,
            position_encoding=config.position_encoding,
            static_scale=config.static_scale,
        )
        self.transformer: nn.Module = (
            Transformer(config.token_channels, heads=config.heads, kqv_groups=config.kqv_groups, drop_path=drop_path)
            if config.transformer
            else PointwiseTransformer(config.token_channels)
        )
        self.projector = (
            Projector(channels_in, config.channels, config.token_channels, heads=config.heads, drop_path=drop_path)
            if projector
            else None
        )

    def forward(
        self,
        feature: Tensor,
        tokens: Tensor | None = None,
        absent: Tensor | None = None,
        edit: Edit | None = None,
    ) -> BlockOutput:
        """Feature (N, C_in, H, W), the previous block's tokens and which of them are absent, what to change here."""
        tokenized = self.tokenizer(feature, tokens)
        given, absent = apply_edit(tokenized.tokens, self.tokenizer.places(absent), edit)
        transformed = self.transformer(given, absent)
        projected = None if self.projector is None else self.projector(feature, transformed.tokens, absent)
        out = feature if projected is None else projected.feature
        return BlockOutput(out, transformed.tokens, tokenized, transformed, projected, absent)


def apply_edit(tokens: Tensor, absent: Tensor | None, edit: Edit | None) -> tuple[Tensor, Tensor | None]:
    """A layer's tokens and those of them that are absent, after its edit."""
    if edit is None:
        return tokens, absent
    if edit.absent is not None:
        absent = edit.absent if absent is None else absent | edit.absent
    return tokens if edit.tokens is None else edit.tokens, absent


class VTStage(nn.Module):
    """A cascade of visual transformer blocks in the place of ResNet's stage 5 (Sec. 4.1).

    The channel adapter stands in the first block's projector, after tokenization (the paper's counts say so, its text
    says before). The last block has no projector: only its tokens are read by the classifier.
    """

    def __init__(self, channels_in: int, config: VTStageConfig, drop_path: Sequence[float] | None = None) -> None:
        """``drop_path``: stochastic depth probability of each block's residual branches; none by default."""
        super().__init__()
        self.config = config
        rates = drop_path or [0.0] * config.blocks
        self.blocks = nn.ModuleList(
            VTBlock(
                config,
                channels_in if i == 0 else config.channels,
                first=i == 0,
                projector=i < config.blocks - 1,
                drop_path=rates[i],
            )
            for i in range(config.blocks)
        )

    def forward(self, feature: Tensor, edits: Sequence[Edit | None] = ()) -> list[BlockOutput]:
        """Feature (N, C_in, H, W) -> each block's output; the last one's ``tokens`` are the stage's.

        ``edits``: what to change in each block, of the first blocks where there are fewer.
        """
        outputs: list[BlockOutput] = []
        tokens = absent = None
        for i, block in enumerate(self.blocks):
            outputs.append(block(feature, tokens, absent, edits[i] if i < len(edits) else None))
            feature, tokens, absent = outputs[-1].feature, outputs[-1].tokens, outputs[-1].absent
        return outputs
