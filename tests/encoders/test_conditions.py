"""Conditions: what they give for a batch and for what is asked, and how often they are left out."""

import warnings

import pytest
import torch
from clip_folder import make_clip

from k_diffusion.core.draws import Draws
from k_diffusion.core.weights import save_safetensors
from k_diffusion.data import Images
from k_diffusion.encoders import CONDITIONS, TextFeatures, draw_condition_masks, prepare_conditions


@pytest.fixture
def data():
    return Images(
        torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8),
        torch.tensor([0, 1, 2, 0, 1, 2]),
        ['cat', 'dog', 'bird'],
        'six',
    )


def batch(indices=(0, 1, 3)):
    return {
        'image': torch.randn(len(indices), 1, 8, 8),
        'item': torch.arange(len(indices)) + 40,
        'index': torch.tensor(indices),
    }


def test_texts_of_classes(data):
    conditions = CONDITIONS['text'](template='a photo of a {}').make(1, data).prepare(batch(), 0)
    assert conditions['cross_cond'].shape == (3, 16, 64) and conditions['cross_cond_padding'].sum(
        1
    ).tolist() == [11, 11, 11]
    assert torch.equal(
        conditions['cross_cond'][0], conditions['cross_cond'][2]
    ) and not torch.allclose(conditions['cross_cond'][0], conditions['cross_cond'][1])
    from_text = CONDITIONS['text']().make(1).from_text('a photo of a dog', None)
    torch.testing.assert_close(from_text['cross_cond'][0], conditions['cross_cond'][1])
    mapped = CONDITIONS['text'](into='mapping').make(1, data)
    assert mapped.key == 'mapping_cond' and mapped.prepare(batch(), Draws(0))[
        'mapping_cond'
    ].shape == (
        3,
        mapped.width,
    )


def test_texts_of_a_file(data, tmp_path):
    (tmp_path / 'captions.txt').write_text('red\ngreen\nblue sky\nred\nyellow\nblack\n')
    texts = (
        CONDITIONS['text'](location=str(tmp_path / 'captions.txt'))
        .make(1, data)
        .prepare(batch((0, 3, 2)), Draws(0))['cross_cond']
    )
    assert torch.equal(texts[0], texts[1]) and not torch.allclose(texts[0], texts[2])
    (tmp_path / 'captions.txt').write_text('red\n')
    with pytest.raises(
        ValueError, match=r'has 1 lines for the 6 images of six; there must be one for each'
    ):
        CONDITIONS['text'](location=str(tmp_path / 'captions.txt')).make(1, data)


def test_captions_in_another_order_than_the_numbers_of_the_pictures_are_told(data, tmp_path):
    lines = tmp_path / 'captions.txt'
    lines.write_text('a\nb\u2028b\nc\nd\ne\nf\n')
    save_safetensors(tmp_path / 'e.safetensors', {'embeddings': torch.zeros(6, 4)})
    uses = [
        lambda: CONDITIONS['text'](location=str(lines)).make(1, data),
        lambda: CONDITIONS['embeddings'](location=str(tmp_path / 'e.safetensors')).make(1, data),
    ]
    data.names = ['1.png', '10.png', '2.png', '3.png', '4.png', '5\x1b.png']  # as text sorts them
    for use in uses:
        with pytest.warns(
            UserWarning, match=r'in the textual order of their names \(1.png, 10.png, 2.png, ...\)'
        ):
            use()
    for names in (
        None,
        [f'{i:02}.png' for i in range(6)],
        ['a/1.png', 'a/2.png', 'a-b/1.png', 'b/1.png', 'b/1a.png', 'b/b.png'],
    ):
        data.names = names
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            for use in uses:
                use()
    lines.write_bytes('\ufeffa\r\nb\r\nc\r\na\r\nb\r\nc\r\n'.encode())  # as Windows writes text
    texts = (
        CONDITIONS['text'](location=str(lines))
        .make(1, data)
        .prepare(batch((0, 3, 1)), Draws(0))['cross_cond']
    )
    assert torch.equal(texts[0], texts[1]) and not torch.allclose(texts[0], texts[2])
    lines.write_bytes(b'\xff\n' * 6)
    with pytest.raises(
        ValueError, match=r'captions\.txt must be text in UTF-8, and its byte 0 is not'
    ):
        uses[0]()


