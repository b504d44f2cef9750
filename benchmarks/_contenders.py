"""Networks of other packages, and the shapes of the original, for benchmarks/speedrun.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from k_diffusion.core.tensors import append_dims
from k_diffusion.layers.embeddings import FourierFeatures
from k_diffusion.models.windows import fold_patches, unfold_patches

#: By task: patch size, channels and blocks of each level, features of the condition.
SHAPES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    'digits': (2, (32, 64), (1, 1), 64),
    'mnist': (2, (32, 64), (1, 1), 128),
    'icons': (2, (32, 64, 128), (1, 2, 2), 128),
}


class Peer(nn.Module):
    """A network of another package behind our signature, with our patches and class embedding.

    Its hidden convolutions and matrices go to Muon, as those of our networks do.
    """

    def __init__(self, channels: int, task: str, classes: int) -> None:
        super().__init__()
        self.patch_size, _, _, features = SHAPES[task]
        self.patch_channels = channels * self.patch_size**2
        self.null = classes
        self.embed_sigma = FourierFeatures(1, features)
        self.embed_class = nn.Embedding(classes + 1, features)
        self.map = nn.Sequential(nn.Linear(features, features), nn.SiLU())

    def condition(self, sigma: Tensor, class_cond: Tensor | None) -> Tensor:
        """Return the features [B, D] of the noise level and the class."""
        if class_cond is None:
            class_cond = torch.full_like(sigma, self.null, dtype=torch.long)
        embedded = self.embed_sigma(append_dims(sigma.log() / 4, 2)) + self.embed_class(class_cond)
        features: Tensor = self.map(embedded)
        return features

    def forward(self, x: Tensor, sigma: Tensor, class_cond: Tensor | None = None) -> Tensor:
        folded = fold_patches(x, self.patch_size).contiguous(memory_format=torch.channels_last)
        inner = self.run(folded, self.condition(sigma, class_cond))
        return unfold_patches(inner, self.patch_size)

    def run(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return the prediction for folded pictures."""
        raise NotImplementedError

    def hidden_parameters(self) -> list[nn.Parameter]:
        """Return the convolutions between hidden features."""
        convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        return [
            m.weight
            for m in convolutions
            if self.patch_channels not in (m.in_channels, m.out_channels)
        ]


class AzulaPeer(Peer):
    """The U-Net of azula, with its own defaults."""

    def __init__(self, channels: int, task: str, classes: int) -> None:
        super().__init__(channels, task, classes)
        from azula.nn.unet import UNet

        _, widths, blocks, features = SHAPES[task]
        self.net = UNet(
            self.patch_channels,
            self.patch_channels,
            hid_channels=widths,
            hid_blocks=blocks,
            mod_features=features,
        )

    def run(self, x: Tensor, cond: Tensor) -> Tensor:
        out: Tensor = self.net(x, cond)
        return out


class DiffusersPeer(Peer):
    """The UNet2DModel of diffusers, attention at its coarsest level as in our configs.

    The condition enters through its class embedding, which is made an identity.
    """

    def __init__(self, channels: int, task: str, classes: int) -> None:
        super().__init__(channels, task, classes)
        from diffusers import UNet2DModel

        _, widths, blocks, features = SHAPES[task]
        n = len(widths) - 1
        self.net = UNet2DModel(
            in_channels=self.patch_channels,
            out_channels=self.patch_channels,
            layers_per_block=max(blocks),
            block_out_channels=widths,
            down_block_types=['DownBlock2D'] * n + ['AttnDownBlock2D'],
            up_block_types=['AttnUpBlock2D'] + ['UpBlock2D'] * n,
            attention_head_dim=32,
            class_embed_type='identity',
        )
        self.into_embedding = nn.Linear(features, 4 * widths[0])

    def run(self, x: Tensor, cond: Tensor) -> Tensor:
        labels = self.into_embedding(cond)
        out: Tensor = self.net(x, labels.new_zeros(len(x)), class_labels=labels)[0]
        return out


PEERS: dict[str, Callable[[int, str, int], nn.Module]] = {
    'azula': AzulaPeer,
    'diffusers': DiffusersPeer,
}


def original_shapes(config: dict[str, Any]) -> dict[str, Any]:
    """Return changes that give a config of `image_v1` the original's form: no patches, 2 blocks."""
    channels = config['model']['channels']
    return {
        'model.type': 'image_v1',
        'model.patch_size': 1,
        'model.depths': [2] * len(channels),
        'model.self_attn_depths': [False] * (len(channels) - 1) + [True],
    }


def installed(name: str) -> bool:
    """Return whether the package of a peer is there."""
    return importlib.util.find_spec(name) is not None
