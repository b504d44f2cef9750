"""Before a run: how much of a batch is taken at a time, and whether the network can be compiled,
found out on a made-up batch.
"""

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


def made_up_loss(denoiser: Any, sections: Sections, n: int, device: torch.device) -> Tensor:
    """The loss of n grey pictures at medium noise; draws nothing from torch's generators."""
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

    A backward pass counts as two forward passes. What is computed again to save memory does not
    count.

    Args:
        denoiser: The denoiser.
        sections: Its config.
        device: Where it is.
        own: The network is not that of the config, and is run once to count.
    """
    if not own:
        classes = sections.dataset.num_classes
        return 6.0 * sizes(sections.model, classes + 1 if classes else 0).multiply_adds
    try:
        with flop_counter() as counter, torch.no_grad(), eval_mode(denoiser):
            made_up_loss(denoiser, sections, 1, device)
    except Exception:  # a network from Python may take more than is made up here
        return None
    return 6.0 * counter.flops


def portions(
    settings: TrainSettings,
    sections: Sections,
    network: nn.Module,
    wrapper: Callable[[nn.Module], Any],
    accelerator: Any,
    say: Callable[[str], None],
) -> tuple[int, int]:
    """(batch size, accumulation steps) of a process: as asked, or with micro_batch split
    further, which changes nothing drawn.
    """
    asked, accumulated = (
        settings.batch_size or sections.training.batch_size,
        settings.grad_accum_steps,
    )
    if settings.micro_batch is None:
        return asked, accumulated
    micro = asked if settings.micro_batch == 'auto' else int(settings.micro_batch)
    if settings.micro_batch == 'auto':
        micro = _that_fits(asked, network, wrapper, sections, accelerator)
    if asked % micro:
        raise ValueError(f'micro_batch must divide the batch size {asked}; got {micro}')
    if micro < asked:
        say(f'each batch of {asked} is taken in portions of {micro}')
    return micro, accumulated * (asked // micro)


def _that_fits(
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
            return made_up_loss(denoiser, sections, n, device)

    def backward(n: int) -> None:
        run(n).backward()

    per_item = max(1, activation_bytes(lambda: run(2)) - activation_bytes(lambda: run(1)))
    fixed = 4 * sum(
        p.numel() * p.element_size() for p in network.parameters()
    )  # gradients, two moments, the average
    micro = micro_batch(batch, per_item, fixed, free_bytes(device))
    if device.type == 'cuda':
        held = torch.empty(fixed, dtype=torch.uint8, device=device)
        while micro > 1 and not fits(partial(backward, micro)):
            micro = next(n for n in range(micro - 1, 0, -1) if batch % n == 0)
        del held
        network.zero_grad(set_to_none=True)
    return micro if accelerator.num_processes == 1 else _least(micro, device)


def _least(micro: int, device: torch.device) -> int:
    """The smallest of what the processes found."""
    value = torch.tensor(float(micro), device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MIN)
    return int(value.item())


def compiled(
    network: nn.Module,
    sections: Sections,
    wrapper: Callable[[nn.Module], Any],
    n: int,
    accelerator: Any,
    say: Callable[[str], None],
) -> nn.Module:
    """The network under torch.compile, or as it is where that fails, which is said with the
    reason.
    """
    try:
        fast: Any = torch.compile(network)
        with torch.random.fork_rng(), accelerator.autocast():
            made_up_loss(wrapper(fast.train()), sections, n, accelerator.device).backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in every way there is
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        say(
            f'the network cannot be compiled here ({reason[:160]}); it trains as it is, only slower'
        )
        torch._dynamo.reset()
        fast = network
    network.zero_grad(set_to_none=True)
    return fast
