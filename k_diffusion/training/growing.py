"""A learning-rate warm-up of new layers in a network that is otherwise trained already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class NewLayersWarmup:
    """Scales the steps of named parameters by (k + 1) / steps, at steps k = 0, 1, ..., steps - 1.

    For optimizers whose step is proportional to the learning rate (AdamW, Muon, SGD), this equals a
    learning rate of (k + 1) / steps times the schedule's, but needs no parameter groups, so the
    state of the optimizer is unchanged. As a part of the Trainer, a resumed run takes the names
    and the number of steps from its checkpoint.

    Args:
        model: The network.
        names: The names of the new parameters.
        steps: The steps of the warm-up.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], steps: int) -> None:
        self._parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.names = list(names)
        self.steps = steps
        self.done = 0
        self._before: list[Tensor] = []

    def attach(self, optimizer: Optimizer) -> None:
        """Register the warm-up with an optimizer of the model's parameters.

        Args:
            optimizer: The optimizer.
        """
        optimizer.register_step_pre_hook(lambda *_: self._remember())
        optimizer.register_step_post_hook(lambda *_: self._hold_back())

    def state_dict(self) -> dict[str, Any]:
        """Return the names and the steps."""
        return {'names': list(self.names), 'steps': self.steps, 'done': self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state_dict: The result of state_dict.

        Raises:
            ValueError: If the model lacks one of the names.
        """
        missing = [name for name in state_dict['names'] if name not in self._parameters]
        if missing:
            raise ValueError(
                f'the checkpoint warms up {missing[0]}, which the model does not have; use the '
                'config it was trained with'
            )
        self.names, self.steps, self.done = (
            list(state_dict['names']),
            state_dict['steps'],
            state_dict['done'],
        )

    @torch.no_grad()
    def _remember(self) -> None:
        """Copy the new parameters before a step."""
        if self.done < self.steps:
            self._before = [self._parameters[name].clone() for name in self.names]

    @torch.no_grad()
    def _hold_back(self) -> None:
        """Scale the step of the new parameters down."""
        if self.done < self.steps:
            self.done += 1
            parameters = [self._parameters[name] for name in self.names]
            torch._foreach_lerp_(parameters, self._before, 1 - self.done / self.steps)
            self._before = []
