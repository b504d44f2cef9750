"""How good samples of few model calls are: Frechet distances of a trained model's samples by two
extractors.

    python benchmarks/quality.py --checkpoint runs/demo [--checkpoint runs/mnist] [--n 5000]
        [--calls 5,8,10,20]
        [--guidance 1,2,4.5] [--interval 0.3,1.2] [--calibrated]

The converged run has 100 calls; K.sample takes what it recommends; the rivals are published methods
on published schedules that end at the model's own sigma_min. All draw the same noises, with each
class in turn. The features are those of two small classifiers, which learnt from either half of the
data set with seeds of their own; the distance is to all of it. Unlike benchmarks/distances.py,
which asks whether a sample is where the flow ends, this asks whether it is a good one: under
guidance the two may disagree. --calibrated: also solvers fitted to 16 noises, as `k-diffusion
calibrate` fits them, up to 10 calls.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from _flows import Ranged
from torch import Tensor

import k_diffusion as K
from k_diffusion.core.images import from_bytes, round_to_bytes
from k_diffusion.core.random import derive_seed, randn_items
from k_diffusion.evaluation import Classifier, fid_with_error, train_classifier
from k_diffusion.generation import plan
from k_diffusion.guidance import classifier_free
from k_diffusion.sampling import Calibration
from k_diffusion.sampling.calibration.published import Published
from k_diffusion.sampling.calibration.reference_runs import Teacher

CONVERGED = 100
RIVALS: dict[str, dict[str, Any]] = {
    'DPM++ 2M, karras': {'sampler': 'dpmpp_2m', 'schedule': 'karras'},
    'UniPC of order 2, exponential': {
        'sampler': 'uni_pc',
        'schedule': 'exponential',
        'options': {'order': 2},
    },
    'iPNDM of order 3, karras': {'sampler': 'ipndm', 'schedule': 'karras', 'options': {'order': 3}},
}


class Model:
    """A class-conditional checkpoint, its data set and two judges of it."""

    def __init__(self, checkpoint: str, device: str) -> None:
        self.name, self.device = checkpoint, device
        self.denoiser, filled = K.load_model(checkpoint, device)
        sections = K.config.sections_of(filled)
        self.classes, model = sections.dataset.num_classes, sections.model
        self.shape = [model.input_channels, *model.input_size]
        data = K.data.open_dataset(sections.dataset, tuple(model.input_size), model.input_channels)
        items = [data[i] for i in range(len(data))]
        images, labels = (
            torch.stack([item['image'] for item in items]),
            torch.tensor([item['class_cond'] for item in items]),
        )
        self.judges = [
            train_classifier(images[half::2], labels[half::2], self.classes, seed=half)
            for half in (0, 1)
        ]
        self.reference = [features(judge, from_bytes(images)) for judge in self.judges]

    def guided(self, scale: float, interval: tuple[float, float]) -> Any:
        """The denoiser with guidance, or as it is at a scale of 1."""
        return (
            self.denoiser
            if scale == 1
            else classifier_free(self.denoiser, {'class_cond': self.classes}, scale, interval)
        )

    def draw(self, denoise: Any, n: int, calls: int | None, **how: Any) -> Tensor:
        """n samples in [-1, 1], rounded to 8 bits as a file would."""
        cond = {'class_cond': torch.arange(n) % self.classes}
        return round_to_bytes(
            K.sample(
                denoise,
                [n, *self.shape],
                calls,
                seeds=0,
                cond=cond,
                batch_size=250,
                device=self.device,
                **how,
            )
        )

    def calibrated(self, denoise: Any, calls: int) -> Calibration:
        """A solver fitted to the model, on noises that no samples are drawn from."""
        low, high = float(self.denoiser.sigma_min), float(self.denoiser.sigma_max)
        x = (
            randn_items(self.shape, [derive_seed(1, 'quality', i) for i in range(64)], self.device)
            * high
        )
        cond = {'class_cond': torch.arange(64, device=self.device) % self.classes}
        teacher = Teacher(denoise, x, low, high, cond, tested=16)
        sigmas, sampler, options, _ = plan(denoise, calls, None, None, None, None, {})
        recipe = Published(sampler, tuple(sigmas.double().tolist()), options)
        return K.sampling.calibrate(
            denoise, x, high, low, calls, cond, held_out=48, teacher=teacher, recipes=[recipe]
        )

    def scores(self, samples: Tensor) -> str:
        """The Frechet distance by the first judge with its standard error, and by the second."""
        pairs = [
            fid_with_error(features(judge, samples), reference)
            for judge, reference in zip(self.judges, self.reference)
        ]
        return f'{pairs[0][0]:.3f} +- {pairs[0][2]:.3f} ({pairs[1][0]:.3f})'


def features(judge: Classifier, images: Tensor) -> Tensor:
    """Of pictures [N, C, H, W] in [-1, 1]."""
    with torch.no_grad():
        return torch.cat([judge(part) for part in images.cpu().split(500)])


def compare(
    model: Model,
    scale: float,
    interval: tuple[float, float],
    n: int,
    calls: list[int],
    calibrated: bool,
) -> None:
    """Print the rows of a model under one guidance."""
    denoise = model.guided(scale, interval)
    plain = Ranged(
        denoise, model.denoiser.sigma_min, model.denoiser.sigma_max
    )  # rivals see the guided estimate alone
    words = f'{model.name}, ' + (
        'no guidance' if scale == 1 else f'guidance {scale:g} in ({interval[0]:g}, {interval[1]:g}]'
    )
    print(
        f'| {words} | '
        + ' | '.join(f'{c} calls' for c in calls)
        + ' |\n|---'
        + '|---' * len(calls)
        + '|'
    )
    print(
        f'| converged | {model.scores(model.draw(denoise, n, CONVERGED))}' + ' |' * len(calls),
        flush=True,
    )
    rows: dict[str, Callable[[int], Tensor]] = {'K.sample': lambda c: model.draw(denoise, n, c)}
    if calibrated:
        fits = {c: model.calibrated(denoise, c) for c in calls if c <= 10}
        rows['calibrated'] = lambda c: model.draw(denoise, n, None, sampler=fits[c].sampler())
    for name, how in RIVALS.items():
        rows[name] = lambda c, how=how: model.draw(plain, n, c, **how)
    for name, draw in rows.items():
        cells = ['' if name == 'calibrated' and c > 10 else model.scores(draw(c)) for c in calls]
        print(f'| {name} | {" | ".join(cells)} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--checkpoint',
        action='append',
        required=True,
        help='of a class-conditional model; may be given several times',
    )
    parser.add_argument('--n', type=int, default=5000, help='how many samples')
    parser.add_argument('--calls', default='5,8,10,20')
    parser.add_argument('--guidance', default='1,2,4.5', help='scales of guidance, 1 is none')
    parser.add_argument(
        '--interval', default='0.3,1.2', help='the noise levels that guidance acts at'
    )
    parser.add_argument('--calibrated', action='store_true')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(1)
    low, high = (math.inf if part == 'inf' else float(part) for part in args.interval.split(','))
    for checkpoint in args.checkpoint:
        model = Model(checkpoint, args.device)
        for scale in map(float, args.guidance.split(',')):
            compare(
                model,
                scale,
                (low, high),
                args.n,
                [int(c) for c in args.calls.split(',')],
                args.calibrated,
            )


if __name__ == '__main__':
    main()
