"""What a training run can be told, and what became of it."""
from __future__ import annotations

import dataclasses
import os
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
    mixed_precision: str | None = None                  # no, fp16, bf16: of the computation; weights stay float32
    checkpointing: bool = False                         # recompute activations in the backward pass
    compile: bool = False                               # torch.compile the network
    seed: int | None = None                             # default: the run's own, else 0
    device: str | None = None                           # cpu, cuda, mps; None: the fastest there is
    num_workers: int = 8                                # processes that decode pictures, at most one per core
    start_method: str = 'spawn'                         # how they start
    allow_code: bool = False                            # whether a "custom" data set may run its file
    save_every: int = 10000                             # steps between checkpoints
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
    resume: str | None = None                           # a checkpoint (default: the run's latest)
    resume_inference: str | None = None                 # a .safetensors file to start from
    reset_ema: bool = False                             # the average starts anew

    def __post_init__(self) -> None:
        for key in ('batch_size', 'end_step', 'grad_accum_steps', 'save_every', 'sample_n', 'evaluate_every'):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f'--{key.replace("_", "-")} is {value}; it must be at least 1')
        if Path(self.name).name != self.name or not self.name.strip('.'):
            raise ValueError(f'--name is {self.name!r}; it must be a plain name (the folder is said by --run-dir)')
        for key in ('num_workers', 'demo_every', 'evaluate_n'):
            if getattr(self, key) < 0:
                raise ValueError(f'--{key.replace("_", "-")} is {getattr(self, key)}; it must be at least 0')
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f'--lr is {self.lr}; it must be above 0')
        if self.evaluate_n == 1 or (self.evaluate_only and not self.evaluate_n):
            raise ValueError(f'--evaluate-n is {self.evaluate_n}; an evaluation takes at least 2 samples')

    @property
    def extractor(self) -> str:
        """What --evaluate-with, --clip-model and --dinov2-model name together."""
        model = {'clip': self.clip_model, 'dinov2': self.dinov2_model}.get(self.evaluate_with)
        return self.evaluate_with if model is None else f'{self.evaluate_with}:{model}'


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of a run."""

    name: str
    folder: Path
    checkpoint: Path
    step: int
    status: str         # done, interrupted, 'already done' or 'evaluated'
    loss: float | None  # smoothed
    processes: int

    def summary(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(self).items()}
