"""A network grown from 8x8 over 16x16 to 32x32 pictures against one trained at 32x32 all the time,
for the same CPU time.

    python benchmarks/growing.py --folder data/icons [--seconds 240] [--shares 5,15,80]
        [--out runs/growing] [--device cpu]

First the cost of a step at each size is measured, interleaved; then each run is given as many steps
as its share of the time buys (--shares: the hundredths for 8x8, 16x16 and 32x32), so that a busy
machine does not decide. Both are judged at 32x32 by their loss at fixed noise and by the sliced
Wasserstein distance of samples to the pictures at three scales (Karras et al., 2018, arXiv
1710.10196, section 5).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from k_diffusion.cli.train import RunSettings, train
from k_diffusion.config import (
    load_config,
    load_model,
    make_denoiser_wrapper,
    make_model,
    sections_of,
)
from k_diffusion.core.images import make_grid, save_image
from k_diffusion.data import open_dataset
from k_diffusion.generation import generate
from k_diffusion.sampling import get_sigmas_karras

STAGES = {
    8: 'configs/config_icons_8.json',
    16: 'configs/config_icons_16.json',
    32: 'configs/config_icons.json',
}


def step_costs(
    configs: dict[int, dict[str, Any]], device: str, rounds: int = 8
) -> dict[int, float]:
    """CPU seconds of a training step at each size, interleaved, the median round of each."""
    losses = {}
    for size, config in configs.items():
        denoiser = make_denoiser_wrapper(config)(
            make_model(config).to(device, memory_format=torch.channels_last)
        )
        optimizer = sections_of(config).optimizer.make(denoiser.inner_model)
        losses[size] = (
            denoiser,
            optimizer,
            torch.randn(2, 64, 3, size, size, device=device),
            torch.rand(64, device=device) + 0.1,
        )
    seconds: dict[int, list[float]] = {size: [] for size in configs}
    for _ in range(rounds):
        for size, (denoiser, optimizer, x, sigma) in losses.items():
            start = time.perf_counter()
            denoiser.loss(*x, sigma).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[size].append(time.perf_counter() - start)
    return {size: statistics.median(values[1:]) for size, values in seconds.items()}


def run(
    config: dict[str, Any], folder: Path, name: str, steps: int, device: str, **grow: Any
) -> dict[str, Any]:
    start = time.process_time()
    done = train(
        RunSettings(
            config,
            name=name,
            run_dir=folder / name,
            end_step=steps,
            device=device,
            demo_every=0,
            evaluate_n=0,
            num_workers=0,
            **grow,
        )
    )
    return {'run': name, 'steps': steps, 'cpu': time.process_time() - start, 'folder': done.folder}


@torch.no_grad()
def fixed_loss(denoiser: Any, pictures: Tensor, config: dict[str, Any]) -> float:
    """The training loss on pictures, at noises and noise levels that are always the same."""
    generator = torch.Generator().manual_seed(1)
    density = sections_of(config).density
    sigma = density.quantile((torch.arange(len(pictures)) + 0.5) / len(pictures))[
        torch.randperm(len(pictures), generator=generator)
    ]
    noise = torch.randn(pictures.shape, generator=generator)
    parts = zip(pictures.split(128), noise.split(128), sigma.float().split(128))
    return torch.cat([denoiser.loss(*part) for part in parts]).mean().item()


def samples(denoiser: Any, config: dict[str, Any], n: int, device: str) -> Tensor:
    model = config['model']
    sigmas = get_sigmas_karras(20, model['sigma_min'], model['sigma_max'])
    return generate(
        denoiser,
        [model['input_channels'], *model['input_size']],
        sigmas,
        seeds=range(n),
        device=device,
    ).clamp(-1, 1)


def sliced_wasserstein(
    x: Tensor, y: Tensor, patches: int = 16, directions: int = 256
) -> list[float]:
    """Of random 7x7 patches of each octave of x and y, from the finest on; times 1,000, as is
    usual.
    """
    distances = []
    while x.shape[-1] >= 8:
        finer = x, y
        x, y = (F.avg_pool2d(images, 2) for images in finer)
        octave = [
            a - F.interpolate(b, scale_factor=2, mode='bilinear') if a.shape[-1] > 8 else a
            for a, b in zip(finer, (x, y))
        ]
        generator = torch.Generator().manual_seed(0)
        clouds = [normalised(cut(images, patches, generator)) for images in octave]
        random = F.normalize(
            torch.randn(clouds[0].shape[1], directions, generator=generator), dim=0
        )
        a, b = ((cloud @ random).sort(0).values for cloud in clouds)
        distances.append(1000 * (a - b).abs().mean().item())
    return distances


def cut(images: Tensor, patches: int, generator: torch.Generator) -> Tensor:
    corners = torch.randint(
        images.shape[-1] - 6, (len(images), patches, 2), generator=generator
    ).tolist()
    return torch.stack(
        [
            image[:, y : y + 7, x : x + 7]
            for image, of_image in zip(images, corners)
            for y, x in of_image
        ]
    )


def normalised(patches: Tensor) -> Tensor:
    return (
        (patches - patches.mean((0, 2, 3), keepdim=True)) / patches.std((0, 2, 3), keepdim=True)
    ).flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--folder', required=True, help='a folder of pictures')
    parser.add_argument(
        '--seconds', type=float, default=240, help='CPU time of each of the two (default: 240)'
    )
    parser.add_argument(
        '--shares',
        default='5,15,80',
        help='hundredths of it for 8x8, 16x16 and 32x32 (default: 5,15,80)',
    )
    parser.add_argument('--samples', type=int, default=1024)
    parser.add_argument('--out', type=Path, default=Path('runs/growing'))
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(1)
    configs = {}
    for size, path in STAGES.items():
        configs[size] = load_config(path)
        configs[size]['dataset']['location'] = str(Path(args.folder).resolve())
    costs = step_costs(configs, args.device)
    print(
        'seconds a step: ' + ', '.join(f'{size}x{size} {cost:.3f}' for size, cost in costs.items())
    )
    rows, folder = [], None
    for size, share in zip(STAGES, map(float, args.shares.split(','))):
        grow = {'grow': str(folder), 'grow_warmup': 40} if folder else {}
        rows.append(
            run(
                configs[size],
                args.out,
                f'grown_{size}',
                round(share / 100 * args.seconds / costs[size]),
                args.device,
                **grow,
            )
        )
        folder = rows[-1]['folder']
    rows.append(
        run(
            copy.deepcopy(configs[32]),
            args.out,
            'full_32',
            round(args.seconds / costs[32]),
            args.device,
        )
    )
    judge(rows, configs, args)


def judge(
    rows: list[dict[str, Any]], configs: dict[int, dict[str, Any]], args: argparse.Namespace
) -> None:
    dataset = open_dataset(sections_of(configs[32]).dataset, (32, 32), 3, Path(), False)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    pictures = torch.stack(
        [torch.as_tensor(dataset[i]['image']).float() for i in order[: 2 * args.samples]]
    )
    pictures = pictures / 127.5 - 1 if pictures.max() > 2 else pictures
    held_out, reals = pictures[: args.samples], pictures[args.samples :]
    print(
        'run                 steps  CPU seconds  loss at 32x32  sliced Wasserstein distance at '
        '32, 16, 8'
    )
    for row in rows:
        denoiser, config = load_model(row['folder'], args.device)
        size = config['model']['input_size'][0]
        images = samples(denoiser, config, args.samples if size == 32 else 64, args.device)
        save_image(
            args.out / f'{row["run"]}.png',
            make_grid(
                images[:64].repeat_interleave(32 // size, 2).repeat_interleave(32 // size, 3)
            ),
        )
        line = f'{row["run"]:16}{row["steps"]:9}{row["cpu"]:13.0f}'
        if size == 32:
            line += f'{fixed_loss(denoiser, held_out, config):15.4f}  ' + ', '.join(
                f'{d:.1f}' for d in sliced_wasserstein(images, reals)
            )
        print(line, flush=True)
    print(
        f'{"real pictures":53}  '
        + ', '.join(f'{d:.1f}' for d in sliced_wasserstein(held_out, reals[: len(held_out)]))
    )


if __name__ == '__main__':
    main()