def test_a_text_encoder_of_transformers(tmp_path):
    pytest.importorskip('transformers', reason='transformers is in the extra "clip"')
    encoder = TextFeatures(str(make_clip(tmp_path, ['red', 'apple'], width=16, layers=1)), 8)
    features, padding = encoder(['red apple', 'red'])
    assert (
        features.shape == (2, 8, 16)
        and padding.sum(1).tolist() == [4, 5]
        and (features[padding == 1] == 0).all()
    )
    assert not torch.allclose(features[0, 3], features[1, 2])


def test_embeddings(data, tmp_path):
    table = torch.randn(6, 5)
    save_safetensors(tmp_path / 'e.safetensors', {'embeddings': table})
    condition = CONDITIONS['embeddings'](location=str(tmp_path / 'e.safetensors')).make(1, data)
    assert condition.width == 5 and torch.equal(
        condition.prepare(batch((4, 0)), Draws(0))['mapping_cond'], table[[4, 0]]
    )
    assert torch.equal(condition.from_text('2', None)['mapping_cond'], table[2:3])
    for value, message in (('9', 'from 0 to 5; got 9'), ('x', "a whole number; got 'x'")):
        with pytest.raises(ValueError, match=message):
            condition.from_text(value, None)
    with pytest.raises(ValueError, match=r'a tensor "embeddings" \[N, T, D\] for cross; got'):
        CONDITIONS['embeddings'](location=str(tmp_path / 'e.safetensors'), into='cross').make(
            1, data
        )


def test_pictures():
    pictures = batch()
    coarse = (
        CONDITIONS['super-resolution'](factor=4).make(1).prepare(pictures, Draws(0))['unet_cond']
    )
    assert coarse.shape == pictures['image'].shape
    torch.testing.assert_close(
        coarse.mean((1, 2, 3)), pictures['image'].mean((1, 2, 3)), atol=1e-5, rtol=1e-5
    )
    assert coarse.std() < pictures['image'].std() / 2
    channels = CONDITIONS['inpainting']().make(1).prepare(pictures, Draws(3))['unet_cond']
    mask, visible = channels[:, :1], channels[:, 1:]
    assert set(mask.unique().tolist()) == {0.0, 1.0} and torch.equal(
        visible, pictures['image'] * mask
    )
    alone = {key: value[1:2] for key, value in pictures.items()}
    assert torch.equal(
        CONDITIONS['inpainting']().make(1).prepare(alone, Draws(3))['unet_cond'], channels[1:2]
    )
    half = (
        CONDITIONS['inpainting']()
        .make(1)
        .from_text('p.png', lambda path: torch.ones(1, 8, 8))['unet_cond']
    )
    assert half[0, 0].sum() == 32 and half[0, 0, :4].all()
    box = (
        CONDITIONS['inpainting']()
        .make(1)
        .from_text('p.png,0,0.5,0.5,1', lambda path: torch.ones(1, 8, 8))['unet_cond']
    )
    assert box[0, 0].sum() == 48 and not box[0, 0, :4, 4:].any()


def test_conditions_are_left_out_as_often_as_the_config_says(data):
    config = CONDITIONS['text'](dropout=0.25)
    many = {
        'image': torch.zeros(4000, 1, 8, 8),
        'item': torch.arange(4000),
        'index': torch.arange(4000) % 6,
    }
    conditions, draws = [(config, config.make(1, data))], Draws(5)

    def tell(batch):
        masks = draw_condition_masks(conditions, batch['item'], draws)
        return prepare_conditions(conditions, batch, draws, masks)['cross_cond']

    texts = tell(many)
    empty = (texts == 0).flatten(1).all(1)
    assert abs(empty.float().mean() - 0.25) < 0.03
    some = {key: value[100:110] for key, value in many.items()}
    assert torch.equal(tell(some), texts[100:110])
