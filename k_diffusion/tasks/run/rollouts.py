"""Samples of a network, drawn in rounds and rewarded, as the batches that tuning trains on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.modules import eval_mode
from ...core.random import derive_seed, generator, randn_items
from ...core.weights import fingerprint
from ...training.batches import Batch
from ...training.diffusion_nft import normalize_rewards
from ..rewards import Reward, check_rewards

#: Draws samples: (denoiser, seeds, conditions) to tensors [N, ...] by name, `image` among them.
DrawSamples = Callable[[nn.Module, Sequence[int], Mapping[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Round:
    """The size of a round of samples, and how long it is used.

    Attributes:
        batch_size: Samples of a micro-batch of a process.
        micro_batches: Micro-batches of an optimizer step.
        batches: Optimizer steps of one pass over the samples of a round.
        passes: How often each sample is trained on.
        processes: The number of processes.
        rank: The number of this one.
    """

    batch_size: int
    micro_batches: int = 1
    batches: int = 1
    passes: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of a round."""
        return self.batches * self.passes

    @property
    def own(self) -> int:
        """Samples of a round that this process draws."""
        return self.batch_size * self.micro_batches * self.batches

    @property
    def items_per_step(self) -> int:
        """Samples of an optimizer step."""
        return self.batch_size * self.micro_batches * self.processes


