"""The parts of both transformers: norms, feed-forward blocks, mapping network and condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import fused
from ..layers.conditioning import zero_init
from ..layers.embeddings import FourierFeatures, MapInputs, map_features
from . import flags
from .tagging import apply_wd, filter_params, param_groups, tag_module


@flags.compile_wrap
def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return scale x / sqrt(mean x^2 + eps) over the last axis, computed in float32 at least.

    Args:
        x: [..., D].
        scale: Broadcasts against x.
        eps: Added to the mean square.

    References:
        Zhang & Sennrich (2019), arXiv:1910.07467.
    """
    return fused.plain_rms_norm(x, scale, eps)


@flags.compile_wrap
def linear_geglu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return value * gelu(gate), where a linear map gives value and gate, in this order.

    Args:
        x: [..., D].
        weight: [2 out_features, D].
        bias: [2 out_features].

    References:
        Shazeer (2020), arXiv:2002.05202.
    """
    if bias is None:
        return fused.plain_linear_geglu(x, weight)
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


class LinearGEGLU(nn.Linear):
    """linear_geglu with a learned weight [2 out_features, in_features].

    Args:
        in_features: The features of the input.
        out_features: The features of the output.
        bias: Learn a bias.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features * 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated values, [..., out_features].

        Args:
            x: [..., in_features].
        """
        plain = flags.get_use_compile() or self.bias is not None
        return (
            linear_geglu(x, self.weight, self.bias) if plain else fused.linear_geglu(x, self.weight)
        )


class RMSNorm(nn.Module):
    """rms_norm with a learned scale.

    Args:
        shape: The shape of the scale.
        eps: Added to the mean square.
    """

    def __init__(self, shape: int | tuple[int, ...], eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised and scaled x.

        Args:
            x: [..., D].
        """
        if flags.get_use_compile() or self.scale.ndim > 1:
            return rms_norm(x, self.scale, self.eps)
        return fused.scaled_rms_norm(x[None], self.scale[None], self.eps)[0]


