#!/usr/bin/env python3
"""CLIP guidance from nothing: a dual encoder learns digits and their captions in seconds, then
steers a model that knows no classes.

    python examples/clip_digits.py [--steps 250] [-n 100] [--checkpoint runs/demo]
        [--out clip_digits.png]

The model is the exact denoiser of 2,000 of the shipped digits (smoothed by 0.1), or a trained one
with --checkpoint. The judge is the label of the nearest training picture, which no gradient can
fool; beside it, how far the samples lie from the data.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import k_diffusion as K
from k_diffusion.core.images import from_bytes, make_grid, save_image
from k_diffusion.data import DemoConfig, load_picture, open_dataset
from k_diffusion.models import TextEncoder

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
CAPTIONS = (
    'a photo of the digit {}',
    'the number {}',
    'a handwritten {}',
    '{}',
    'a picture of a {}',
    'the digit {} on black',
    'a {}',
)


def digits():
    """The shipped digits: pictures [10000, 1, 16, 16] in [-1, 1] and their labels."""
    data = open_dataset(DemoConfig(num_classes=10), (16, 16), 1)
    return from_bytes(data.images), data.labels


class DualEncoder(nn.Module):
    """Pictures and captions in one space of 64 dimensions: a small convolutional network and a
    small text transformer.
    """

    size = 16

    def __init__(self, width: int = 64):
        super().__init__()
        self.images = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * 4, width),
        )
        self.text = TextEncoder(width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def encode_images(self, x):
        return self.images(x)

    def encode_texts(self, texts):
        return self.text(self.text.tokenise(texts))[1]


def train_dual_encoder(images, labels, steps=250, batch=256, seed=0):
    """Contrastive training (InfoNCE with every caption of the right digit as a positive).

    Returns the encoder, frozen.
    """
    torch.manual_seed(seed)
    model = DualEncoder()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    captions = [
        [c.format(name) for c in CAPTIONS for name in (WORDS[d], str(d))] for d in range(10)
    ]
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = 2e-3 * min(1, (step + 1) / 20, (steps - step) / (steps / 2))
        indices = torch.randint(len(images), (batch,))
        shift = torch.randint(-1, 2, (2,)).tolist()
        pictures = images[indices].roll(shift, (2, 3)) + torch.rand(()) * 0.3 * torch.randn(
            batch, 1, 16, 16
        )
        texts = [
            captions[d][i]
            for d in range(10)
            for i in torch.randint(len(captions[0]), (3,)).tolist()
        ]
        a, b = (
            F.normalize(model.encode_images(pictures), dim=1),
            F.normalize(model.encode_texts(texts), dim=1),
        )
        target = (labels[indices][:, None] == torch.arange(30) // 3).float()
        logits = a @ b.T * model.log_scale.exp()
        to_text, to_image = (
            logits.log_softmax(axis) * target / target.sum(axis, keepdim=True).clamp(min=1)
            for axis in (1, 0)
        )
        loss = -to_text.sum(1).mean() - to_image.sum(0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def accuracy(model, images, labels):
    """The share of pictures whose nearest caption names their digit."""
    texts = model.encode_texts([f'a photo of the digit {word}' for word in WORDS])
    with torch.no_grad():
        return (
            (F.normalize(model.encode_images(images), dim=1) @ F.normalize(texts, dim=1).T)
            .argmax(1)
            .eq(labels)
            .float()
            .mean()
            .item()
        )


class Smoothed:
    """The exact denoiser of pictures [N, 1, H, W] smoothed by Gaussians of a width: what a model
    that knows them by heart would say.
    """

    def __init__(self, images, width=0.1):
        self.points, self.width = images.flatten(1), width

    def __call__(self, x, sigma, **cond):
        total = (self.width**2 + sigma**2)[:, None]
        flat = x.flatten(1)
        squares = (
            flat.square().sum(1, keepdim=True)
            - 2 * flat @ self.points.T
            + self.points.square().sum(1)
        )
        mean = (-squares / (2 * total)).softmax(1) @ self.points
        return (mean + self.width**2 / total * (flat - mean)).view_as(x)


def judge(samples, images, labels, prompted):
    """(share of samples whose nearest training picture shows the digit prompted, root mean
    square distance to it per pixel).
    """
    distance, nearest = torch.cdist(samples.flatten(1), images.flatten(1)).min(1)
    return labels[nearest].eq(prompted).float().mean().item(), distance.mean().item() / samples[
        0
    ].numel() ** 0.5


def prompts(n):
    """n prompts, each digit in turn, and the digits."""
    digits = torch.arange(n) % 10
    return [f'a photo of the digit {WORDS[d]}' for d in digits.tolist()], digits


def draw(
    denoise,
    encoder,
    n=100,
    scale=50.0,
    steps=25,
    clamp=None,
    sampler='euler_ancestral',
    sigmas=None,
    seed=0,
):
    """n samples, each guided to its own prompt (scale 0: to none)."""
    texts, _ = prompts(n)
    targets = encoder.encode_texts(texts)[:, None].detach()
    guided = K.guidance.clip_guidance(
        denoise, encoder.encode_images, targets, scale=scale, size=encoder.size, clamp=clamp
    )
    sigmas = K.sampling.get_sigmas_karras(steps, 0.05, 40.0) if sigmas is None else sigmas
    return K.generation.generate(
        guided,
        [1, 16, 16],
        sigmas,
        sampler,
        range(seed, seed + n),
        {'clip_targets': targets},
        batch_size=n,
    )


def pictures(folder):
    """The pictures of a folder of samples, [N, 1, 16, 16]."""
    return torch.stack(
        [from_bytes(load_picture(path, (16, 16), 1)) for path in sorted(folder.glob('*.png'))]
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--steps', type=int, default=250, help='of training the dual encoder')
    parser.add_argument('-n', type=int, default=100)
    parser.add_argument('--checkpoint', help='guide a trained model instead of the exact one')
    parser.add_argument(
        '--scales', type=float, nargs='+', default=[0.0, 2.0, 5.0, 10.0, 50.0, 500.0]
    )
    parser.add_argument('--out', default='clip_digits.png')
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = digits()
    encoder = train_dual_encoder(images[2000:9000], labels[2000:9000], args.steps)
    print(
        'zero-shot accuracy on 1,000 digits it has not seen: '
        f'{accuracy(encoder, images[9000:], labels[9000:]):.3f}'
    )
    denoise = K.load_model(args.checkpoint)[0] if args.checkpoint else Smoothed(images[:2000])
    reference = (images, labels) if args.checkpoint else (images[:2000], labels[:2000])
    for scale in args.scales:
        for clamp in (None, (-1.0, 1.0)) if scale else (None,):
            samples = draw(denoise, encoder, args.n, scale, clamp=clamp)
            right, off = judge(samples, *reference, prompts(args.n)[1])
            print(
                f'scale {scale:g}, clamp {clamp}: nearest picture shows the prompt {right:.2f}, '
                f'off the data {off:.3f}'
            )
            if scale == 5 and clamp is None:
                save_image(args.out, make_grid(samples, 10))


if __name__ == '__main__':
    main()
