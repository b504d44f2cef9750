"""What a training run can be told, and what became of it."""
from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What a run can be told; a None is the config's value. The flags of `k-diffusion train` bear these names."""

    config: str | os.PathLike[str] | dict[str, Any]     # the config: a path, or the dict itself
    name: str = 'model'                                 # names the run and its files
    run_dir: str | os.PathLike[str] | None = None       # where it lives (default: runs/NAME)
    batch_size: int | None = None                       # images per micro-step and process
    end_step: int | None = None                         # optimizer steps in all; None there too: until stopped
    lr: float | None = None
    grad_accum_steps: int = 1                           # micro-steps per optimizer step
    micro_batch: str | int | None = None                # how many of a batch are taken at a time; 'auto': what fits into memory
    mixed_precision: str | None = None                  # no, fp16, bf16: of the computation; weights stay float32
    checkpointing: bool = False                         # recompute activations in the backward pass
    compile: bool = False                               # torch.compile the network
    shard: bool = False                                 # cut the network into pieces, one for each process (FSDP2)
    seed: int | None = None                             # default: the run's own, else 0
    device: str | None = None                           # cpu, cuda, mps; None: the fastest there is
    num_workers: int = 8                                # processes that decode pictures, at most one per core
    start_method: str = 'spawn'                         # how they start
    worker_timeout: float = 600.                        # seconds until they count as hanging; 0: never
    allow_code: bool = False                            # let custom data sets and TorchScript run
    save_every: int = 10000                             # steps between checkpoints
    keep_last: int = 0                                  # checkpoints kept besides the best; 0: all of them
    keep_best: int = 1                                  # how many of the smallest smoothed loss are kept besides
    ema_snapshots: int | None = None                    # snapshots for `k-diffusion ema` over the run; 0: none
    demo_every: int = 500                               # steps between demo grids; 0: none
    sample_n: int = 64                                  # samples in a grid
    evaluate_every: int = 10000                         # steps between evaluations
    evaluate_n: int = 2000                              # samples of an evaluation; 0: none
    evaluate_only: bool = False                         # evaluate the latest checkpoint instead of training
    evaluate_with: str = 'inception'                    # inception, clip, dinov2, classifier or a TorchScript file
    evaluate_against: str | None = None                 # a held-out data set (default: the training set)
    clip_model: str = 'ViT-B/16'
    dinov2_model: str = 'vitl14'
    gns: bool = False                                   # follow the gradient noise scale
    wandb_project: str | None = None
    wandb_entity: str | None = None
    wandb_group: str | None = None
    wandb_save_model: bool = False
    wandb_offline: bool = False                         # keep what is for wandb on the disk
    tensorboard: bool = False                           # write event files for TensorBoard
    report: bool = True                                 # write NAME_report.html
    dry_run: bool = False                               # say what would be done, and leave
    resume: str | None = None                           # a checkpoint (default: the run's latest)
    resume_inference: str | None = None                 # a .safetensors file to start from
    verify: bool = True         # compare what `resume` or `grow` names with the manifest beside it
    reset_ema: bool = False                             # the average starts anew
    reset_optimizer: bool = False                       # the optimizer's moments start anew; its type may be another
    grow: str | None = None                             # a checkpoint of a smaller network to start from
    grow_config: str | os.PathLike[str] | dict[str, Any] | None = None     # its config, where it carries none
    grow_warmup: int = 0                                # steps over which the learning rate of the new layers rises

    def __post_init__(self) -> None:
        for key in ('batch_size', 'end_step', 'grad_accum_steps', 'save_every', 'sample_n', 'evaluate_every'):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f'--{key.replace("_", "-")} is {value}; it must be at least 1')
        if Path(self.name).name != self.name or not self.name.strip('.'):
            raise ValueError(f'--name is {self.name!r}; it must be a plain name (the folder is said by --run-dir)')
        for key in ('num_workers', 'worker_timeout', 'demo_every', 'evaluate_n', 'keep_last',
                    'keep_best', 'ema_snapshots', 'grow_warmup'):
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f'--{key.replace("_", "-")} is {getattr(self, key)}; it must be at least 0')
        for key in ('gns', 'compile'):
            if self.shard and getattr(self, key):
                raise ValueError(f'--shard does not go together with --{key}; leave one of them out')
        if self.shard and self.mixed_precision == 'fp16':
            raise ValueError('--shard does not go with --mixed-precision fp16, whose loss scaling is of whole gradients; take bf16')
        if self.micro_batch not in (None, 'auto') and not (str(self.micro_batch).isdecimal() and int(str(self.micro_batch)) > 0):
            raise ValueError(f"--micro-batch is {self.micro_batch!r}; it must be 'auto' or a number that divides the batch size")
        if (self.grow_config is not None or self.grow_warmup) and self.grow is None:
            raise ValueError('--grow-config and --grow-warmup say how to grow, and --grow is missing; name the checkpoint to grow from')
        if self.grow is not None and self.resume_inference:
            raise ValueError('--grow and --resume-inference both say what weights to start from; leave one of them out')
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f'--lr is {self.lr}; it must be above 0')
        if self.evaluate_n == 1 or (self.evaluate_only and not self.evaluate_n):
            raise ValueError(f'--evaluate-n is {self.evaluate_n}; an evaluation takes at least 2 samples')

    @property
    def extractor(self) -> str:
        """What --evaluate-with, --clip-model and --dinov2-model name together."""
        model = {'clip': self.clip_model, 'dinov2': self.dinov2_model}.get(self.evaluate_with)
        return self.evaluate_with if model is None else f'{self.evaluate_with}:{model}'


def status_after(number: int | None) -> int:
    """Return the exit status after a signal: 0 for Ctrl-C or none, else 128 + its number."""
    return 0 if number in (None, signal.SIGINT) else 128 + int(number)


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of a run."""

    name: str
    folder: Path
    checkpoint: Path
    step: int
    status: str         # done, interrupted, 'already done', 'evaluated' or 'dry run'
    loss: float | None  # smoothed
    processes: int
    signal: int | None = None   # what interrupted it

    @property
    def exit_status(self) -> int:
        """0, also after Ctrl-C, which leaves nothing undone; after another signal 128 + its number.

        By that a cluster knows its own doing (143 after SIGTERM).
        """
        return status_after(self.signal) if self.status == 'interrupted' else 0

    def summary(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(self).items()}
