"""The conditions of a config, checked against its model, and what stands in their place."""

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
    """The conditions of a config, checked against its model; with the data set, they can prepare
    batches of it.
    """
    if (
        dataset is not None
        and sections.conditions
        and not isinstance(dataset, (Images, TensorFiles))
        and not dataset.streams
    ):
        raise ValueError(
            f'{dataset.source} is too large to be decoded into memory, which conditions need; '
            'take a smaller one'
        )
    for config in sections.conditions:
        if (
            config.type in ('super-resolution', 'inpainting')
            and len(sections.model.input_size) != 2
        ):
            raise ValueError(
                f'conditions: {config.type} needs pictures, a model of dims 2; got '
                f'{len(sections.model.input_size)}'
            )
    made = [
        (config, config.make(sections.model.input_channels, dataset, device))
        for config in sections.conditions
    ]
    for key in _KEYS:
        given = [
            (config.type, condition.width) for config, condition in made if condition.key == key
        ]
        if len(given) > 1:
            raise ValueError(
                f'conditions: {given[0][0]} and {given[1][0]} both go into {key}; a model takes '
                'one there'
            )
        wanted, width = getattr(sections.model, f'{key}_dim', 0), given[0][1] if given else 0
        if wanted != width:
            given_width = (
                f'the condition {given[0][0]!r} is {width} wide'
                if given
                else 'no condition goes there'
            )
            fix = (
                f'set it to {width}'
                if not given or hasattr(sections.model, f'{key}_dim')
                else 'take a model that has it, image_v1'
            )
            raise ValueError(f'model.{key}_dim is {wanted}, and {given_width}; {fix}')
    return made


def null_conditions(num_classes: int, conditions: Conditions) -> dict[str, float | int]:
    """Return the values that stand for no condition, by name, for classifier-free guidance."""
    keys = {condition.key: 0.0 for _, condition in conditions}
    padding = (
        {'cross_cond_padding': 0.0}
        if any(config.type == 'text' and c.key == 'cross_cond' for config, c in conditions)
        else {}
    )
    return ({'class_cond': num_classes} if num_classes else {}) | keys | padding
