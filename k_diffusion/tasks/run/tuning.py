"""Tune by reward as the objective of a training run: the samples and the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...config import Experiment
from ...core.draws import Draws
from ...core.random import generator
from ...generation import choose_plan, choose_sampling, generate
from ...sampling import Transitions
from ...training.diffusion_nft import nft_loss, optimality
from ...training.grpo import grpo_loss
from ..conditioning import requested_conditions
from ..rewards import Reward
from .objective import Objective
from .rollouts import DrawSamples, Rollouts, Round, draw_path

Loss = Callable[[dict[str, Any]], Tensor]


class WeightedObjective(Objective):
    """The loss of a denoiser on rewarded samples: `compute` also gets their `advantage` [B]."""

    def prepare(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return the inputs of the loss of `batch`, with the advantage among the conditions."""
        cond = {**batch['cond'], 'advantage': batch['advantage']}
        return super().prepare({**batch, 'cond': cond})


@dataclass
class Tuner:
    """The objective of a tuning run, which replaces the loss on its data set.

    Attributes:
        reward: A function from samples [N, C, ...] to [N].
        method: 'nft' (DiffusionNFT) or 'grpo'.
        batches, passes: Of a round, see `Round`.
        classes: Classes of the prompts, used in turn. None and no `cond`: the model without
            conditions.
        cond: Other conditions in turn, 'TYPE=VALUE'.
        sampler: The sampler: a name or a function.
        steps: Its number of steps.
        options: Its options.
        strength: b of DiffusionNFT.
        clip: c of GRPO.
        trained_steps: The number of steps of a path per optimizer step of GRPO.
        pull: The weight of the distance from the network before tuning.
        facts: Values that must be equal when a run continues.
        experiment: The experiment of the run; it and the following are set by `prepare`.
        rollouts: The samples.
        draw: The function that draws them.
        conditions: Those of the prompts, [P, ...] each.
        prompts: P.
    """

    reward: Reward
    method: str
    batches: int
    passes: int
    classes: Sequence[int | str] | None
    cond: Sequence[str]
    sampler: Any
    steps: int
    options: Mapping[str, Any]
    strength: float
    clip: float
    trained_steps: int
    pull: float
    facts: Mapping[str, Any]

    def prepare(
        self,
        experiment: Experiment,
        model: nn.Module,
        accelerator: Any,
        batch_size: int,
        micro_batches: int,
        draws: Draws,
    ) -> tuple[Rollouts, Loss]:
        """Return the batches and the loss of a run.

        Args:
            experiment: Its network holds the weights before tuning.
            model: The network as the accelerator prepared it.
            accelerator: That of the run.
            batch_size: Samples of a micro-batch.
            micro_batches: Micro-batches of a step.
            draws: What is drawn for an item.
        """
        device, self.experiment = accelerator.device, experiment
        self.conditions, self.prompts = make_prompts(experiment, self.classes, self.cond, device)
        shape = Round(
            batch_size,
            micro_batches,
            self.batches,
            self.passes,
            accelerator.num_processes,
            accelerator.process_index,
        )
        denoiser = experiment.wrap(model)
        self.draw, loss = (self._make_nft if self.method == 'nft' else self._make_grpo)(
            denoiser, experiment, batch_size, device, draws
        )
        decode = experiment.decoder(device)
        self.rollouts = Rollouts(
            experiment.network,
            experiment.wrap,
            self.draw,
            self.reward,
            make_decoder(decode, experiment.gives_pictures),
            conditions=self.conditions,
            prompts=self.prompts,
            shape=shape,
            seed=draws.seed,
            device=device,
            gather=accelerator.gather,
            facts=self.facts,
        )
        return self.rollouts, loss

    def _make_nft(
        self,
        denoiser: nn.Module,
        experiment: Experiment,
        batch_size: int,
        device: torch.device,
        draws: Draws,
    ) -> tuple[DrawSamples, Loss]:
        plan = make_plan(denoiser, experiment, self.sampler, self.steps, self.options)
        draw = make_draw(plan, experiment.shape, batch_size, device)

        def compute(
            denoiser: Any, x: Tensor, noise: Tensor, sigma: Tensor, advantage: Tensor, **cond: Any
        ) -> Tensor:
            rollouts = self.rollouts
            noisy = x + noise * sigma.view(-1, *[1] * (x.ndim - 1))
            denoised = denoiser(noisy, sigma, **cond)
            rollouts.add_calls(3 * len(x))  # forward, and twice that backward
            with torch.no_grad():
                before = rollouts.policy(noisy, sigma, **cond)
                reference = rollouts.reference(noisy, sigma, **cond) if self.pull else None
            return nft_loss(
                denoised, before, x, optimality(advantage), self.strength, reference, self.pull
            )

        return draw, WeightedObjective(denoiser, experiment.density, draws, compute=compute)

    def _make_grpo(
        self,
        denoiser: nn.Module,
        experiment: Experiment,
        batch_size: int,
        device: torch.device,
        draws: Draws,
    ) -> tuple[DrawSamples, Loss]:
        sigmas, sampler, options = make_plan(
            denoiser, experiment, self.sampler, self.steps, self.options
        )
        steps = Transitions(sampler, sigmas, **options)
        noisy = [i for i, std in enumerate(steps.stds) if std]

        def draw(
            policy: nn.Module, seeds: Sequence[int], cond: Mapping[str, Any]
        ) -> dict[str, Tensor]:
            first = float(sigmas[0])
            return draw_path(
                steps, experiment.shape, first, policy, seeds, cond, batch_size, device
            )

        def loss(batch: dict[str, Any]) -> Tensor:
            # Not of its items: every micro-batch and process takes the same steps.
            order = torch.randperm(
                len(noisy), generator=generator(draws.seed, 'steps', batch['step'])
            )
            indices = [noisy[k] for k in order[: self.trained_steps].tolist()]
            each = [self._loss_of_step(denoiser, steps, batch, i) for i in indices]
            return torch.stack(each).mean(0)

        return draw, loss

    def _loss_of_step(
        self, denoiser: nn.Module, steps: Transitions, batch: dict[str, Any], i: int
    ) -> Tensor:
        states, cond = list(batch['states'].unbind(1)), batch['cond']
        answers: dict[int, Any] = {}
        transition = steps.transition(denoiser, states, i, cond, answers)
        self.rollouts.add_calls(3 * len(answers) * len(states[0]))
        divergence = None
        if self.pull:
            with torch.no_grad():
                before = steps.transition(self.rollouts.reference, states, i, cond)
            divergence = transition.divergence(before)
        return grpo_loss(
            transition.log_prob(states[i + 1]),
            batch['log_prob'][:, i],
            batch['advantage'],
            self.clip,
            divergence,
            self.pull,
        ).to(states[0].dtype)


