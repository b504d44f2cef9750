"""Pretrained networks of the transformers library by folder or name, and CLIP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .extras import require
from .files import read_json
from .hub import hub_fault

#: The names of CLIP models on the hub by OpenAI's names.
OPENAI_CLIP = {
    'ViT-B/32': 'openai/clip-vit-base-patch32',
    'ViT-B/16': 'openai/clip-vit-base-patch16',
    'ViT-L/14': 'openai/clip-vit-large-patch14',
    'ViT-L/14@336px': 'openai/clip-vit-large-patch14-336',
}
#: Mean and standard deviation by which CLIP's images in [0, 1] are normalised, unless
#: preprocessor_config.json sets others.
CLIP_NORMALISATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load_pretrained(
    name: str | os.PathLike[str],
    kind: str = 'AutoModel',
    purpose: str = 'a pretrained network',
    device: Any = 'cpu',
) -> Any:
    """Load a transformers model in evaluation mode, without gradients of its weights.

    Code that comes with weights is not run.

    Args:
        name: A local folder, or a name on the hub.
        kind: The class, 'AutoModel', 'CLIPModel', ...
        purpose: The use of the network, for messages.
        device: The device.

    Raises:
        ValueError: If the folder does not fit the class.
        FileNotFoundError: If there is neither the folder nor the model.
    """
    model = _from_pretrained(name, kind, purpose)
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(name: str | os.PathLike[str], purpose: str = 'a tokenizer') -> Any:
    """Load the tokenizer of such a model.

    Args:
        name: A local folder, or a name on the hub.
        purpose: The use of the tokenizer, for messages.
    """
    return _from_pretrained(name, 'AutoTokenizer', purpose)


def _from_pretrained(name: str | os.PathLike[str], kind: str, purpose: str) -> Any:
    transformers = require('transformers', 'clip', purpose)
    fault = hub_fault(name)
    try:
        with _quiet(transformers):
            return getattr(transformers, kind).from_pretrained(
                str(name), trust_remote_code=False, local_files_only=fault is not None
            )
    except (OSError, ValueError, KeyError) as error:
        if Path(name).is_dir():
            reason = ' '.join(str(error).split())
            raise ValueError(
                f'{purpose}: the folder {name} must be one that save_pretrained wrote; it cannot '
                f'be loaded as {kind} ({reason[:200]})'
            ) from None
        why = f' ({fault})' if fault else ''
        raise FileNotFoundError(
            f'{purpose}: there is no folder {name}, and no model of that name is on this disk or '
            f'can be downloaded{why}; pass the folder of a downloaded model'
        ) from None


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Disable the progress bars and advice of the library."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


class ClipModel(nn.Module):
    """A CLIP model of transformers: images and texts to one space, with gradients to images.

    Args:
        name: A folder, a name on the hub, or one of OpenAI's names ('ViT-B/16').
        device: The device.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str | os.PathLike[str], device: Any = 'cpu') -> None:
        super().__init__()
        name = OPENAI_CLIP.get(str(name), name)
        self.model = load_pretrained(name, 'CLIPModel', 'CLIP', device)
        self._name = name
        self._tokenizer: Any = None
        self.size: int = self.model.config.vision_config.image_size
        self.channels: int = self.model.config.vision_config.num_channels
        mean, std = _normalisation(Path(name), self.channels)
        self.register_buffer('mean', torch.tensor(mean, device=device)[:, None, None])
        self.register_buffer('std', torch.tensor(std, device=device)[:, None, None])

    def encode_images(self, x: Tensor) -> Tensor:
        """Return embeddings [N, E] of images [N, C, H, W] in [-1, 1], not normalised.

        Args:
            x: The images; other sizes are resized to `size`.
        """
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode='bicubic', antialias=True)
        if x.shape[1] != self.channels:
            if 1 not in (x.shape[1], self.channels):
                x = x[:, : self.channels]
            x = x.expand(-1, self.channels, -1, -1) if x.shape[1] == 1 else x.mean(1, keepdim=True)
        pixels = ((x + 1) / 2 - self.mean) / self.std
        return _tensor(self.model.get_image_features(pixel_values=pixels.to(self.model.dtype))).to(
            x.dtype
        )

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings [N, E] of texts, not normalised.

        Args:
            texts: The texts.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._name, 'the words of CLIP')
        length = self.model.config.text_config.max_position_embeddings
        words = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors='pt'
        ).to(self.mean.device)
        with torch.no_grad():
            return _tensor(
                self.model.get_text_features(
                    input_ids=words['input_ids'], attention_mask=words['attention_mask']
                )
            )


def _tensor(output: Any) -> Tensor:
    """Return the features, which are a tensor or (since transformers 5) inside an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _normalisation(folder: Path, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    file = folder / 'preprocessor_config.json'
    settings = read_json(file.read_text('utf-8'), str(file)) if file.is_file() else {}
    mean, std = (
        settings.get('image_mean', CLIP_NORMALISATION[0]),
        settings.get('image_std', CLIP_NORMALISATION[1]),
    )
    return (
        (mean, std)
        if len(mean) == channels
        else ([sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels)
    )