class Rollouts:
    """Batches of samples that an earlier copy of the network draws, with their rewards.

    A round draws samples by `policy`, an average of the network, which moves at the start of a
    round alone. So the samples are a function of the seed and of what a checkpoint holds, and a run
    that goes on in the middle of a round draws the same again.

    Args:
        network: The network that learns.
        wrap: Makes a denoiser of a network.
        draw: Draws samples.
        reward: Samples [N, C, ...] to [N].
        decode: Brings samples into the space of the reward.
        conditions: Those of the prompts, by name, [P, ...] each: samples have them in turn.
        prompts: P, the number of prompts; the samples of one are a group.
        shape: Of the round.
        seed: Of all that is drawn.
        device: Where samples are.
        gather: Joins tensors of all processes along the first dimension.
        facts: What a checkpoint must have been tuned with.
        growth: How much of the old copy stays grows by so much with each round ...
        most: ... up to this share.

    Attributes:
        older: The network of the policy.
        policy: The denoiser that draws.
        reference: The denoiser before tuning.
        calls: The network evaluations of single items so far, by all processes.
        reward_mean: The mean reward of the last round.
    """

    def __init__(
        self,
        network: nn.Module,
        wrap: Callable[[nn.Module], nn.Module],
        draw: DrawSamples,
        reward: Reward,
        decode: Callable[[Tensor], Tensor],
        *,
        conditions: Mapping[str, Tensor],
        prompts: int,
        shape: Round,
        seed: int,
        device: torch.device,
        gather: Callable[[Tensor], Tensor],
        facts: Mapping[str, Any],
        growth: float = 0.001,
        most: float = 0.5,
    ) -> None:
        self.network, self.draw, self.reward, self.decode = network, draw, reward, decode
        self.conditions, self.prompts, self.shape = conditions, prompts, shape
        self.seed, self.device, self.gather = seed, device, gather
        self.growth, self.most = growth, most
        self.older = _frozen_copy(network)
        self.policy, self.reference = wrap(self.older), wrap(_frozen_copy(network))
        self.facts = {**facts, 'checkpoint': fingerprint(network.state_dict())}
        self.items_per_step = shape.items_per_step
        self.round = -1
        self.calls = 0
        self.reward_mean = float('nan')
        for denoiser in (self.policy, self.reference):
            denoiser.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.add_calls(len(args[0]))

    def add_calls(self, items: int) -> None:
        """Count network evaluations of `items` on this process, and as many on each other one."""
        self.calls += items * self.shape.processes

    def epoch(self, items: int) -> int:
        """Return the round, from 0, of the item at position `items`."""
        return items // (self.items_per_step * self.shape.steps)

    def iterate(self, items: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of this process from position `items` of the stream."""
        first = items // self.items_per_step
        samples: dict[str, Tensor] = {}
        for step in range(first, 2**63):
            number, place = divmod(step, self.shape.steps)
            if not samples or not place:
                samples = self._begin_round(number)
            turn, batch = divmod(place, self.shape.batches)
            order = torch.randperm(
                self.shape.own, generator=generator(self.seed, 'order', number, turn)
            )
            size = self.shape.batch_size
            for micro in range(self.shape.micro_batches):
                start = (batch * self.shape.micro_batches + micro) * size
                indices = order[start : start + size]
                position = step * self.items_per_step
                position += (micro * self.shape.processes + self.shape.rank) * size
                yield self._make_batch(samples, indices, position)

    def _make_batch(self, samples: Mapping[str, Tensor], indices: Tensor, position: int) -> Batch:
        here = indices.to(self.device)
        batch: Batch = {key: value[here] for key, value in samples.items()}
        batch['item'] = torch.arange(position, position + len(indices))
        batch['cond'] = self.conditions_of(batch['prompt'])
        return batch

    def conditions_of(self, prompts: Tensor) -> dict[str, Tensor]:
        """Return the conditions of some prompts, by their numbers [N]."""
        return {
            key: value.to(self.device)[prompts.to(self.device)]
            for key, value in self.conditions.items()
        }

    def _begin_round(self, number: int) -> dict[str, Tensor]:
        """Move the policy, unless a checkpoint holds it as it is in this round, and draw."""
        calls, again = self.calls, number == self.round
        if not again:
            if number:
                self._move_policy(min(self.growth * number, self.most))
            self.round = number
        n = self.shape.own
        first = (number * self.shape.processes + self.shape.rank) * n
        seeds = [derive_seed(self.seed, 'sample', first + i) for i in range(n)]
        prompts = torch.arange(first, first + n) % self.prompts
        with torch.no_grad(), eval_mode(self.policy):
            samples = self.draw(self.policy, seeds, self.conditions_of(prompts))
            rewards = self.rate(samples['image'])
        samples = {key: value.to(self.device) for key, value in samples.items()}
        everyone = self.gather(torch.stack([rewards, prompts.double()], 1).float().to(self.device))
        advantages = normalize_rewards(everyone[:, 0], everyone[:, 1].long())
        self.reward_mean = everyone[:, 0].mean().item()
        samples['advantage'] = advantages[self.shape.rank * n : (self.shape.rank + 1) * n]
        samples['prompt'] = prompts.to(self.device)
        if again:
            self.calls = calls
        return samples

    def rate(self, samples: Tensor) -> Tensor:
        """Return the rewards of samples, float64 [N] on the CPU."""
        with torch.no_grad():
            parts = [
                check_rewards(self.reward(self.decode(part.to(self.device))), len(part))
                for part in samples.split(self.shape.batch_size)
            ]
        return torch.cat(parts)

    def _move_policy(self, share: float) -> None:
        state = self.network.state_dict()
        for name, value in self.older.state_dict().items():
            if value.is_floating_point():
                value.lerp_(state[name].to(value), 1 - share)
            else:
                value.copy_(state[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        return {
            'policy': self.older.state_dict(),
            'round': self.round,
            'calls': self.calls,
            'reward_mean': self.reward_mean,
            'facts': dict(self.facts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of a checkpoint.

        Raises:
            ValueError: It was tuned in another way.
        """
        for key, value in self.facts.items():
            if state['facts'].get(key) != value:
                raise ValueError(
                    f'{key} must be {state["facts"].get(key)!r}, as when the run began; got '
                    f'{value!r}: give another name for a new run'
                )
        self.older.load_state_dict(state['policy'])
        self.round, self.calls = state['round'], state['calls']
        self.reward_mean = state['reward_mean']


def _frozen_copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(False).eval()


def draw_path(
    steps: Any,
    shape: Sequence[int],
    sigma: float,
    denoiser: nn.Module,
    seeds: Sequence[int],
    cond: Mapping[str, Any],
    batch_size: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Draw samples by the transitions of a stochastic sampler, and keep their states.

    Args:
        steps: K.sampling.Transitions.
        shape: Of one sample.
        sigma: The first noise level.
        denoiser: The denoiser.
        seeds: One for each sample.
        cond: Its conditions, [N, ...] each.
        batch_size: How many at a time.
        device: Where to compute.

    Returns:
        image [N, ...]; states [N, T + 1, ...], the start first; log_prob [N, T], 0 in steps without
            noise.
    """
    parts = []
    for start in range(0, len(seeds), batch_size):
        here = slice(start, start + batch_size)
        part = {key: value[here] for key, value in cond.items()}
        parts.append(_draw_part(steps, shape, sigma, denoiser, seeds[here], part, device))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _draw_part(
    steps: Any,
    shape: Sequence[int],
    sigma: float,
    denoiser: nn.Module,
    seeds: Sequence[int],
    cond: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Tensor]:
    x = randn_items(shape, [derive_seed(seed, 'start') for seed in seeds], device) * sigma
    states, log_probs, answers = [x], [], dict[int, Any]()
    for i in range(len(steps)):
        step = steps.transition(denoiser, states, i, cond, answers)
        if step.std:
            noise = randn_items(shape, [derive_seed(seed, 'step', i) for seed in seeds], device)
            states.append(step.sample(noise))
            log_probs.append(step.log_prob(states[-1]).to(x.dtype))
        else:
            states.append(step.mean)
            log_probs.append(torch.zeros_like(x.flatten(1)[:, 0]))
    return {
        'image': states[-1],
        'states': torch.stack(states, 1),
        'log_prob': torch.stack(log_probs, 1),
    }
