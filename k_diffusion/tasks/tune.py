"""Tune a trained model by reward."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Experiment, find_checkpoint, read_weights
from ..core.devices import choose_device
from ..core.python_files import digest_code, is_reference
from ..core.remote import is_url
from ..core.settings import are_lists, at_least, check_settings, one_of, setting, takes_settings
from ..data import Dataset
from .model import find_sampler_problem, load_sampler
from .reference import open_reference
from .rewards import REWARD_WORDS, make_reward, reward_class
from .run.settings import Run, TrainSettings
from .run.tuning import Tuner
from .run.tuning_hook import TuningHook
from .sample import read_classes
from .train import train

_LOG = logging.getLogger(__name__)

METHODS = ('nft', 'grpo')
#: The learning rate of a method.
RATES = {'nft': 1e-3, 'grpo': 3e-4}
#: Its sampler, the number of steps and the options.
SAMPLERS_OF = {
    'nft': ('dpmpp_2m', 8, {}),
    'grpo': ('exp_ab', 10, {'order': 1, 'eta': 1.0}),
}


@dataclass(frozen=True)
class TuneSettings:
    """Settings of `tune`.

    From Python `reward` and `sampler` may be functions, and `network` an instance.
    """

    checkpoint: str | os.PathLike[str] = setting(
        help="the model: a .pth or .safetensors file, or a run's folder (its latest checkpoint)"
    )
    reward: Any = setting(help=f'the reward: {REWARD_WORDS}', parse=str)
    method: str = setting(
        'nft',
        'nft (DiffusionNFT, any sampler) or grpo (policy gradients, a stochastic sampler)',
        choices=METHODS,
    )
    name: str = setting('tuned', 'the name of the run')
    run_dir: str | os.PathLike[str] | None = setting(
        None, 'the folder of the run (default: runs/NAME)'
    )
    end_step: int = setting(50, 'total number of optimizer steps')
    lr: float | None = setting(
        None,
        'the learning rate, which falls over the run (default: 1e-3 for nft, 3e-4 for grpo); large '
        'networks take 1e-5 to 1e-4',
    )
    batch_size: int = setting(256, 'samples per step and process')
    batches: int = setting(1, 'number of optimizer steps of one pass over the samples of a round')
    passes: int = setting(2, 'number of passes over the samples of a round')
    classes: Sequence[int | str] | None = setting(
        None,
        'prompts: classes by name or number, used in turn (default: the model without its '
        'conditions)',
        metavar='3,cat',
        parse=read_classes,
    )
    cond: Sequence[str] = setting(
        (),
        'prompts: a condition of the model, as in `sample`; samples use several in turn',
        metavar='TYPE=VALUE',
        many='append',
    )
    sampler: Any = setting(
        None,
        'the sampler (default: dpmpp_2m for nft, exp_ab of order 1 for grpo): a name, '
        'or FILE.py:FUNCTION, one of your own (see allow_code)',
        parse=str,
    )
    steps: int | None = setting(
        None, 'number of steps of the sampler (default: 8 for nft, 10 for grpo)'
    )
    eta: float | None = setting(None, 'the amount of noise of the sampler (default: 1 for grpo)')
    strength: float = setting(1.0, 'nft: the distance of the implicit policies from the old one')
    clip: float = setting(0.2, 'grpo: the largest difference of the ratio of densities from 1')
    trained_steps: int = setting(3, 'grpo: number of steps of a path per optimizer step')
    pull: float = setting(1e-4, 'the weight of the distance from the model before tuning')
    clip_model: str = setting('ViT-B/32', 'the CLIP model of clip:WORDS, or its folder')
    evaluate_every: int = setting(
        25, 'number of steps between logs of reward and Frechet distance of samples (0: never)'
    )
    evaluate_n: int = setting(500, 'number of samples of such a log')
    evaluate_with: str = setting(
        'auto',
        'the feature extractor of the distance, as `evaluate` takes it; auto: a classifier for '
        'pictures with classes, statistics for tensors, else none',
    )
    save_every: int = setting(10000, 'number of steps between checkpoints')
    demo_every: int = setting(0, 'number of steps between grids of samples (0: never)')
    seed: int | None = setting(None, "the seed (default: the run's own, else 0)")
    device: str | None = setting(None, 'cpu, cuda, mps (default: the fastest available)')
    mixed_precision: str | None = setting(
        None, 'the dtype of the computation; weights stay float32', choices=('no', 'fp16', 'bf16')
    )
    network: Any = setting(
        None,
        'FILE.py:CLASS, your own network that the model was trained with',
        parse=str,
    )
    allow_code: bool = setting(
        False, 'run the Python files named in settings, and the code in a TorchScript file'
    )
    # Of Python alone:
    options: Mapping[str, Any] | None = setting(None)  # other options of the sampler
    dataset: Any = setting(None)  # of a model that was trained on data given from Python
    hooks: Sequence[Any] = setting(())  # functions of the trainer, called after each step
    stop: Any = setting(None)  # a threading.Event, or a function: True stops
    show: bool = setting(True)  # progress and notes on stderr

    def __post_init__(self) -> None:
        above = [
            f'{name} must be above 0; got {getattr(self, name)}'
            for name in ('lr', 'strength', 'clip')
            if getattr(self, name) is not None and not getattr(self, name) > 0
        ]
        check_settings(
            at_least(
                self, 1, 'end_step', 'batch_size', 'batches', 'passes', 'steps', 'trained_steps',
                'save_every',
            ),
            at_least(self, 0, 'pull', 'eta', 'evaluate_every', 'demo_every'),
            at_least(self, 2, 'evaluate_n'),
            one_of(self, METHODS, 'method'),
            are_lists(self, 'classes', 'cond'),
            find_sampler_problem(self.sampler),
            *above,
        )  # fmt: skip


@takes_settings(TuneSettings)
def tune(settings: TuneSettings) -> Run:
    """Tune a trained model so that its samples get higher rewards, or continue such a run.

    `tune('runs/demo', reward='class:7', name='sevens')`. An averaged copy of the network draws
    rounds of samples, which are rewarded; the network is trained on them. The result is an ordinary
    training run, whose checkpoint every command accepts; the same call continues it.

    Args:
        settings: The settings, or the fields of TuneSettings as arguments.

    Returns:
        The run; its `denoiser` has the averaged weights.

    Raises:
        ValueError: A setting cannot be used.

    References:
        Zheng et al. (2025), arXiv:2509.16117 (DiffusionNFT); Liu et al. (2025), arXiv:2505.05470
        (Flow-GRPO).
    """
    checkpoint = find_checkpoint(settings.checkpoint)
    _, config = read_weights(checkpoint)
    if config is None:
        raise ValueError(f'checkpoint must carry its config; {checkpoint} has none')
    if config['model'].get('flow_map'):
        raise ValueError(
            f'checkpoint must be of a denoiser; {checkpoint} is a flow map: tune the model that it '
            'was distilled from, and distill the result'
        )
    config = _tuning_config(config, settings)
    experiment = Experiment.open(config)
    device = choose_device(settings.device)
    dataset = open_reference(experiment, settings.dataset, settings.allow_code, checkpoint.parent)
    tuner = _make_tuner(settings, experiment, dataset, device)
    place = None if is_url(settings.run_dir) else settings.run_dir
    folder = Path(place or Path('runs') / settings.name)
    hooks = [*settings.hooks]
    if settings.evaluate_every:
        label = reward_class(settings.reward, experiment)
        hooks.append(
            TuningHook(
                settings.evaluate_every,
                folder / f'{settings.name}_tuning.csv',
                tuner,
                settings.evaluate_n,
                _pick_extractor(settings, experiment, dataset),
                dataset,
                label,
                settings.allow_code,
                _LOG.info,
            )
        )
    return train(_train_settings(settings, config, checkpoint, tuner, hooks))


def _tuning_config(config: Mapping[str, Any], settings: TuneSettings) -> dict[str, Any]:
    """Return the config of a model with the optimizer and the schedules of its tuning."""
    return {
        **config,
        'optimizer': {
            'type': 'adamw',
            'lr': settings.lr or RATES[settings.method],
            'betas': [0.9, 0.99],
            'weight_decay': 0.0,
        },
        'lr_sched': {
            'type': 'warmup-decay',
            'warmup_steps': 5,
            'decay_start': 0.4,
            'final': 0.02,
        },
        'ema_sched': {'type': 'power', 'width': 0.1},
        'training': {
            **(config.get('training') or {}),
            'batch_size': settings.batch_size,
            'end_step': settings.end_step,
            'ema_snapshots': 0,
        },
    }


def _make_tuner(
    settings: TuneSettings, experiment: Experiment, dataset: Dataset, device: torch.device
) -> Tuner:
    reward = make_reward(
        settings.reward, experiment, dataset, device, settings.clip_model, settings.allow_code
    )
    name, steps, options = SAMPLERS_OF[settings.method]
    if settings.sampler is not None:
        title, own = load_sampler(settings.sampler, settings.allow_code)
        name, options = title or own, {}
    options = {**options, **(settings.options or {})}
    if settings.eta is not None:
        options['eta'] = settings.eta
    facts = {
        'reward': settings.reward if isinstance(settings.reward, str) else '',
        'reward code': digest_code(settings.reward) if is_reference(settings.reward) else '',
        **{key: getattr(settings, key) for key in ('method', 'batches', 'passes', 'batch_size')},
    }
    return Tuner(
        reward,
        settings.method,
        settings.batches,
        settings.passes,
        settings.classes,
        settings.cond,
        name,
        settings.steps or steps,
        options,
        settings.strength,
        settings.clip,
        settings.trained_steps,
        settings.pull,
        facts,
    )


def _pick_extractor(settings: TuneSettings, experiment: Experiment, dataset: Dataset) -> str:
    if settings.evaluate_with != 'auto':
        return settings.evaluate_with
    if not experiment.gives_pictures:
        return 'tensor'
    return 'classifier' if dataset.num_classes > 1 else ''


def _train_settings(
    settings: TuneSettings,
    config: dict[str, Any],
    checkpoint: Path,
    tuner: Tuner,
    hooks: Sequence[Any],
) -> TrainSettings:
    """Return the settings of the training run."""
    return TrainSettings(
        config=config,
        name=settings.name,
        run_dir=settings.run_dir,
        end_step=settings.end_step,
        mixed_precision=settings.mixed_precision,
        seed=settings.seed,
        device=settings.device,
        num_workers=0,
        allow_code=settings.allow_code,
        save_every=settings.save_every,
        demo_every=settings.demo_every,
        evaluate_n=0,
        resume_inference=checkpoint,
        network=settings.network,
        dataset=settings.dataset,
        objective=tuner,
        hooks=hooks,
        stop=settings.stop,
        show=settings.show,
    )
