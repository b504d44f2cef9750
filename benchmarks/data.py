"""Images per second from memory to training batches: without augmentation, with it, and one picture
at a time.

    python benchmarks/data.py                            64x64 colour icons, drawn here
    python benchmarks/data.py --size 256                 larger ones
    python benchmarks/data.py --folder pictures/         a folder of one's own

Each figure is the best of several runs: what the machine can do when nothing disturbs it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch

from k_diffusion.augmentation import BatchedAugmentation, KarrasAugmentationPipeline
from k_diffusion.core.images import from_bytes, to_pil_image
from k_diffusion.data import ImageFolderConfig, Images, Loader, icons, open_dataset


def rate(run: Callable[[], int], runs: int) -> float:
    """Images per second, the best of some runs; `run` returns how many images it made."""
    best = 0.0
    for _ in range(runs):
        start = time.perf_counter()
        images = run()
        best = max(best, images / (time.perf_counter() - start))
    return best


def batches(stream: Iterator[dict[str, torch.Tensor]], count: int) -> Callable[[], int]:
    return lambda: sum(len(next(stream)['image']) for _ in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--folder', help='a folder of pictures (default: icons drawn here)')
    parser.add_argument(
        '--size', type=int, default=64, help='height and width of a picture (default: 64)'
    )
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument(
        '--a-prob', type=float, default=0.12, help='the probability of each change (default: 0.12)'
    )
    parser.add_argument('--runs', type=int, default=7)
    args = parser.parse_args()
    if args.size == 256 and not args.folder:
        args.runs = min(args.runs, 3)

    start = time.perf_counter()
    if args.folder:
        dataset = open_dataset(ImageFolderConfig(location=args.folder), (args.size, args.size))
    else:
        dataset = Images(icons(2048 if args.size <= 64 else 512, args.size))
    print(
        f'{len(dataset)} images {list(dataset.image_shape)} in {time.perf_counter() - start:.1f} '
        f's, {torch.get_num_threads()} threads'
    )

    plain = Loader(dataset, args.batch_size).iterate()
    augmented = Loader(
        dataset, args.batch_size, augmentation=BatchedAugmentation(args.a_prob)
    ).iterate()
    pictures = [to_pil_image(from_bytes(dataset[i]['image'])) for i in range(args.batch_size)]
    pipeline = KarrasAugmentationPipeline(args.a_prob)
    figures = {
        'no augmentation': rate(batches(plain, 50), args.runs),
        'augmentation, in batches': rate(batches(augmented, 10), args.runs),
        'augmentation, one by one': rate(
            lambda: len([pipeline(picture) for picture in pictures]), args.runs
        ),
    }
    for name, figure in figures.items():
        print(f'{name:26s}{figure:10,.0f} images/s')
    ratio = figures['augmentation, in batches'] / figures['augmentation, one by one']
    print(f'{"in batches / one by one":26s}{ratio:10.1f}')


if __name__ == '__main__':
    main()
