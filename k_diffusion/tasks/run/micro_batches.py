"""Choose the micro-batch and compile the network before a run, with synthetic batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...config.load import Sections
from ...core.modules import eval_mode
from ...models.flops import flop_counter
from ...models.sizing import sizes
from ...training.fitting import activation_bytes, fits, free_bytes, micro_batch
from .settings import TrainSettings


def random_batch_loss(denoiser: Any, sections: Sections, n: int, device: torch.device) -> Tensor:
    """Return the loss of a synthetic batch: grey pictures at medium noise.

    It does not use torch's generators.

    Args:
        denoiser: The denoiser.
        sections: Its config.
        n: The number of pictures.
        device: The device.
    """
    model, classes = sections.model, sections.dataset.num_classes
    x = torch.zeros(n, model.input_channels, *model.input_size, device=device)
    cond = {'class_cond': torch.zeros(n, dtype=torch.long, device=device)} if classes else {}
    if model.augment_prob:
        cond['aug_cond'] = torch.zeros(n, 9, device=device)
    for key, shape in ('mapping', []), ('cross', [1]), ('unet', [*model.input_size]):
        width = getattr(model, f'{key}_cond_dim', 0)
        if width:
            cond[f'{key}_cond'] = torch.zeros(
                n, *([*shape, width] if key == 'cross' else [width, *shape]), device=device
            )
    loss: Tensor = denoiser.loss(
        x, torch.ones_like(x), torch.full((n,), model.sigma_data, device=device), **cond
    ).mean()
    return loss


def count_item_flops(
    denoiser: nn.Module, sections: Sections, device: torch.device, own: bool
) -> float | None:
    """Return the operations of training on one item, two for each multiply-add; None if unknown.

    A backward pass counts as two forward passes. Recomputation that saves memory does not count.

    Args:
        denoiser: The denoiser.
        sections: Its config.
        device: Its device.
        own: The network is not that of the config, and is run once to count.
    """
    if not own:
        classes = sections.dataset.num_classes
        return 6.0 * sizes(sections.model, classes + 1 if classes else 0).multiply_adds
    try:
        with flop_counter() as counter, torch.no_grad(), eval_mode(denoiser):
            random_batch_loss(denoiser, sections, 1, device)
    except Exception:  # a network from Python may take more than is made up here
        return None
    return 6.0 * counter.flops


def split_batch(
    settings: TrainSettings,
    sections: Sections,
    network: nn.Module,
    wrapper: Callable[[nn.Module], Any],
    accelerator: Any,
    say: Callable[[str], None],
) -> tuple[int, int]:
    """Return the batch size and the accumulation steps of a process.

    With micro_batch each batch is split further, without effect on what is drawn.

    Args:
        settings: The settings of the run.
        sections: Its config.
        network: The network.
        wrapper: Makes a denoiser of it.
        accelerator: accelerate's Accelerator.
        say: Report a line of text.

    Raises:
        ValueError: micro_batch does not divide the batch size.
    """
    batch_size, accum_steps = (
        settings.batch_size or sections.training.batch_size,
        settings.grad_accum_steps,
    )
    if settings.micro_batch is None:
        return batch_size, accum_steps
    micro = batch_size if settings.micro_batch == 'auto' else int(settings.micro_batch)
    if settings.micro_batch == 'auto':
        micro = _find_fitting_size(batch_size, network, wrapper, sections, accelerator)
    if batch_size % micro:
        raise ValueError(f'micro_batch must divide the batch size {batch_size}; got {micro}')
    if micro < batch_size:
        say(f'each batch of {batch_size} is split into micro-batches of {micro}')
    return micro, accum_steps * (batch_size // micro)


def _find_fitting_size(
    batch: int,
    network: nn.Module,
    wrapper: Callable[[nn.Module], Any],
    sections: Sections,
    accelerator: Any,
) -> int:
    device = accelerator.device
    denoiser = wrapper(network.train())

    def run(n: int) -> Tensor:
        with torch.random.fork_rng(), accelerator.autocast():
            return random_batch_loss(denoiser, sections, n, device)

    def backward(n: int) -> None:
        run(n).backward()

    per_item = max(1, activation_bytes(lambda: run(2)) - activation_bytes(lambda: run(1)))
    state_bytes = 4 * sum(
        p.numel() * p.element_size() for p in network.parameters()
    )  # gradients, two moments, the average
    micro = micro_batch(batch, per_item, state_bytes, free_bytes(device))
    if device.type == 'cuda':
        reserve = torch.empty(state_bytes, dtype=torch.uint8, device=device)
        while micro > 1 and not fits(partial(backward, micro)):
            micro = next(n for n in range(micro - 1, 0, -1) if batch % n == 0)
        del reserve
        network.zero_grad(set_to_none=True)
    return micro if accelerator.num_processes == 1 else _least(micro, device)


def _least(micro: int, device: torch.device) -> int:
    """Return the minimum of `micro` over the processes."""
    value = torch.tensor(float(micro), device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MIN)
    return int(value.item())


def compile_network(
    network: nn.Module,
    sections: Sections,
    wrapper: Callable[[nn.Module], Any],
    n: int,
    accelerator: Any,
    say: Callable[[str], None],
) -> nn.Module:
    """Compile the network; if that fails, report the reason and return it unchanged.

    Args:
        network: The network.
        sections: Its config.
        wrapper: Makes a denoiser of it.
        n: The batch size.
        accelerator: accelerate's Accelerator.
        say: Report a line of text.
    """
    try:
        fast: Any = torch.compile(network)
        with torch.random.fork_rng(), accelerator.autocast():
            random_batch_loss(wrapper(fast.train()), sections, n, accelerator.device).backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in every way there is
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        say(f'torch.compile failed ({reason[:160]}); training continues without it, more slowly')
        torch._dynamo.reset()
        fast = network
    network.zero_grad(set_to_none=True)
    return fast
