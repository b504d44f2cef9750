#!/usr/bin/env python3
"""Two pictures from the model of `make demo`: classes with and without guidance, and digits whose
lower half is drawn anew.

    python examples/digit_grids.py --checkpoint runs/demo --out docs/images

classes.png: a row for each class, ten samples without guidance, then the same ten noises with it.
inpainting.png: sixteen test digits; what is known of them; the rest drawn by replacement alone;
drawn with the network's gradient. The share of digits that are still read as what they were is
printed (the label of the nearest training picture).
"""

import argparse
from pathlib import Path

import torch

import k_diffusion as K
from k_diffusion.core.images import from_bytes, make_grid, save_image
from k_diffusion.data import DemoConfig, open_dataset


def nearest_label(samples, images, labels):
    """The label of each sample's nearest picture."""
    return labels[torch.cdist(samples.flatten(1), images.flatten(1)).argmin(1)]


def classes(denoiser, config):
    """Samples [10 classes x 10 seeds] without and with guidance, from the same noises."""
    label, seeds = torch.arange(10).repeat_interleave(10), [i % 10 for i in range(100)]
    how = config['sampling']
    guided = K.guidance.classifier_free(
        denoiser, {'class_cond': 10}, how['guidance'], how['guidance_interval']
    )
    sigmas = K.sampling.get_sigmas_karras(
        how['steps'], config['model']['sigma_min'], config['model']['sigma_max']
    )
    return label, [
        K.generation.generate(d, [1, 16, 16], sigmas, how['sampler'], seeds, {'class_cond': label})
        for d in (denoiser, guided)
    ]


def inpainted(denoiser, config, images, seed=0):
    """Draw the lower halves of digits [B, 1, 16, 16] without a class.

    Once by replacement, and once with the gradient.
    """
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    sigmas = K.sampling.get_sigmas_karras(
        30, config['model']['sigma_min'], config['model']['sigma_max']
    )
    seeds = range(seed, seed + len(images))
    guided = [
        K.guidance.inpainting(denoiser, images, mask, spread)
        for spread in (None, config['model']['sigma_data'])
    ]
    return mask, [
        K.generation.generate(d, [1, 16, 16], sigmas, 'heun', seeds, batch_size=len(images))
        for d in guided
    ]


def larger(picture, times=2):
    """A picture with each pixel as a square of pixels."""
    return picture.repeat_interleave(times, 1).repeat_interleave(times, 2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--checkpoint', default='runs/demo')
    parser.add_argument('--out', type=Path, default=Path('.'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(DemoConfig(num_classes=10), (16, 16), 1)
    images, labels = from_bytes(data.images), data.labels
    denoiser, config = K.load_model(args.checkpoint)

    label, (without, with_) = classes(denoiser, config)
    gap = torch.full((10, 1, 1, 16, 16), -1.0)
    rows = torch.cat(
        [without.unflatten(0, (10, 10)), gap, with_.unflatten(0, (10, 10))], 1
    ).flatten(0, 1)
    save_image(args.out / 'classes.png', larger(make_grid(rows, 21)))
    right = [
        nearest_label(x, images, labels).eq(label).float().mean().item() for x in (without, with_)
    ]
    print(f'shows its class: without guidance {right[0]:.2f}, with it {right[1]:.2f}')

    indices = torch.arange(200) * 37
    mask, results = inpainted(denoiser, config, images[indices])
    visible = torch.where(mask > 0.5, images[indices], torch.zeros(()))
    rows = torch.cat([x[:16] for x in (images[indices], visible, *results)])
    save_image(args.out / 'inpainting.png', larger(make_grid(rows, 16, padding=1, fill=0.0)))
    others = torch.ones(len(images), dtype=torch.bool)
    others[indices] = False  # or each digit would be its own nearest picture
    shares = [
        nearest_label(x, images[others], labels[others]).eq(labels[indices]).float().mean().item()
        for x in (images[indices], *results)
    ]
    print(
        f'read as what it was: the digit itself {shares[0]:.2f}, by replacement {shares[1]:.2f}, '
        f'with the gradient {shares[2]:.2f}'
    )


if __name__ == '__main__':
    main()