Plan = tuple[Tensor, Any, dict[str, Any]]


def make_plan(
    denoiser: nn.Module,
    experiment: Experiment,
    sampler: Any,
    steps: int,
    options: Mapping[str, Any],
) -> Plan:
    """Return the noise levels, the sampler and its options, without guidance.

    Args:
        denoiser: The denoiser, which has the range of noise levels.
        experiment: Its experiment; the "sampling" section gives the defaults.
        sampler: A name, a function, or None.
        steps: The number of steps.
        options: Options of the sampler.
    """
    name = sampler if isinstance(sampler, str) else None
    section = vars(experiment.sections.sampling)
    how = choose_sampling(section, sampler=name, steps=steps, guidance=1.0)
    sigmas, function, defaults = choose_plan(denoiser, how, sampler=None if name else sampler)
    return sigmas, function, {**defaults, **options}


def make_draw(
    plan: Plan, shape: Sequence[int], batch_size: int, device: torch.device
) -> DrawSamples:
    """Return a function that draws samples.

    Args:
        plan: The noise levels, the sampler and its options.
        shape: The shape of a sample.
        batch_size: Samples per batch.
        device: The device.
    """
    sigmas, sampler, options = plan

    def draw(
        denoiser: nn.Module, seeds: Sequence[int], cond: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        image = generate(
            denoiser,
            shape,
            sigmas,
            sampler,
            seeds,
            cond,
            batch_size=batch_size,
            device=device,
            options=options,
        )
        return {'image': image}

    return draw


def make_decoder(
    decode: Callable[[Tensor], Tensor] | None, pictures: bool
) -> Callable[[Tensor], Tensor]:
    """Return a function that maps samples into the space of a reward.

    Args:
        decode: Decodes latents; None for a model of pixels.
        pictures: Clamp the result to [-1, 1].
    """

    def run(samples: Tensor) -> Tensor:
        samples = samples if decode is None else decode(samples)
        return samples.clamp(-1, 1) if pictures else samples

    return run


def make_prompts(
    experiment: Experiment,
    classes: Sequence[int | str] | None,
    cond: Sequence[str],
    device: torch.device,
) -> tuple[dict[str, Tensor], int]:
    """Return the conditions of all prompts, [P, ...] each, and P.

    Args:
        experiment: The experiment of the model.
        classes: Classes in turn.
        cond: Other conditions in turn, 'TYPE=VALUE'. Without classes and these, the only prompt is
            the null condition.
        device: The device of encoders of texts and pictures.
    """
    if classes is None and not cond:
        if experiment.sections.conditions:
            raise ValueError(
                'cond must hold the prompts of a model with conditions besides classes; give '
                'TYPE=VALUE, as for samples'
            )
        num_classes = experiment.sections.dataset.num_classes
        return ({'class_cond': torch.tensor([num_classes])} if num_classes else {}), 1
    counts = Counter(text.partition('=')[0] for text in cond)
    n = max([len(classes or ()), *counts.values()])
    tensors = requested_conditions(experiment, cond, classes, n, device)
    return {key: value.cpu() for key, value in tensors.items()}, n
