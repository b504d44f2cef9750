"""The conditions of a config, checked against its model, and their null values."""

from __future__ import annotations

from typing import Any

from ..data import Dataset, Images, TensorFiles
from ..encoders import Condition, ConditionConfig
from .load import Sections

Conditions = list[tuple[ConditionConfig, Condition]]
_KEYS = ('mapping_cond', 'cross_cond', 'unet_cond')


def conditions_of(
    sections: Sections, dataset: Dataset | None = None, device: Any = 'cpu'
) -> Conditions:
    """Return the conditions of a config, checked against its model.

    Args:
        sections: The sections of the config.
        dataset: The data set; with it the conditions can prepare batches.
        device: Where encoders compute.

    Raises:
        ValueError: If they do not fit the model or the data set.
    """
    if (
        dataset is not None
        and sections.conditions
        and not isinstance(dataset, (Images, TensorFiles))
        and not dataset.streams
    ):
        raise ValueError(
            f'{dataset.source} is too large to be decoded into memory, which conditions need; '
            'use a smaller one'
        )
    for config in sections.conditions:
        if (
            config.type in ('super-resolution', 'inpainting')
            and len(sections.model.input_size) != 2
        ):
            raise ValueError(
                f'conditions: {config.type} needs images, a model of dims 2; got '
                f'{len(sections.model.input_size)}'
            )
    conditions = [
        (config, config.make(sections.model.input_channels, dataset, device))
        for config in sections.conditions
    ]
    for key in _KEYS:
        users = [
            (config.type, condition.width)
            for config, condition in conditions
            if condition.key == key
        ]
        if len(users) > 1:
            raise ValueError(
                f'conditions: only one may use {key}; got {users[0][0]} and {users[1][0]}'
            )
        model_width, width = getattr(sections.model, f'{key}_dim', 0), users[0][1] if users else 0
        if model_width != width:
            given_width = (
                f'the condition {users[0][0]!r} is {width} wide'
                if users
                else 'no condition uses it'
            )
            fix = (
                f'set it to {width}'
                if not users or hasattr(sections.model, f'{key}_dim')
                else 'use a model that has it, image_v1'
            )
            raise ValueError(f'model.{key}_dim is {model_width}, and {given_width}; {fix}')
    return conditions


def null_conditions(num_classes: int, conditions: Conditions) -> dict[str, float | int]:
    """Return the null values of conditions by name, for classifier-free guidance.

    Args:
        num_classes: Number of classes, 0 for none.
        conditions: The conditions.
    """
    keys = {condition.key: 0.0 for _, condition in conditions}
    padding = (
        {'cross_cond_padding': 0.0}
        if any(config.type == 'text' and c.key == 'cross_cond' for config, c in conditions)
        else {}
    )
    return ({'class_cond': num_classes} if num_classes else {}) | keys | padding
