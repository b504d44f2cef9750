"""Feature extractors: images [B, C, H, W] in [-1, 1] -> features [B, D].

Any callable can be one; these are common ones.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.files import cache_folder, download_file
from ..core.pretrained import CLIP_NORMALISATION, OPENAI_CLIP, load_pretrained
from .arrays import as_pictures

INCEPTION_URL = (
    'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/'
    'inception-2015-12-05.pt'
)
INCEPTION_DIGEST = 'f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4'

DINOV2_MODELS = {
    'vits14': 'facebook/dinov2-small',
    'vitb14': 'facebook/dinov2-base',
    'vitl14': 'facebook/dinov2-large',
    'vitg14': 'facebook/dinov2-giant',
}


class Extractor(Protocol):
    """(images [B, C, H, W] in [-1, 1]) -> features [B, D].

    If an extractor has an attribute `fingerprint`, a text that changes with its output, the
    features of
    a reference set are cached.
    """

    def __call__(self, x: Tensor) -> Tensor: ...


class InceptionV3FeatureExtractor:
    """The 2048 features of Inception by which FID is defined, from NVIDIA's TorchScript file.

    A TorchScript file can run code when it is loaded, so a file that does not have the SHA-256 of
    NVIDIA's needs `allow_code`.

    Args:
        device: The device.
        path: The file; by default the one in the cache, downloaded if missing.
        allow_code: Permission to load another file.

    References:
        Heusel et al. (2017), arXiv:1706.08500; Szegedy et al. (2015), arXiv:1512.00567.
    """

    def __init__(
        self,
        device: Any = 'cpu',
        path: str | os.PathLike[str] | None = None,
        allow_code: bool = False,
    ) -> None:
        file = Path(path) if path is not None else cache_folder() / 'inception-2015-12-05.pt'
        if path is None:
            file = download_file(file, INCEPTION_URL, INCEPTION_DIGEST)
        self.model, digest = _load_script(file, device, allow_code)
        self.fingerprint = f'inception {digest}'

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        x = as_pictures(x, 'x')
        levels = _resize(_three_channels(x.float()), 299).mul(127.5).add(127.5).clamp(0, 255)
        return self.model.layers((levels - 128) / 128).flatten(1)


class CLIPFeatureExtractor:
    """CLIP's image embeddings, of length sqrt(D), through transformers.

    Args:
        name: One of available_models(), a folder written by save_pretrained, or a name on the
            Hugging Face Hub.
        device: The device.

    References:
        Radford et al. (2021), arXiv:2103.00020.
    """

    def __init__(self, name: str = 'ViT-B/16', device: Any = 'cpu') -> None:
        self.model = load_pretrained(
            OPENAI_CLIP.get(name, name),
            'CLIPVisionModelWithProjection',
            f'the feature extractor {name}',
            device,
        )
        self.size = self.model.config.image_size
        self.fingerprint = f'clip {_digest(self.model)}'

    @classmethod
    def available_models(cls) -> list[str]:
        """Return the names of the published models."""
        return list(OPENAI_CLIP)

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        x = as_pictures(x, 'x')
        pixels = _normalise(x, self.size, *CLIP_NORMALISATION)
        return _of_length_sqrt_d(self.model(pixel_values=pixels).image_embeds)


class DINOv2FeatureExtractor:
    """DINOv2's class tokens after the last norm, of length sqrt(D), for images of size 224.

    Args:
        name: One of available_models(), a folder written by save_pretrained, or a name on the
            Hugging Face Hub.
        device: The device.

    References:
        Oquab et al. (2023), arXiv:2304.07193; as an extractor Stein et al. (2023),
        arXiv:2306.04675.
    """

    size = 224

    def __init__(self, name: str = 'vitl14', device: Any = 'cpu') -> None:
        self.model = load_pretrained(
            DINOV2_MODELS.get(name, name), 'Dinov2Model', f'the feature extractor {name}', device
        )
        self.fingerprint = f'dinov2 {_digest(self.model)}'

    @classmethod
    def available_models(cls) -> list[str]:
        """Return the names of the published models."""
        return list(DINOV2_MODELS)

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        x = as_pictures(x, 'x')
        pixels = _normalise(x, self.size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return _of_length_sqrt_d(self.model(pixel_values=pixels).pooler_output)


class ScriptFeatureExtractor:
    """A TorchScript file that maps images in [-1, 1] to features [B, D].

    Further axes are flattened. Such a file can run code when it is loaded and each time it is
    called.

    Args:
        path: The file.
        device: The device.
        allow_code: Permission to load it.

    Raises:
        ValueError: Without that permission.
    """

    def __init__(
        self, path: str | os.PathLike[str], device: Any = 'cpu', allow_code: bool = False
    ) -> None:
        self.model, digest = _load_script(Path(path), device, allow_code)
        self.fingerprint = f'script {digest}'

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        x = as_pictures(x, 'x')
        return self.model(x.float()).flatten(1)


def _load_script(path: Path, device: Any, allow_code: bool) -> tuple[Any, str]:
    """Load the network of a TorchScript file; return it and its SHA-256.

    Without `allow_code` only NVIDIA's file is loaded.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f'no feature extractor at {path}; give the path of a TorchScript file'
        )
    data = path.read_bytes()  # read once, so that the checked bytes are the loaded ones
    digest = hashlib.sha256(data).hexdigest()
    if digest != INCEPTION_DIGEST and not allow_code:
        raise ValueError(
            f'{path} is loaded only with allow_code=True, because a TorchScript file can run code; '
            'pass that if you trust it'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # such files are what is published
            return torch.jit.load(io.BytesIO(data), map_location=device).eval(), digest
    except RuntimeError as error:
        raise ValueError(
            f'{path} must be a TorchScript file ({str(error).splitlines()[0]}); write one with '
            'torch.jit.save'
        ) from None


def _digest(model: Any) -> str:
    """Return a digest of a model's weights, from sums that any change alters."""
    sums = torch.stack(
        [torch.stack([p.double().sum(), p.double().square().sum()]) for p in model.parameters()]
    )
    return (
        f'{type(model).__name__} {sums.shape[0]} {sums.sum(0).tolist()} '
        f'{sums[:, 0].square().sum().item()}'
    )


def _normalise(x: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    x = _resize(_three_channels(x.float()) / 2 + 0.5, size)
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def _resize(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, (size, size), mode='bicubic', align_corners=False, antialias=True)


def _three_channels(x: Tensor) -> Tensor:
    if x.shape[1] not in (1, 3, 4):
        raise ValueError(f'x must be images of 1, 3 or 4 channels; got {x.shape[1]}')
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]


def _of_length_sqrt_d(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1) * features.shape[-1] ** 0.5
