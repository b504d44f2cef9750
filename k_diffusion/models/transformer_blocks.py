"""What both transformers are built from: root-mean-square norms, gated feed-forward blocks, the
mapping network, their condition.
"""

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
    """scale x / sqrt(mean x^2 + eps) over the last axis, computed in float32 at least (Zhang &
    Sennrich, 2019, arXiv 1910.07467).
    """
    return fused.plain_rms_norm(x, scale, eps)


@flags.compile_wrap
def linear_geglu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """value * gelu(gate), where the linear map gives value and gate, in this order (Shazeer,
    2020, arXiv 2002.05202).
    """
    if bias is None:
        return fused.plain_linear_geglu(x, weight)
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


class LinearGEGLU(nn.Linear):
    """linear_geglu with its weight [2 out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features * 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        plain = flags.get_use_compile() or self.bias is not None
        return (
            linear_geglu(x, self.weight, self.bias) if plain else fused.linear_geglu(x, self.weight)
        )


class RMSNorm(nn.Module):
    """rms_norm with a learned scale."""

    def __init__(self, shape: int | tuple[int, ...], eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        if flags.get_use_compile() or self.scale.ndim > 1:
            return rms_norm(x, self.scale, self.eps)
        return fused.scaled_rms_norm(x[None], self.scale[None], self.eps)[0]


class AdaRMSNorm(nn.Module):
    """rms_norm with a scale that a linear map gives, from the condition: x [B, ..., features],
    cond [B, cond_features].
    """

    def __init__(self, features: int, cond_features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.linear = tag_module(
            apply_wd(zero_init(nn.Linear(cond_features, features, bias=False))), 'mapping'
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale = self.linear(cond) + 1
        if flags.get_use_compile():
            return rms_norm(x, scale.view(scale.shape[0], *[1] * (x.ndim - 2), -1), self.eps)
        return fused.scaled_rms_norm(x, scale, self.eps)


class FeedForwardBlock(nn.Module):
    """x + down(dropout(up(norm(x, cond)))); up is gated."""

    def __init__(self, d_model: int, d_ff: int, cond_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = AdaRMSNorm(d_model, cond_features)
        self.up_proj = apply_wd(LinearGEGLU(d_model, d_ff, bias=False))
        self.dropout = nn.Dropout(dropout)
        self.down_proj = apply_wd(zero_init(nn.Linear(d_ff, d_model, bias=False)))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return x + self.down_proj(self.dropout(self.up_proj(self.norm(x, cond))))


class MappingFeedForwardBlock(nn.Module):
    """x + down(dropout(up(norm(x)))); up is gated."""

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.up_proj = apply_wd(LinearGEGLU(d_model, d_ff, bias=False))
        self.dropout = nn.Dropout(dropout)
        self.down_proj = apply_wd(zero_init(nn.Linear(d_ff, d_model, bias=False)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down_proj(self.dropout(self.up_proj(self.norm(x))))


class MappingNetwork(nn.Module):
    """The network that the condition passes through: [B, d_model] -> the same."""

    def __init__(self, n_layers: int, d_model: int, d_ff: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_norm = RMSNorm(d_model)
        self.blocks = nn.ModuleList(
            [MappingFeedForwardBlock(d_model, d_ff, dropout=dropout) for _ in range(n_layers)]
        )
        self.out_norm = RMSNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_norm(x)
        for block in self.blocks:
            x = block(x)
        return self.out_norm(x)


class ConditionedTransformer(nn.Module, ABC):
    """What the two networks share: how they make their condition, and how their parameters are
    to be trained.
    """

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
        """Creates the modules that `condition` uses, under the names that checkpoints know."""
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
        """Return what modulates every block, [B, width]: the noise level, the augmentation (none
        by default), the class and the rest.
        """
        c_noise = sigma.to(torch.promote_types(sigma.dtype, torch.float32)).log() / 4
        aug_cond = c_noise.new_zeros(sigma.shape[0], 9) if aug_cond is None else aug_cond
        x = self.time_in_proj(self.time_emb(c_noise[..., None])) + self.aug_in_proj(
            self.aug_emb(aug_cond)
        )
        for name, module, given in (
            ('class_cond', self.class_emb, class_cond),
            ('mapping_cond', self.mapping_cond_in_proj, mapping_cond),
        ):
            if (module is None) != (given is None):
                raise ValueError(
                    f'{name} was given to a model that was built without it; leave it out'
                    if module is None
                    else (
                        f'{name} is missing; this model was built with it and cannot run without it'
                    )
                )
            if module is not None:
                x = x + module(given)
        more = map_features(self.map_inputs, sigma, sigma_next, guidance_scale)
        return self.mapping(x if more is None else x + more)

    def param_groups(
        self, base_lr: float = 5e-4, mapping_lr_scale: float = 1 / 3
    ) -> list[dict[str, Any]]:
        """With weight decay, without it, and the mapping network's two at mapping_lr_scale times
        the learning rate.
        """
        return param_groups(self, base_lr, mapping_lr_scale)

    def hidden_parameters(self) -> list[nn.Parameter]:
        """The weight matrices between hidden features, which Muon takes."""
        return [
            p
            for module in self.hidden_modules()
            for p in filter_params(lambda tags: tags == {'wd'}, module)
        ]

    @abstractmethod
    def hidden_modules(self) -> list[nn.Module]:
        """What lies between the first and the last projection, without the condition's own
        network.
        """
