"""Settings and result of a training run."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...config import load_model
from ...core.arguments import is_whole
from ...core.remote import is_url
from ...core.settings import at_least, check_settings, one_of, setting
from ..reference import DATASET_WORDS
from .events import find_target_problem


def _number_or_text(text: str) -> float | str:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Settings of `train`; None means the value of the config."""

    config: str | os.PathLike[str] | dict[str, Any] | None = setting(
        None, 'the config file (.json, or a .safetensors file that carries one)'
    )
    name: str = setting('model', 'the name of the run')
    run_dir: str | os.PathLike[str] | None = setting(
        None,
        'the folder of the run, or its URL (s3://... and others of fsspec), to which the run is '
        'uploaded and from which it continues (default: runs/NAME)',
    )
    local_dir: str | os.PathLike[str] | None = setting(
        None, 'with a URL as run_dir: the folder on this machine (default: runs/NAME)'
    )
    batch_size: int | None = setting(
        None, "images per step and process (default: the config's, else 64)"
    )
    end_step: int | None = setting(None, 'total number of optimizer steps')
    lr: float | None = setting(None, "the learning rate (default: the config's)")
    grad_accum_steps: int = setting(1, 'gradient accumulation steps')
    micro_batch: str | int | None = setting(
        None,
        "items of a batch per pass, or 'auto': as many as fit into memory (default: all)",
        parse=str,
    )
    mixed_precision: str | None = setting(
        None, 'the dtype of the computation; weights stay float32', choices=('no', 'fp16', 'bf16')
    )
    checkpointing: bool = setting(
        False, 'recompute activations to save memory, if the model supports it'
    )
    compile: bool = setting(False, 'compile the model')
    shard: bool = setting(
        False, 'shard weights, average and optimizer state over the processes (FSDP2)'
    )
    seed: int | None = setting(None, "the seed (default: the run's own, else 0)")
    device: str | None = setting(None, 'cpu, cuda, mps (default: the fastest available)')
    num_workers: int = setting(8, 'number of processes that decode pictures, at most one per core')
    start_method: str | None = setting(
        None,
        'how worker processes start (default: forkserver on Linux, else spawn)',
        choices=('fork', 'forkserver', 'spawn'),
    )
    worker_timeout: float = setting(
        600.0,
        'the time without a batch after which worker processes count as hanging, '
        'which ends the run (default: 600; 0: never)',
        metavar='SECONDS',
    )
    allow_code: bool = setting(
        False,
        'allow a "custom" data set to run the Python file named in the config, '
        'and an extractor to run the code in its TorchScript file',
    )
    save_every: int = setting(10000, 'number of steps between checkpoints')
    keep_last: int = setting(
        0, 'number of newest checkpoints to keep; older ones are deleted (default: 0, keep all)'
    )
    keep_best: int = setting(
        1, 'number of older checkpoints to keep, those of the smallest smoothed loss'
    )
    max_seconds: float | None = setting(
        None,
        'stop after this time, with a checkpoint to continue from (exit status 0)',
        metavar='SECONDS',
    )
    rewinds: int = setting(
        0,
        'how often a run may return, after a spike of the loss, to the last good checkpoint and '
        'continue with other data (default: 0, never)',
    )
    spike_factor: float = setting(
        10.0,
        'a spike is a loss above this multiple of the median of the last 100, three steps in a row',
    )
    nan_batches: int = setting(
        3,
        'number of batches with a NaN loss to write, NAME_nan_STEP.safetensors',
    )
    on_event: str | Sequence[str] = setting(
        (),
        'run a command (without a shell) at each event, or POST to a URL: start, checkpoint, '
        'spike, nan, stop, failure, end; the event is JSON on its standard input',
        many='append',
        metavar='CMD',
    )
    profile: int = setting(
        0, 'number of steps to trace after a warm-up, NAME_trace_STEP.json.gz (default: 0, none)'
    )
    ema_snapshots: int | None = setting(
        None,
        "number of snapshots for `k-diffusion ema` over the run (default: the config's, else 0)",
    )
    demo_every: int = setting(
        500, 'number of steps between grids of samples (default: 500; 0: never)'
    )
    sample_n: int = setting(64, 'number of samples in a grid')
    evaluate_every: int = setting(10000, 'number of steps between evaluations')
    evaluate_n: int = setting(2000, 'number of samples of an evaluation (default: 2000; 0: never)')
    evaluate_only: bool = setting(False, 'evaluate the latest checkpoint instead of training')
    evaluate_with: str = setting(
        'inception',
        'the feature extractor: inception, clip, dinov2, classifier (trained in '
        'seconds on the labelled data set, without a download) or a TorchScript file',
    )
    evaluate_against: str | None = setting(
        None, f'a held-out data set to compare with (default: the training set): {DATASET_WORDS}'
    )
    held_out: Any = setting(
        None,
        'data of the held-out loss: a data set (TYPE:LOCATION, or another location of the type in '
        'the config), or a number of items excluded from training (default: that of the config, '
        'else the test split of the data set; 0: none)',
        metavar='DATASET|N',
        parse=_number_or_text,
    )
    clip_model: str = setting('ViT-B/16', 'the CLIP model to evaluate with, or its folder')
    dinov2_model: str = setting('vitl14', 'the DINOv2 model to evaluate with, or its folder')
    gns: bool = setting(
        False, 'measure the gradient noise scale (one process splits each batch in two for it)'
    )
    wandb_project: str | None = setting(None, 'log to this wandb project')
    wandb_entity: str | None = setting(None, 'the wandb entity')
    wandb_group: str | None = setting(None, 'the wandb group')
    wandb_save_model: bool = setting(False, 'upload checkpoints to wandb')
    wandb_offline: bool = setting(
        False, 'store the wandb log on disk (`wandb sync` sends it later)'
    )
    peak_flops: float | None = setting(
        None,
        'peak operations per second of a device, for the model FLOPs utilization (MFU) in the log '
        '(default: from a table of GPUs)',
    )
    tensorboard: bool = setting(False, 'write event files for TensorBoard')
    report: bool = setting(True, 'write no NAME_report.html')
    dry_run: bool = setting(
        False, 'report what training would do and cost, draw the first batch, and exit'
    )
    resume: str | os.PathLike[str] | None = setting(
        None, 'the checkpoint to continue from (default: the latest of the run)'
    )
    resume_inference: str | os.PathLike[str] | None = setting(
        None, 'a .safetensors file to start the weights from'
    )
    verify: bool = setting(
        True, 'accept checkpoints of resume and grow that differ from their manifest'
    )
    reset_ema: bool = setting(False, 'restart the averaged weights from the raw ones')
    reset_optimizer: bool = setting(
        False, "restart the optimizer's moments, which another type of optimizer requires"
    )
    grow: str | os.PathLike[str] | None = setting(
        None,
        'start from a network trained on smaller pictures: a .pth, a .safetensors or its run',
        metavar='CHECKPOINT',
    )
    grow_config: str | os.PathLike[str] | dict[str, Any] | None = setting(
        None, 'the config of the grow checkpoint, if it has none', metavar='CONFIG'
    )
    grow_warmup: int = setting(
        0,
        'number of steps of a warm-up of the learning rate of the new layers alone',
        metavar='STEPS',
    )
    data: str | os.PathLike[str] | None = setting(
        None,
        'instead of a config: a folder or archive of pictures; size, network and length of the run '
        'are chosen for it, and the config is written into the folder of the run',
    )
    size: int | None = setting(
        None, 'with data: the side of the pictures (default: chosen from them)'
    )
    classes: str = setting(
        'auto', 'with data: use its folders as classes', choices=('auto', 'folders', 'none')
    )
    minutes: float | None = setting(
        None, 'with data: approximate training time (default: 10 on a CPU, else 60)'
    )
    changes: Any = setting(
        help="another value for a key of the config, as JSON: model.channels='[64,128]'",
        flags=('--set',),
        factory=list,
        many='append',
        metavar='KEY=VALUE',
    )
    network: nn.Module | str | None = setting(
        None,
        'FILE.py:CLASS, a network of your own, called as net(x, sigma, **cond); runs the file '
        '(see allow_code)',
        parse=str,
    )
    # Of Python alone:
    dataset: Any = setting(None)  # a tensor [N, C, ...] or a torch data set
    num_classes: int = setting(0)  # of its labels; 0: they go to the network as they are
    sigma_data: float | str | None = setting(
        None
    )  # of the data; 'measure', the default without a config
    density: Any = setting(None)  # of training noise levels: K.schedules.LogNormal(...)
    weighting: Any = setting(None)  # of the loss: a name, or a function of sigma [B]
    loss: Callable[..., Tensor] | None = setting(
        None
    )  # loss(denoiser, x, noise, sigma, **cond) -> [B]
    objective: Any = setting(None)  # a Tuner: other batches and another loss
    optimizer: Any = setting(None)  # an optimizer, or a function of the parameters
    lr_schedule: Any = setting(None)  # a schedule of it, or a function of the optimizer
    hooks: Sequence[Any] = setting(())  # functions of the trainer, called after each step
    stop: Any = setting(None)  # a threading.Event, or a function: True stops
    show: bool = setting(True)  # progress and notes on stderr

    def __post_init__(self) -> None:
        check_settings(
            at_least(
                self,
                1,
                'batch_size',
                'end_step',
                'grad_accum_steps',
                'save_every',
                'sample_n',
                'evaluate_every',
            ),
            at_least(
                self,
                0,
                'num_workers',
                'worker_timeout',
                'demo_every',
                'evaluate_n',
                'keep_last',
                'keep_best',
                'ema_snapshots',
                'rewinds',
                'nan_batches',
                'profile',
                'grow_warmup',
                'num_classes',
            ),
            one_of(self, ('no', 'fp16', 'bf16'), 'mixed_precision'),
            at_least(self, 8, 'size'),
            one_of(self, ('auto', 'folders', 'none'), 'classes'),
            one_of(self, ('fork', 'forkserver', 'spawn'), 'start_method'),
            *self._problems(),
            *self._problems_of_long_runs(),
        )

    @property
    def targets(self) -> list[str]:
        """The commands and URLs that events go to."""
        return [self.on_event] if isinstance(self.on_event, str) else list(self.on_event)

    def _problems(self) -> list[str]:
        """Return the problems of single settings and of combinations of settings."""
        plain = Path(self.name).name == self.name and self.name.strip('.')
        micro = self.micro_batch in (None, 'auto') or (
            str(self.micro_batch).isdecimal() and int(str(self.micro_batch)) > 0
        )
        grows = self.grow is not None
        rules = {
            'config must be given, or data=... (or, from Python, network and dataset)': any(
                value is not None for value in (self.config, self.data, self.network, self.dataset)
            ),
            'data must be left out with a config or a dataset': self.data is None
            or (self.config is None and self.dataset is None),
            'network must be given with a dataset and no config': (self.config or self.data)
            is not None
            or self.network is not None
            or self.dataset is None,
            'dataset must be given with a network and no config': (self.config or self.data)
            is not None
            or self.dataset is not None
            or self.network is None,
            'network must be a torch.nn.Module, an instance of its class, or FILE.py:CLASS; '
            f'got {self.network!r:.60}': self.network is None
            or isinstance(self.network, (nn.Module, str)),
            f"sigma_data must be above 0, or 'measure'; got {self.sigma_data!r}": self.sigma_data
            in (None, 'measure')
            or (isinstance(self.sigma_data, (int, float)) and self.sigma_data > 0),
            f'stop must be a threading.Event or a function; got {self.stop!r:.60}': self.stop
            is None
            or callable(getattr(self.stop, 'is_set', self.stop)),
            'lr must be left out with an optimizer of your own': self.lr is None
            or self.optimizer is None,
            f'name must be a plain name (run_dir=... is the folder); got {self.name!r}': plain,
            f"micro_batch must be 'auto' or a number that divides the batch size; "
            f'got {self.micro_batch!r}': micro,
            f'minutes must be above 0; got {self.minutes}': self.minutes is None
            or self.minutes > 0,
            'size, classes and minutes must be left out without data': self.data is not None
            or (self.size is None and self.minutes is None and self.classes == 'auto'),
            'held_out must be a data set, or a number of items that is an integer >= 0; got '
            f'{self.held_out!r:.60}': not isinstance(self.held_out, (int, float))
            or is_whole(self.held_out, 0),
            f'peak_flops must be above 0; got {self.peak_flops}': self.peak_flops is None
            or self.peak_flops > 0,
            f'lr must be above 0; got {self.lr}': self.lr is None or self.lr > 0,
            'shard must be left out with gns=True': not (self.shard and self.gns),
            (
                'grow must name a checkpoint where grow_config=... or grow_warmup=... say how to '
                'grow'
            ): grows or (self.grow_config is None and not self.grow_warmup),
            'grow and resume_inference must not both be given; each says what weights to start '
            'from': not (grows and self.resume_inference),
            (
                f'evaluate_n must be at least 2 for an evaluation; got {self.evaluate_n}'
            ): self.evaluate_n != 1 and not (self.evaluate_only and self.evaluate_n == 0),
        }
        return [problem for problem, fine in rules.items() if not fine]

    def _problems_of_long_runs(self) -> list[str | None]:
        """Return the problems of the settings of long runs; a None stands for none."""
        rules = {
            f'max_seconds must be above 0; got {self.max_seconds}': self.max_seconds is None
            or self.max_seconds > 0,
            f'spike_factor must be above 1; got {self.spike_factor}': self.spike_factor > 1,
            'local_dir must be left out where run_dir is not a URL': self.local_dir is None
            or is_url(self.run_dir),
        }
        problems = [problem for problem, fine in rules.items() if not fine]
        return [*problems, *map(find_target_problem, self.targets)]

    @property
    def extractor(self) -> str:
        """The extractor that evaluate_with, clip_model and dinov2_model name together."""
        models = {'clip': self.clip_model, 'dinov2': self.dinov2_model}
        model = models.get(self.evaluate_with)
        return self.evaluate_with if model is None else f'{self.evaluate_with}:{model}'


