"""Changes of a config between a checkpoint and a resumed run: which are allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .load import fill_config

_NEW_RUN = 'keep it, or start a new run with another name'
_GROW = 'keep it, or start a new run that grows from this one (grow=...)'
_RESET = 'keep it, or reset the state of the optimizer (reset_optimizer=True)'

#: By key of a config: None if a new value takes effect in a resumed run, else the way out of the
#: refusal. The longest name counts. Changes of the shape or the meaning of the weights are
#: refused.
RULES: dict[str, str | None] = {
    'model': _NEW_RUN,
    'model.input_size': _GROW,
    'model.patch_size': _GROW,
    'model.skip_stages': _GROW,
    'model.depths': _GROW,
    'model.dropout_rate': None,
    'model.mapping_dropout_rate': None,
    'model.augment_prob': None,
    'model.sigma_min': None,
    'model.sigma_max': None,
    'model.sigma_sample_density': None,
    'model.loss_config': None,
    'model.loss_weighting': None,
    'model.loss_scales': None,
    'model.loss_contrast': None,
    'model.kl_weight': None,  # of an autoencoder
    'dataset': None,
    'dataset.num_classes': _NEW_RUN,
    'dataset.range': _NEW_RUN,  # these four: the scaling of tensors
    'dataset.standardize': _NEW_RUN,
    'dataset.mean': _NEW_RUN,
    'dataset.std': _NEW_RUN,
    'optimizer': None,
    'optimizer.type': _RESET,
    'lr_sched': None,
    'ema_sched': None,
    'training': None,
    'training.ema_widths': _NEW_RUN,
    'sampling': None,
    'distillation': _NEW_RUN,
    'distillation.teacher': None,  # its weights are compared instead
    'encoder': _NEW_RUN,
    'encoder.location': None,  # the encoder's weights are compared instead
    'conditions': _NEW_RUN,
    'conditions.dropout': None,
    'conditions.location': None,  # the texts or embeddings of the pictures
    'conditions.template': None,
    'conditions.largest': None,
    'run': None,  # what settings of a run alone say: processes, accumulation, precision, seed
}
#: Keys whose change makes losses before and after incomparable.
_OF_THE_LOSS = (
    'model.sigma_sample_density',
    'model.loss_config',
    'model.loss_weighting',
    'model.loss_scales',
    'model.loss_contrast',
    'model.kl_weight',
)
_ABSENT = object()


@dataclass(frozen=True)
class Change:
    """A key whose value differs from that of the checkpoint.

    Attributes:
        key: The key.
        old: The value in the checkpoint.
        new: The value in the config.
    """

    key: str
    old: Any
    new: Any

    @property
    def way_out(self) -> str | None:
        """Return the way out if the change is refused; None if it takes effect."""
        return RULES[_rule(self.key)]

    def __str__(self) -> str:
        return f'{self.key} {_text(self.old)} -> {_text(self.new)}'


def changes_of(
    checkpoint: Mapping[str, Any],
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    fill: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] = fill_config,
) -> list[Change]:
    """Return the differences between the config of a checkpoint and a filled config.

    Args:
        checkpoint: Its `config` and, in newer ones, `overrides`: values from the settings of the
            run. Without a config there are no differences.
        config: The filled config of the resumed run.
        overrides: Values from the settings of this run, by 'section.key'.
        fill: Fills the defaults into the config of the checkpoint.
    """
    stored = fill(checkpoint['config']) if isinstance(checkpoint.get('config'), Mapping) else None
    if stored is None:
        return []
    old = with_overrides(stored, checkpoint.get('overrides') or {})
    return compare_configs(old, with_overrides(config, overrides))


#: Keys that training itself writes into a config.
_DERIVED_KEYS = ('dataset.class_names', 'distillation.teacher_digest')


def compare_configs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return the keys in which two filled configs differ, in the order of the new one.

    Keys that only one has are ignored. A section of another type is one change, that of its type.

    Args:
        old: A filled config.
        new: Another filled config.
    """
    changes = []
    before = _flat(old)
    for key, value in _flat(new).items():
        was = before.get(key, _ABSENT)
        if key not in _DERIVED_KEYS and was is not _ABSENT and _plain(was) != _plain(value):
            changes.append(Change(key, was, value))
    retyped = tuple(
        change.key.removesuffix('.type') for change in changes if change.key.endswith('.type')
    )
    return [
        change
        for change in changes
        if change.key.endswith('.type') or not change.key.startswith(retyped)
    ]


def check_changes(changes: list[Change], source: object, reset_optimizer: bool = False) -> None:
    """Raise a ValueError if a change is refused.

    Args:
        changes: The differences from the config of the checkpoint.
        source: The checkpoint, for the message.
        reset_optimizer: The state of the optimizer is reset, so that another type is allowed.
    """
    conflicts = [
        change
        for change in changes
        if change.way_out and not (reset_optimizer and change.way_out == _RESET)
    ]
    if conflicts:
        ways = ', '.join(dict.fromkeys(change.way_out for change in conflicts if change.way_out))
        raise ValueError(
            f'{source} does not fit this config: {", ".join(map(str, conflicts))}; {ways}'
        )


def changes_loss(changes: list[Change]) -> bool:
    """Return True if losses before and after the changes are incomparable.

    Args:
        changes: The changes.
    """
    return any(change.key.startswith(_OF_THE_LOSS) for change in changes)


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the values of settings inserted.

    Args:
        config: The config.
        overrides: Values by 'section.key'.
    """
    result = {
        section: dict(value) if isinstance(value, Mapping) else value
        for section, value in config.items()
    }
    for path, value in overrides.items():
        section, _, key = path.partition('.')
        result.setdefault(section, {})[key] = value
    return result


def _rule(key: str) -> str:
    """Return the longest name in RULES that covers a key, without the number of a condition."""
    section, _, rest = key.partition('.')
    parts = [section.partition('[')[0], *rest.split('.')]
    return next(name for n in range(len(parts), 0, -1) if (name := '.'.join(parts[:n])) in RULES)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config by 'section.key' and 'conditions[i].key'.

    Deeper values stay whole.
    """
    flat: dict[str, Any] = {}
    for section, value in config.items():
        if section not in RULES:
            continue
        entries = {section: value}
        if isinstance(value, list):
            flat[f'{section}.type'] = [entry['type'] for entry in value]
            entries = {f'{section}[{i}]': entry for i, entry in enumerate(value)}
        for head, entry in entries.items():
            flat.update(
                {
                    f'{head}.{key}': item
                    for key, item in entry.items()
                    if head == section or key != 'type'
                }
            )
    return flat


def _plain(value: Any) -> Any:
    """Return a value for comparison, with lists and tuples alike."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return '{' + ', '.join(f'{key} {_text(item)}' for key, item in value.items()) + '}'
    return f'{value:g}' if isinstance(value, float) else str(value)
