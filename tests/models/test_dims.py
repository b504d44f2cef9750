"""Networks of 1 and 3 axes: against those of 2, torch's dense layers, and attention written out
token by token.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from k_diffusion.layers.layout import channels_last
from k_diffusion.layers.neighborhood import neighborhood_attention
from k_diffusion.layers.resampling import Downsample, Upsample
from k_diffusion.models.axial_rope import make_positions
from k_diffusion.models.cosine_attention import AxialRoPE, ShiftedWindowSelfAttentionBlock
from k_diffusion.models.image_transformer_v1 import ImageTransformerV1Config
from k_diffusion.models.image_transformer_v2 import ImageTransformerV2Config
from k_diffusion.models.image_v1 import ImageV1Config
from k_diffusion.models.image_v2 import ImageV2Config
from k_diffusion.models.sizing import sizes
from k_diffusion.models.windows import fold_patches, unfold_patches

COMMON = {
    'input_channels': 2,
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}
UNET = {
    **COMMON,
    'mapping_out': 16,
    'depths': [1, 1],
    'channels': [32, 64],
    'self_attn_depths': [False, True],
    'augment_wrapper': False,
}
HOURGLASS = {
    **COMMON,
    'depths': [2, 1],
    'widths': [32, 32],
    'mapping_width': 32,
    'mapping_depth': 1,
}
SIZES = {1: (32,), 2: (16, 24), 3: (8, 12, 16)}
SEQUENCES = [
    {'type': 'neighborhood', 'd_head': 16, 'kernel_size': 3},
    {'type': 'shifted-window', 'd_head': 16, 'window_size': 2},
    {'type': 'none'},
    {'type': 'global', 'd_head': 16},
]


def awake(network):
    """The network with its zero layers drawn."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize('dims', [1, 2])
