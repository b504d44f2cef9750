"""Rewards of samples: functions from samples [N, C, ...] to [N], the larger the better."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Experiment
from ..core.arguments import show_value
from ..core.pretrained import ClipModel
from ..core.python_files import is_reference, load_reference
from ..data import Dataset
from ..evaluation import cache_folder, cached_classifier
from .conditioning import class_labels
from .reference import labelled_pictures

Reward = Callable[[Tensor], Tensor]

#: For help pages.
REWARD_WORDS = (
    'class:NUMBER or class:NAME, the probability of a class by a classifier that learns from the '
    'data set; clip:WORDS, the similarity to a text by a CLIP model; FILE.py:FUNCTION, one of your '
    'own, from samples [N, C, ...] to [N] (see allow_code)'
)


class ClassReward:
    """The probability that pictures show a class, by a classifier.

    Args:
        network: A network with `logits`, from pictures [N, C, H, W] in [-1, 1] to [N, K].
        number: The class.
    """

    def __init__(self, network: Any, number: int) -> None:
        self.network, self.number = network, number

    def __call__(self, samples: Tensor) -> Tensor:
        probabilities: Tensor = self.network.logits(samples).softmax(1)
        return probabilities[:, self.number]


class ClipReward:
    """The cosine of the angle between pictures and a text in the space of a CLIP model."""

    def __init__(self, model: ClipModel, text: str) -> None:
        self.model, self.target = model, nn.functional.normalize(model.encode_texts([text]), dim=1)

    def __call__(self, samples: Tensor) -> Tensor:
        embeddings = nn.functional.normalize(self.model.encode_images(samples), dim=1)
        return (embeddings * self.target.to(embeddings)).sum(1)


def make_reward(
    reward: str | Reward,
    experiment: Experiment,
    dataset: Dataset,
    device: torch.device,
    clip_model: str | os.PathLike[str] = 'ViT-B/32',
    allow_code: bool = False,
) -> Reward:
    """Return the reward that a setting names; a function is returned unchanged.

    Args:
        reward: A text as in REWARD_WORDS, or a function.
        experiment: The experiment of the model.
        dataset: The data set of a classifier. Its seed differs from that of the classifier of
            `evaluate`, so that the reward does not measure itself.
        device: The device of networks.
        clip_model: The CLIP model, a name or a folder.
        allow_code: Allow a file named by the setting to run.

    Raises:
        ValueError: The reward is unknown, or does not fit the model.
    """
    if callable(reward):
        return reward
    if is_reference(reward):
        function: Reward = load_reference(reward, 'reward', allow_code)
        if not callable(function):
            raise TypeError(
                f'reward must name a function, from samples [N, C, ...] to [N]; {reward} is '
                f'{show_value(function)}'
            )
        return function
    kind, _, value = str(reward).partition(':')
    if kind not in ('class', 'clip') or not value:
        raise ValueError(
            f'reward must be a function, class:NUMBER, clip:WORDS or FILE.py:FUNCTION; '
            f'got {show_value(reward)}'
        )
    if not experiment.gives_pictures:
        raise ValueError(
            f'reward must be a function for a model of tensors, since {kind} takes pictures; '
            f'got {reward!r}'
        )
    if kind == 'clip':
        return ClipReward(ClipModel(clip_model, device), value)
    number = reward_class(reward, experiment)
    images, labels, classes = labelled_pictures(dataset)
    network = cached_classifier(cache_folder() / 'evaluation', images, labels, classes, seed=1)
    return ClassReward(network.to(device), int(number or 0))


def reward_class(reward: Any, experiment: Experiment) -> int | None:
    """Return the class that a `reward` 'class:...' names; None for another reward.

    The classes are those of `experiment`.

    Raises:
        ValueError: The model does not have the class.
    """
    kind, _, value = reward.partition(':') if isinstance(reward, str) else ('', '', '')
    if kind != 'class':
        return None
    if not experiment.sections.dataset.num_classes:
        raise ValueError(f'reward must not be a class for a model without classes; got {reward!r}')
    try:
        numbers = class_labels([value], experiment.sections.dataset, 1)
    except ValueError as error:
        message = str(error).replace('classes must name', 'reward must name one of the', 1)
        raise ValueError(message) from None
    return numbers[0] if numbers else None


def check_rewards(rewards: Any, n: int) -> Tensor:
    """Return the `rewards` of n samples as float64 [n] on the CPU.

    Raises:
        ValueError: They have another shape, or are not finite.
    """
    if not isinstance(rewards, Tensor) or rewards.shape != (n,):
        description = (
            f'shape {list(rewards.shape)}' if isinstance(rewards, Tensor) else show_value(rewards)
        )
        raise ValueError(f'reward must return a tensor [N], here [{n}]; got {description}')
    if not bool(rewards.isfinite().all()):
        raise ValueError('reward must return finite numbers; got NaN or infinity')
    return rewards.detach().double().cpu()
