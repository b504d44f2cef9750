"""Match saved optimizer state to the parameters of a network by name, except its rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .optim import match_strides
from .sharding import cut_optimizer

#: Options of a parameter group that distinguish types of optimizers; their values come from the
#: config.
_OF_A_TYPE = ('betas', 'eps', 'momentum', 'dampening', 'nesterov', 'ns_steps', 'muon')
#: Options that the current optimizer keeps. Any other option is state, and is restored.
_OWN = (
    'lr',
    'initial_lr',
    'weight_decay',
    *_OF_A_TYPE,
    'amsgrad',
    'maximize',
    'foreach',
    'fused',
    'capturable',
    'differentiable',
    'decoupled_weight_decay',
)
#: State tensors of the shape of their parameter.
_SHAPED = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer')


def load_optimizer(
    optimizer: Optimizer, model: nn.Module, state: Mapping[str, Any], source: object
) -> None:
    """Load the optimizer state of a checkpoint of this package or of the original.

    Args:
        optimizer: The optimizer.
        model: Its network.
        state: The whole checkpoint.
        source: Its path, for messages.

    Raises:
        ValueError: If it does not fit.
    """
    groups = optimizer.param_groups
    names = parameter_names(model, groups)
    saved_names = state.get('opt_names', names)
    if names is not None and 'items' not in state:  # the original's
        sizes = [len(group['params']) for group in state['opt']['param_groups']]
        saved_names = original_names(state['model'], names, sizes)
    try:
        optimizer.load_state_dict(matched_state(state['opt'], groups, names, saved_names))
    except (ValueError, KeyError) as error:
        raise ValueError(
            f'the optimizer state in {source} does not fit ({error}); resume with the optimizer of '
            'the checkpoint, or restart the moments (reset_optimizer=True)'
        ) from None
    cut_optimizer(optimizer)
    match_strides(optimizer)


def parameter_names(
    model: nn.Module, groups: Iterable[Mapping[str, Any]]
) -> list[list[str]] | None:
    """Return the names of the parameters of each group; None if one is not the model's.

    Args:
        model: The network.
        groups: The groups.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    params = [list(group['params']) for group in groups]
    if any(id(p) not in names for group in params for p in group):
        return None
    return [[names[id(p)] for p in group] for group in params]


def matched_state(
    saved_state: Mapping[str, Any],
    groups: Sequence[dict[str, Any]],
    names: list[list[str]] | None,
    saved_names: list[list[str]] | None,
) -> dict[str, Any]:
    """Return saved optimizer state in the order of `groups`, for Optimizer.load_state_dict.

    Each parameter gets the state saved under its name (with unknown names: at its position).
    Learning rate, weight decay and the other options of a config stay those of `groups`.

    Args:
        saved_state: The result of Optimizer.state_dict.
        groups: The parameter groups of the current optimizer.
        names: The names of their parameters.
        saved_names: The names of the saved parameters, group by group.

    Raises:
        ValueError: If the state is that of another type of optimizer, or of other parameters or
            shapes.
    """
    _check_type(saved_state['param_groups'], groups)
    sources = [_ids(group) for group in saved_state['param_groups']]
    counts = [len(group['params']) for group in groups]
    if names is None or saved_names is None:
        names, saved_names = _positions(counts), _positions([len(ids) for ids in sources])
    if [len(ids) for ids in sources] != [len(group) for group in saved_names]:
        raise ValueError(
            f'it has groups of {[len(ids) for ids in sources]} parameters, and the checkpoint '
            f'names {[len(group) for group in saved_names]}'
        )
    source = dict(zip(_flat(saved_names), _flat(sources)))
    own_names = _flat(names)
    if source.keys() != set(own_names) or len(source) != len(own_names):
        odd = next(iter(source.keys() ^ set(own_names)), 'a parameter twice')
        raise ValueError(
            f'it is of {len(source)} parameters, and there are {len(own_names)}; {odd} is in one '
            'of them only'
        )
    parameters = [p for group in groups for p in group['params']]
    state = {}
    for i, (name, p) in enumerate(zip(own_names, parameters)):
        if source[name] in saved_state['state']:
            state[i] = saved_state['state'][source[name]]
            _check_shapes(name, p, state[i])
    return {'state': state, 'param_groups': _options(saved_state['param_groups'], groups)}


def original_names(
    order: Iterable[str], names: list[list[str]], sizes: Sequence[int]
) -> list[list[str]]:
    """Return the parameter names of a checkpoint of the original, which does not contain them.

    Each group has its parameters in the order of registration, which is that of the weights in the
    checkpoint. The earliest version of the original had one group of all parameters.

    Args:
        order: The names of the weights in the checkpoint, in its order.
        names: The names of the parameters of the network, group by group.
        sizes: The number of parameters of each saved group.
    """
    place = {name: i for i, name in enumerate(order)}
    last = len(place)
    grouped = [sorted(group, key=lambda name: place.get(name, last)) for group in names]
    return (
        [sorted(_flat(names), key=lambda name: place.get(name, last))]
        if len(sizes) == 1
        else grouped
    )


def _positions(counts: Iterable[int]) -> list[list[str]]:
    """Return names of parameters by their position."""
    return [[f'parameter {i} of group {g}' for i in range(count)] for g, count in enumerate(counts)]


def _ids(group: Mapping[str, Any]) -> list[Any]:
    return list(group['params'])


def _flat(groups: Iterable[Iterable[Any]]) -> list[Any]:
    return [item for group in groups for item in group]


def _check_type(
    saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Raise a ValueError if the state is that of another type of optimizer."""
    for group in saved_groups:
        odd = [key for key in _OF_A_TYPE if (key in group) != (key in groups[0])]
        if odd:
            where = 'only there' if odd[0] in group else 'missing there'
            raise ValueError(f'it is that of another type of optimizer: {odd[0]!r} is {where}')


def _check_shapes(name: str, p: Tensor, state: Mapping[str, Any]) -> None:
    """Raise a ValueError if the state of a parameter has another shape."""
    for key in _SHAPED:
        value = state.get(key)
        if isinstance(value, Tensor) and value.shape != p.shape:
            raise ValueError(
                f'its {key} of {name} has the shape {list(value.shape)}, and {name} has '
                f'{list(p.shape)}'
            )


def _options(
    saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the options of `groups`, with state restored from matching saved groups."""
    options, first = [], 0
    for i, group in enumerate(groups):
        group_state = saved_groups[i] if len(saved_groups) == len(groups) else {}
        own_options = {key: value for key, value in group_state.items() if key not in _OWN}
        ids = list(range(first, first := first + len(group['params'])))
        options.append({**group, **own_options, 'params': ids})
    return options