def test_a_unet_of_one_axis_more_gives_the_same_where_nothing_changes_along_it(dims):
    # Its kernels are those of the smaller one in their middle; attention to copies of a token is
    # attention to the token.
    less = awake(ImageV1Config(**UNET, dims=dims, input_size=(16,) * dims).build()).double()
    more = ImageV1Config(**UNET, dims=dims + 1, input_size=(16,) * (dims + 1)).build().double()
    weights = less.state_dict()
    for name, value in more.state_dict().items():
        old = weights[name]
        if name.endswith('.kernel'):
            assert value.ndim == dims + 1
        elif value.shape != old.shape:
            value.zero_().select(2, value.shape[2] // 2).copy_(old)
        else:
            value.copy_(old)
    x = torch.randn(2, 2, *(16,) * dims, dtype=torch.float64)
    expected = less(x, torch.tensor([0.5, 3.0], dtype=torch.float64))
    actual = more(
        x[:, :, None].expand(-1, -1, 8, *x.shape[2:]), torch.tensor([0.5, 3.0], dtype=torch.float64)
    )
    assert expected.std() > 0.01
    torch.testing.assert_close(actual, expected[:, :, None].expand_as(actual), rtol=0, atol=1e-10)


@pytest.mark.parametrize('dims', [1, 2, 3])
@pytest.mark.parametrize('kernel', ['linear', 'lanczos3'])
@pytest.mark.parametrize(
    'layout', [torch.Tensor.contiguous, lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1)]
)
def test_resampling_is_the_dense_convolution(dims, kernel, layout):
    x = layout(torch.randn(2, 3, *(12, 14, 16)[:dims], dtype=torch.float64))
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[dims]
    for kind in (Downsample, Upsample):
        module = kind(dims, kernel).double()
        assert module.kernel.shape == (len(module.kernel),) * dims
        weight = module.kernel.expand(3, 1, *module.kernel.shape)
        reach = len(module.kernel) // 2 - 1
        if kind is Downsample:
            dense = conv(pad(x, reach), weight, stride=2, groups=3)
        else:
            dense = transposed(
                pad(x, (reach + 1) // 2), weight, stride=2, padding=2 * reach + 1, groups=3
            )
        torch.testing.assert_close(module(x), dense, rtol=0, atol=2e-7)  # the kernel is float32


def pad(x, amount):
    """Reflected along every spatial axis, one after another."""
    for axis in range(2, x.ndim):
        index = torch.arange(-amount, x.shape[axis] + amount).abs()
        index = torch.where(index >= x.shape[axis], 2 * x.shape[axis] - 2 - index, index)
        x = x.index_select(axis, index)
    return x


def test_patches_are_those_of_pixel_unshuffle_and_come_back():
    picture = torch.randn(2, 3, 8, 12)
    assert torch.equal(fold_patches(picture, 4), F.pixel_unshuffle(picture, 4))
    assert fold_patches(torch.arange(6.0).view(1, 1, 6), 2).tolist() == [
        [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    ]
    for dims in (1, 2, 3):
        x = torch.randn(2, 3, *SIZES[dims])
        folded = fold_patches(x, 4)
        assert folded.shape == (2, 3 * 4**dims, *(side // 4 for side in SIZES[dims]))
        assert torch.equal(unfold_patches(folded, 4), x)


@pytest.mark.parametrize('sides', [(150,), (10, 9, 11), (5,), (5, 6, 7)])
def test_neighbourhoods_of_one_and_three_axes_token_by_token(sides):
    size, heads, d = 5, 2, 4
    q, k, v = torch.randn(3, 1, *sides, heads, d, dtype=torch.float64)
    actual = neighborhood_attention(q, k, v, size)
    for token in itertools.islice(itertools.product(*map(range, sides)), 0, None, 37):
        box = tuple(
            slice(first, first + size)
            for first in (
                min(max(place - size // 2, 0), side - size) for place, side in zip(token, sides)
            )
        )
        keys, values = (x[(0, *box)].reshape(-1, heads, d) for x in (k, v))
        for head in range(heads):
            share = (keys[:, head] @ q[(0, *token, head)] / math.sqrt(d)).softmax(0)
            torch.testing.assert_close(actual[(0, *token, head)], share @ values[:, head])


@pytest.mark.parametrize('sides', [(8,), (4, 4, 8)])
def test_shifted_windows_of_one_and_three_axes(sides):
    # Who attends to whom: by its gradient, a token hears those of its window that came from the
    # same side of the grid.
    block = awake(
        ShiftedWindowSelfAttentionBlock(16, 16, 8, window_size=4, window_shift=2, dims=len(sides))
    ).double()
    x = torch.randn(1, *sides, 16, dtype=torch.float64, requires_grad=True)
    pos = make_positions(sides).double()
    token = (0,) * len(sides)
    y = block(x, pos, torch.randn(1, 8, dtype=torch.float64))
    heard = torch.autograd.grad(y[(0, *token)].sum(), x)[0][0].abs().sum(-1) > 0
    expected = torch.zeros(sides, dtype=torch.bool)
    expected[tuple(slice(0, 2) for _ in sides)] = (
        True  # moved by 2, it shares its window with what wrapped round, apart
    )
    assert torch.equal(heard, expected)


def test_places_and_angles():
    places = make_positions((2, 4, 8))
    assert places.shape == (2, 4, 8, 3)
    torch.testing.assert_close(places[1, 3, 7], torch.tensor([0.125, 0.375, 0.875]))
    angles = AxialRoPE(16, 2, dims=3)(
        places[1, 3, 7]
    )  # 8 angles, of which 3 axes share 6: 2 each, over 2 heads
    steps = torch.linspace(math.log(math.pi), math.log(10 * math.pi), 5)[:4].exp()
    frequencies = torch.stack([steps[0::2], steps[1::2]])  # [heads, 2]
    torch.testing.assert_close(
        angles, torch.cat([frequencies * place for place in (0.125, 0.375, 0.875)], -1)
    )


@pytest.mark.parametrize('dims', [1, 3])
@pytest.mark.parametrize('attention', SEQUENCES)
def test_the_hourglass_denoises_sequences_and_volumes(dims, attention):
    section = ImageTransformerV2Config(
        **HOURGLASS,
        dims=dims,
        input_size=SIZES[dims],
        patch_size=(2,) * dims,
        self_attns=[attention, {'type': 'global', 'd_head': 16}],
    )
    network = awake(section.build())
    x = torch.randn(3, 2, *SIZES[dims])
    y = network(x, torch.tensor([0.1, 1.0, 10.0]))
    assert y.shape == x.shape and y.isfinite().all() and y.std() > 0
    torch.testing.assert_close(network(x[1:2], torch.tensor([1.0])), y[1:2], rtol=1e-4, atol=1e-5)
    assert sizes(section).parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    'kind, keys, words',
    [
        (
            ImageV1Config,
            {**UNET, 'dims': 4, 'input_size': (8,) * 4},
            'dims must be 1 or 2 or 3; got 4',
        ),
        (
            ImageV1Config,
            {**UNET, 'dims': 1, 'input_size': (32, 32)},
            'input_size must hold 1 side, one for each of dims',
        ),
        (ImageV1Config, {**UNET, 'input_size': (32,)}, 'input_size must hold 2 sides'),
        (
            ImageV1Config,
            {**UNET, 'dims': 3, 'input_size': (8, 8, 5)},
            'input_size must hold multiples of .* got 8x8x5',
        ),
        (
            ImageV2Config,
            {**UNET, 'dims': 1, 'input_size': (32,)},
            'dims must be 2; got 1; image_v1, image_v3 and image_transformer_v2 take',
        ),
        (
            ImageTransformerV1Config,
            {
                **COMMON,
                'dims': 3,
                'input_size': (8, 8, 8),
                'patch_size': (2, 2, 2),
                'depth': 1,
                'width': 64,
            },
            'dims must',
        ),
        (
            ImageTransformerV2Config,
            {**HOURGLASS, 'dims': 3, 'input_size': (8, 8, 8), 'patch_size': (2, 2)},
            'patch_size must hold 3 sides',
        ),
        (
            ImageTransformerV2Config,
            {
                **HOURGLASS,
                'dims': 3,
                'input_size': (8, 8, 8),
                'patch_size': (2, 2, 2),
                'self_attns': [{'type': 'none'}, {'type': 'global', 'd_head': 8}],
            },
            'd_head must be at least 12',
        ),
        (
            ImageTransformerV2Config,
            {
                **HOURGLASS,
                'dims': 1,
                'input_size': (64,),
                'patch_size': (2,),
                'self_attns': [
                    {'type': 'neighborhood', 'd_head': 16, 'backend': 'flex'},
                    {'type': 'none'},
                ],
            },
            "backend must be 'auto' or 'tiles' for grids of 1",
        ),
    ],
)
def test_what_cannot_be_built_is_said(kind, keys, words):
    if kind is ImageV2Config:
        keys = {key: value for key, value in keys.items() if key != 'augment_wrapper'}
    with pytest.raises(ValueError, match=words):
        kind(**keys)


def test_an_input_of_other_axes_is_refused():
    with pytest.raises(ValueError, match=r'input must be \[B, 2, L\]'):
        ImageV1Config(**UNET, dims=1, input_size=(32,)).build()(
            torch.zeros(1, 2, 32, 32), torch.ones(1)
        )
    section = {**HOURGLASS, 'self_attns': [SEQUENCES[2], SEQUENCES[3]]}
    network = ImageTransformerV2Config(**section, dims=1, input_size=(32,), patch_size=(2,)).build()
    with pytest.raises(ValueError, match='x must have 1 spatial axes; got 2'):
        network(torch.zeros(1, 2, 32, 32), torch.ones(1))


def test_sequences_and_volumes_keep_their_layout():
    assert (
        channels_last(torch.zeros(2, 3, 4)).is_contiguous()
        and channels_last(torch.zeros(2, 3, 4, 4, 4)).is_contiguous()
    )
