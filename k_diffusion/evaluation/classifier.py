"""A feature extractor without a download: a small classifier trained on labelled images."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.images import from_bytes, raw_bytes
from ..core.random import derive_seed, generator
from ..core.tensor_cache import load_cache, save_cache
from ..core.weights import load_safetensors, load_safetensors_config
from .arrays import as_bytes, as_pictures, as_tensor, whole_number

SIDE = 32  # larger images are resized to this side
# Version of the network and its training, so that cached classifiers and features are not mixed.
RECIPE = 1


class Classifier(nn.Module):
    """Two convolutions and a hidden layer of 64 units, whose values are the features [B, 64].

    The features are scaled to a mean variance of 1 on the training images. The attribute `accuracy`
    is the share of held-out images that it classified correctly after training.

    Args:
        channels: Number of channels of the images.
        size: Their height and width.
        classes: Number of classes.
    """

    scale: Tensor

    def __init__(self, channels: int, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        height, width = (min(side, SIDE) for side in size)
        self.channels, self.size, self.accuracy, self.fingerprint = (
            channels,
            (height, width),
            math.nan,
            '',
        )
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(32 * _quarter(height) * _quarter(width), 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, classes)
        self.register_buffer('scale', torch.ones(()))

    def forward(self, x: Any) -> Tensor:
        """Return the features [B, 64].

        Args:
            x: Images [B, C, H, W] in [-1, 1].
        """
        x = as_pictures(x, 'x')
        if x.shape[1] != self.channels:
            raise ValueError(
                f'x must be images of {self.channels} channels, like the training images; '
                f'got {x.shape[1]}'
            )
        return self.body(self._reframe(x.to(self.scale.dtype))) / self.scale

    def logits(self, x: Any) -> Tensor:
        """Return the logits of the classes, [B, K].

        Args:
            x: Images [B, C, H, W] in [-1, 1].
        """
        return self.head(self(x))

    def _reframe(self, x: Tensor) -> Tensor:
        return (
            x
            if x.shape[-2:] == self.size
            else F.interpolate(x, self.size, mode='bilinear', antialias=True)
        )


def train_classifier(
    images: Any,
    labels: Any,
    classes: int,
    seed: int = 0,
    steps: int = 600,
    batch_size: int = 128,
    report: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Train a classifier on nine tenths of the images; a function of images and seed.

    It computes on the CPU if the images are there, and neither uses nor changes torch's global
    generator.

    Args:
        images: uint8 [N, C, H, W].
        labels: Classes [N].
        classes: Number of classes.
        seed: The seed.
        steps: Number of steps.
        batch_size: Number of images in a step.
        report: Called with the step and the number of steps.
    """
    images, labels = _check_labels(images, labels, classes)
    whole_number(steps, 'steps')
    whole_number(batch_size, 'batch_size')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 'classifier'))
        network = Classifier(images.shape[1], (images.shape[2], images.shape[3]), classes)
    order = torch.randperm(len(images), generator=generator(seed, 'classifier split'))
    held_out, train = order[: len(order) // 10], order[len(order) // 10 :]
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    draws = generator(seed, 'classifier batches')
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]['lr'] = 2e-3 * math.cos(0.5 * math.pi * step / steps)
            indices = train[torch.randint(len(train), [batch_size], generator=draws)]
            loss = F.cross_entropy(network.logits(from_bytes(images[indices])), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if report is not None:
                report(step + 1, steps)
    network.eval().requires_grad_(False)
    _scale(network, images[train[:5000]])
    right = [
        network.logits(from_bytes(images[part])).argmax(1) == labels[part]
        for part in held_out.split(1000)
    ]
    network.accuracy = torch.cat(right).double().mean().item()
    network.fingerprint = (
        f'classifier {RECIPE} {content_digest(images, labels)} {seed} {steps} {batch_size}'
    )
    return network


def _check_labels(images: Any, labels: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Return images uint8 [N, C, H, W] and classes int64 [N]; raise a ValueError for others."""
    images, labels = as_bytes(images, 'images'), as_tensor(labels, 'labels', torch.int64)
    if whole_number(classes, 'classes', 0) < 2 or len(images) < 20:
        raise ValueError(
            'images must be at least 20 images of 2 classes to train a classifier; got '
            f'{len(images)} of {classes} classes. Choose another extractor (extractor=...)'
        )
    if labels.shape != (len(images),) or (
        labels.is_floating_point() and bool((labels != labels.round()).any())
    ):
        raise ValueError(
            f'labels must be an integer for each of the {len(images)} images; got '
            f'{labels.dtype} of shape {list(labels.shape)}'
        )
    labels = labels.long()
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f'labels must be >= 0 and < classes={classes}; got {int(labels.min())} to '
            f'{int(labels.max())}'
        )
    return images, labels


def _scale(network: Classifier, images: Tensor) -> None:
    """Scale the features to unit variance and rescale the head so that the logits are unchanged."""
    deviation = (
        torch.cat([network(from_bytes(part)) for part in images.split(1000)])
        .var(0)
        .mean()
        .sqrt()
        .clamp_min(1e-6)
    )
    network.scale.copy_(deviation)
    network.head.weight.mul_(deviation)


def cached_classifier(
    folder: str | os.PathLike[str],
    images: Any,
    labels: Any,
    classes: int,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Load the classifier of these images from a folder, or train and store it.

    Args:
        folder: The folder.
        images: uint8 [N, C, H, W].
        labels: Classes [N].
        classes: Number of classes.
        seed: The seed.
        report: Called with the step and the number of steps.
    """
    images, labels = _check_labels(images, labels, classes)
    path = Path(folder) / f'classifier-{RECIPE}-{content_digest(images, labels)}-{seed}.safetensors'
    if load_cache(path) is None:
        trained = train_classifier(images, labels, classes, seed, report=report)
        save_cache(
            path,
            trained.state_dict(),
            {'accuracy': trained.accuracy, 'fingerprint': trained.fingerprint},
        )
        return trained
    return load_classifier(path, images.shape[1], (images.shape[2], images.shape[3]), classes)


def load_classifier(
    path: str | os.PathLike[str], channels: int, size: tuple[int, int], classes: int
) -> Classifier:
    """Load a classifier that cached_classifier wrote.

    Args:
        path: The file.
        channels: Number of channels of the images.
        size: Their height and width.
        classes: Number of classes.
    """
    network = Classifier(channels, size, classes)
    network.load_state_dict(load_safetensors(path))
    facts = load_safetensors_config(path)
    network.accuracy, network.fingerprint = facts['accuracy'], facts['fingerprint']
    return network.eval().requires_grad_(False)


def content_digest(*tensors: Tensor) -> str:
    """Return a short digest of the contents of tensors.

    Args:
        *tensors: The tensors.
    """
    state = hashlib.blake2b(digest_size=12)
    for x in tensors:
        state.update(f'{tuple(x.shape)} {x.dtype}'.encode())
        state.update(raw_bytes(x.contiguous().view(torch.uint8)))
    return state.hexdigest()


def _quarter(side: int) -> int:
    return -(-side // 4)
