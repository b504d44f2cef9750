"""Muon: orthogonalised momentum for weights between hidden features, AdamW for all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from .sharding import local, piece_of, whole

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices: U S V^T -> U S' V^T with S' near 1.

    The quintic x <- a x + (b x x^T + c (x x^T)^2) x takes singular values of (0, 1] to about [0.7,
    1.2] in few steps. It runs in bfloat16 on a GPU, which the iteration tolerates.

    Args:
        g: Matrices, [K, m, n].
        steps: The number of iterations.

    References:
        K. Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = _COEFFICIENTS
    x = g.bfloat16() if g.is_cuda else g
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g.dtype)


class Muon(Optimizer):
    """Takes orthogonalised steps for groups with `muon: True`, and AdamW steps for the others.

    m <- momentum m + (1 - momentum) g
    u = NewtonSchulz(momentum m + (1 - momentum) g), or of m without `nesterov`
    w <- (1 - lr weight_decay) w - lr 0.2 sqrt(max(fan_in, fan_out)) u

    A convolution [out, in, h, w] is a matrix [out, in h w]. With this scale a step has the root
    mean square of an AdamW step. Matrices of one shape are stacked and orthogonalised together.

    Args:
        params: Parameters or groups.
        lr: The learning rate.
        momentum: The decay of the momentum.
        nesterov: Use Nesterov momentum.
        ns_steps: Iterations of Newton-Schulz.
        weight_decay: The decoupled weight decay.
        betas: The decays of AdamW.
        eps: The constant in the denominator of AdamW.
        muon: The default of the groups.
        fused: Use the fused AdamW of torch.

    References:
        K. Jordan et al. (2024), "Muon"; the scale: Liu et al. (2025), arXiv:2502.16982, section
            2.2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 4e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        muon: bool = False,
        fused: bool = False,
    ) -> None:
        defaults = {
            'lr': lr,
            'momentum': momentum,
            'nesterov': nesterov,
            'ns_steps': ns_steps,
            'weight_decay': weight_decay,
            'betas': betas,
            'eps': eps,
            'muon': muon,
            'fused': fused,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group['params']:
                if group['muon'] and p.ndim < 2:
                    raise ValueError(
                        'parameters of a group with muon=True must be matrices or convolutions; '
                        f'got the shape {list(p.shape)}. Put vectors into a group with muon=False'
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take an optimizer step.

        Args:
            closure: Recomputes the loss, which is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group['params'] if p.grad is not None]
            if params:
                self._muon_step(params, group) if group['muon'] else self._adamw_step(params, group)
        return loss

    def _muon_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update the matrices and convolutions of a group."""
        lr, momentum = group['lr'], group['momentum']
        own, grads = [local(p) for p in params], _grads(params)
        averages = [local(self._state(p, 'momentum_buffer')['momentum_buffer']) for p in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, averages, momentum) if group['nesterov'] else averages
        if group['weight_decay']:
            torch._foreach_mul_(own, 1 - lr * group['weight_decay'])
        same_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, p in enumerate(params):
            same_shape[tuple(p.shape)].append(i)
        for shape, indices in same_shape.items():
            u = newton_schulz(
                torch.stack([whole(updates[i], params[i]).flatten(1) for i in indices]),
                group['ns_steps'],
            )
            scale = 0.2 * max(u.shape[-2:]) ** 0.5
            steps = [piece_of(step, params[i]) for step, i in zip(u.view(-1, *shape), indices)]
            torch._foreach_add_([own[i] for i in indices], steps, alpha=-lr * scale)

    def _adamw_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group by AdamW."""
        states = [self._state(p, 'exp_avg', 'exp_avg_sq') for p in params]
        for p, state in zip(params, states):
            if 'step' not in state:
                state['step'] = torch.zeros(
                    (), dtype=torch.float32, device=p.device if group['fused'] else 'cpu'
                )
        beta1, beta2 = group['betas']
        adamw(
            [local(p) for p in params],
            _grads(params),
            [local(s['exp_avg']) for s in states],
            [local(s['exp_avg_sq']) for s in states],
            [],
            [s['step'] for s in states],
            fused=group['fused'],
            foreach=not group['fused'],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group['lr'],
            weight_decay=group['weight_decay'],
            eps=group['eps'],
            maximize=False,
        )

    def _state(self, p: Tensor, *names: str) -> dict[str, Tensor]:
        """Return the state of a parameter, with zeros for missing entries."""
        state = self.state[p]
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(p)
        return state


def _grads(params: list[Tensor]) -> list[Tensor]:
    """Return the gradients of parameters, or the shards of this process."""
    return [local(p.grad) for p in params if p.grad is not None]