class AdaRMSNorm(nn.Module):
    """rms_norm with a scale that is a linear map of the condition.

    Args:
        features: The features of x.
        cond_features: The features of the condition.
        eps: Added to the mean square.
    """

    def __init__(self, features: int, cond_features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.linear = tag_module(
            apply_wd(zero_init(nn.Linear(cond_features, features, bias=False))), 'mapping'
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return the normalised and scaled x.

        Args:
            x: [B, ..., features].
            cond: [B, cond_features].
        """
        scale = self.linear(cond) + 1
        if flags.get_use_compile():
            return rms_norm(x, scale.view(scale.shape[0], *[1] * (x.ndim - 2), -1), self.eps)
        return fused.scaled_rms_norm(x, scale, self.eps)


class FeedForwardBlock(nn.Module):
    """x + down(dropout(up(norm(x, cond)))), with a gated up.

    Args:
        d_model: The features of x.
        d_ff: The features inside.
        cond_features: The features of the condition.
        dropout: The dropout rate.
    """

    def __init__(self, d_model: int, d_ff: int, cond_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = AdaRMSNorm(d_model, cond_features)
        self.up_proj = apply_wd(LinearGEGLU(d_model, d_ff, bias=False))
        self.dropout = nn.Dropout(dropout)
        self.down_proj = apply_wd(zero_init(nn.Linear(d_ff, d_model, bias=False)))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return the features, in the shape of x.

        Args:
            x: [B, ..., d_model].
            cond: [B, cond_features].
        """
        return x + self.down_proj(self.dropout(self.up_proj(self.norm(x, cond))))


class MappingFeedForwardBlock(nn.Module):
    """x + down(dropout(up(norm(x)))), with a gated up.

    Args:
        d_model: The features of x.
        d_ff: The features inside.
        dropout: The dropout rate.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.up_proj = apply_wd(LinearGEGLU(d_model, d_ff, bias=False))
        self.dropout = nn.Dropout(dropout)
        self.down_proj = apply_wd(zero_init(nn.Linear(d_ff, d_model, bias=False)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, in the shape of x.

        Args:
            x: [B, d_model].
        """
        return x + self.down_proj(self.dropout(self.up_proj(self.norm(x))))


class MappingNetwork(nn.Module):
    """The network for the condition: [B, d_model] -> the same.

    Args:
        n_layers: The number of blocks.
        d_model: The features.
        d_ff: The features inside a block.
        dropout: The dropout rate.
    """

    def __init__(self, n_layers: int, d_model: int, d_ff: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_norm = RMSNorm(d_model)
        self.blocks = nn.ModuleList(
            [MappingFeedForwardBlock(d_model, d_ff, dropout=dropout) for _ in range(n_layers)]
        )
        self.out_norm = RMSNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, in the shape of x.

        Args:
            x: [B, d_model].
        """
        x = self.in_norm(x)
        for block in self.blocks:
            x = block(x)
        return self.out_norm(x)


class ConditionedTransformer(nn.Module, ABC):
    """The base class of the transformers: their condition, and the groups of their parameters."""

    def make_condition(
        self,
        n_layers: int,
        width: int,
        d_ff: int,
        dropout: float = 0.0,
        num_classes: int = 0,
        mapping_cond_dim: int = 0,
        flow_map: bool = False,
        guidance_input: bool = False,
    ) -> None:
        """Create the modules that `condition` uses, under their names in checkpoints.

        Args:
            n_layers: The number of blocks of the mapping network.
            width: The features of the condition.
            d_ff: The features inside a block of the mapping network.
            dropout: The dropout rate of the mapping network.
            num_classes: The number of classes, including the null class; 0 for none.
            mapping_cond_dim: The features of mapping_cond; 0 for none.
            flow_map: Take a second noise level, sigma_next.
            guidance_input: Take the guidance scale.
        """
        self.time_emb = FourierFeatures(1, width)
        self.time_in_proj = nn.Linear(width, width, bias=False)
        self.aug_emb = FourierFeatures(9, width)
        self.aug_in_proj = nn.Linear(width, width, bias=False)
        self.class_emb = nn.Embedding(num_classes, width) if num_classes else None
        self.mapping_cond_in_proj = (
            nn.Linear(mapping_cond_dim, width, bias=False) if mapping_cond_dim else None
        )
        self.mapping = tag_module(MappingNetwork(n_layers, width, d_ff, dropout=dropout), 'mapping')
        self.map_inputs = MapInputs(width, guidance_input) if flow_map else None

    def condition(
        self,
        sigma: Tensor,
        aug_cond: Tensor | None = None,
        class_cond: Tensor | None = None,
        mapping_cond: Tensor | None = None,
        sigma_next: Tensor | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """Return the features that modulate every block, [B, width].

        Args:
            sigma: The noise levels, [B].
            aug_cond: The augmentation, [B, 9]; none by default.
            class_cond: Classes, [B].
            mapping_cond: [B, mapping_cond_dim].
            sigma_next: The second levels of a flow map, [B].
            guidance_scale: The guidance scales of a flow map, [B].

        Raises:
            ValueError: If a condition is missing, or the model was built without it.
        """
        c_noise = sigma.to(torch.promote_types(sigma.dtype, torch.float32)).log() / 4
        aug_cond = c_noise.new_zeros(sigma.shape[0], 9) if aug_cond is None else aug_cond
        x = self.time_in_proj(self.time_emb(c_noise[..., None])) + self.aug_in_proj(
            self.aug_emb(aug_cond)
        )
        for name, module, value in (
            ('class_cond', self.class_emb, class_cond),
            ('mapping_cond', self.mapping_cond_in_proj, mapping_cond),
        ):
            if (module is None) != (value is None):
                raise ValueError(
                    f'{name} must be left out for a model that was built without it; got one'
                    if module is None
                    else f'{name} must be given to a model that was built with it; got None'
                )
            if module is not None:
                x = x + module(value)
        more = map_features(self.map_inputs, sigma, sigma_next, guidance_scale)
        return self.mapping(x if more is None else x + more)

    def param_groups(
        self, base_lr: float = 5e-4, mapping_lr_scale: float = 1 / 3
    ) -> list[dict[str, Any]]:
        """Return four groups for an optimizer.

        They have or lack weight decay, and belong to the mapping network or the rest.

        Args:
            base_lr: The learning rate.
            mapping_lr_scale: The factor on it for the mapping network.
        """
        return param_groups(self, base_lr, mapping_lr_scale)

    def hidden_parameters(self) -> list[nn.Parameter]:
        """Return the weight matrices between hidden features, for Muon."""
        return [
            p
            for module in self.hidden_modules()
            for p in filter_params(lambda tags: tags == {'wd'}, module)
        ]

    @abstractmethod
    def hidden_modules(self) -> list[nn.Module]:
        """Return the modules between the first and the last projection.

        The mapping network is not among them.
        """