#: The name of before.
RunSettings = TrainSettings


def status_after(number: int | None) -> int:
    """Return the exit status after a signal: 0 for Ctrl-C or none, else 128 + its number."""
    return 0 if number in (None, signal.SIGINT) else 128 + int(number)


@dataclasses.dataclass(frozen=True)
class Run:
    """Result of a training run.

    Attributes:
        name: The name of the run.
        folder: The folder of its files.
        checkpoint: Its last checkpoint.
        step: The number of optimizer steps in all.
        status: 'done', 'interrupted' (by a signal), 'stopped' (by `Stop` or the setting stop),
            'already done', 'evaluated' or 'dry run'.
        loss: The smoothed loss.
        processes: The number of training processes.
        signal: The signal that interrupted it.
        network: The trained network with the raw weights, if it was passed from Python.
    """

    name: str
    folder: Path
    checkpoint: Path
    step: int
    status: str
    loss: float | None
    processes: int
    signal: int | None = None
    network: nn.Module | None = dataclasses.field(default=None, repr=False, compare=False)

    @functools.cached_property
    def denoiser(self) -> nn.Module:
        """The denoiser D(x, sigma, **cond) with the averaged weights, in evaluation mode."""
        return load_model(self.checkpoint, network=copy.deepcopy(self.network))[0]

    @property
    def exit_status(self) -> int:
        """0, also after Ctrl-C, which loses no work; after another signal 128 + its number.

        A cluster recognises its own signals by it (143 after SIGTERM).
        """
        return status_after(self.signal) if self.status == 'interrupted' else 0

    def summary(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != 'network'
        }
        return {
            key: str(value) if isinstance(value, Path) else value for key, value in fields.items()
        }
