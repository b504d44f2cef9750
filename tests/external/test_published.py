"""Published weights: told by their names, read without running a line of what they carry."""

import collections
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from k_diffusion.core.pickles import Record, read_pickle
from k_diffusion.core.weights import save_safetensors
from k_diffusion.external import load_published


class Bomb:
    def __reduce__(self):
        return exec, ('import builtins; builtins.bomb_went_off = True',)


@pytest.fixture
def went_off():
    import builtins

    yield lambda: hasattr(builtins, 'bomb_went_off')
    if hasattr(builtins, 'bomb_went_off'):
        del builtins.bomb_went_off


def test_the_bomb_is_one(went_off):
    pickle.loads(pickle.dumps(Bomb()))
    assert went_off()


# EDM, whose pickles carry the source text of their classes

SOURCE = 'import builtins; builtins.bomb_went_off = True'


@pytest.fixture
def edm(monkeypatch):
    """A network pickled as EDM's persistence does it: class name, source text and state, to be
    rebuilt by a function of theirs.
    """
    package, module = types.ModuleType('torch_utils'), types.ModuleType('torch_utils.persistence')

    def _reconstruct_persistent_obj(meta):
        exec(meta['module_src'])

    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    _reconstruct_persistent_obj.__module__ = 'torch_utils.persistence'
    _reconstruct_persistent_obj.__qualname__ = '_reconstruct_persistent_obj'
    monkeypatch.setitem(sys.modules, 'torch_utils', package)
    monkeypatch.setitem(sys.modules, 'torch_utils.persistence', module)

    class Persistent(nn.Module):
        def __reduce__(self):
            meta = {
                'type': 'class',
                'version': 6,
                'module_src': SOURCE,
                'class_name': type(self).__name__,
                'state': dict(self.__dict__),
            }
            return _reconstruct_persistent_obj, (meta,)

    class Block(Persistent):
        def __init__(self, width):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(width, 2))
            self.register_buffer('freqs', torch.randn(3))

    class EDMPrecond(Persistent):
        def __init__(self, img_resolution, width=4, **unet):
            super().__init__()
            self._init_kwargs = {'img_resolution': img_resolution, 'width': width, **unet}
            self.model = Block(width)
            self.layers = nn.ModuleList([nn.Conv2d(2, 3, 1), Block(1)])

    return EDMPrecond


def test_edm_pickles_are_read_without_their_code(edm, tmp_path, went_off):
    network = edm(64, width=5, dropout=0.13)
    with open(tmp_path / 'edm.pkl', 'wb') as file:
        pickle.dump({'ema': network, 'loss_fn': Bomb(), 'dataset_kwargs': {'path': 'x'}}, file)
    published = load_published(tmp_path / 'edm.pkl')
    assert not went_off()
    assert published.family == 'EDM' and published.network == 'EDMPrecond of training.networks'
    assert published.arguments == {'img_resolution': 64, 'width': 5, 'dropout': 0.13}
    expected = network.state_dict()
    assert published.weights.keys() == expected.keys() and all(
        torch.equal(published.weights[k], v) for k, v in expected.items()
    )
    rebuilt = published.into(edm)
    assert torch.equal(rebuilt.model.weight, network.model.weight) and not rebuilt.training
    with pytest.raises(ValueError, match='which need EDMPrecond of training.networks'):
        published.into(nn.Linear(2, 2))


# State dicts


def shapes(**sizes):
    return {key: torch.randn(*size) for key, size in sizes.items()}


GUIDED = {
    'time_embed.0.weight': torch.randn(16, 192),
    'input_blocks.0.0.weight': torch.randn(192, 3, 3, 3),
    'label_emb.weight': torch.randn(1000, 16),
    'out.2.weight': torch.randn(6, 192, 3, 3),
}


def test_guided_diffusion(tmp_path):
    torch.save(GUIDED, tmp_path / '64x64_diffusion.pt')
    published = load_published(tmp_path / '64x64_diffusion.pt')
    assert published.family == 'guided-diffusion'
    facts = {
        key: published.arguments[key]
        for key in ('image_size', 'class_cond', 'learn_sigma', 'num_channels', 'noise_schedule')
    }
    assert facts == {
        'image_size': 64,
        'class_cond': True,
        'learn_sigma': True,
        'num_channels': 192,
        'noise_schedule': 'cosine',
    }
    plain = {key: value for key, value in GUIDED.items() if key != 'label_emb.weight'} | {
        'out.2.weight': torch.randn(3, 192, 3, 3)
    }
    torch.save(plain, tmp_path / 'mine.pt')
    assert load_published(tmp_path / 'mine.pt').arguments == {
        'class_cond': False,
        'learn_sigma': False,
        'num_channels': 192,
    }
    torch.save({**plain, 'out.2.weight': torch.randn(3, 192)}, tmp_path / 'classifier.pt')
    assert 'classifier' in load_published(tmp_path / 'classifier.pt').network


def test_v_diffusion(tmp_path):
    torch.save(
        {'timestep_embed.weight': torch.randn(8, 1), 'net.0.weight': torch.randn(2, 2)},
        tmp_path / 'cc12m_1_cfg.pth',
        _use_new_zipfile_serialization=False,
    )
    published = load_published(tmp_path / 'cc12m_1_cfg.pth')
    assert (
        published.family == 'v-diffusion'
        and 'cc12m_1_cfg' in published.network
        and len(published.weights) == 2
    )


@pytest.mark.parametrize(
    'width, family',
    [(768, 'Stable Diffusion 1'), (1024, 'Stable Diffusion 2'), (7, 'CompVis latent diffusion')],
)
def test_compvis(tmp_path, went_off, width, family):
    """A Lightning checkpoint: a state dict among objects of classes that are not here, some of
    them hostile.
    """
    unet = {
        'model.diffusion_model.input_blocks.0.0.weight': torch.randn(4, 4),
        'model.diffusion_model.middle.attn2.to_k.weight': torch.randn(3, width),
    }
    averaged = {
        f'model_ema.{key.removeprefix("model.").replace(".", "")}': value + 1
        for key, value in unet.items()
    }
    rest = {
        'first_stage_model.decoder.weight': torch.randn(2),
        'cond_stage_model.weight': torch.randn(2),
        'alphas_cumprod': torch.rand(5),
    }
    foreign = types.ModuleType('pytorch_lightning')
    foreign.Callback = type(
        'Callback',
        (),
        {'__module__': 'pytorch_lightning', '__init__': lambda self: setattr(self, 'best', 1)},
    )
    sys.modules['pytorch_lightning'] = foreign
    try:
        torch.save(
            {
                'state_dict': {**unet, **averaged, **rest},
                'callbacks': {'a': foreign.Callback(), 'b': Bomb()},
                'hyper': collections.defaultdict(list),
            },
            tmp_path / 'model.ckpt',
        )
    finally:
        del sys.modules['pytorch_lightning']
    published, raw = (
        load_published(tmp_path / 'model.ckpt'),
        load_published(tmp_path / 'model.ckpt', ema=False),
    )
    assert (
        not went_off()
        and published.family == family
        and set(published.parts) == {'first_stage_model', 'cond_stage_model', 'others'}
    )
    for key, value in unet.items():
        name = key.removeprefix('model.diffusion_model.')
        assert torch.equal(raw.weights[name], value) and torch.equal(
            published.weights[name], value + 1
        )
    save_safetensors(tmp_path / 'model.safetensors', {**unet, **rest})
    assert load_published(tmp_path / 'model.safetensors').family == family


def test_what_is_not_read_becomes_a_record(tmp_path, went_off):
    (tmp_path / 'a.pkl').write_bytes(
        pickle.dumps([Bomb(), {'x': torch.ones(3)}, {1, 2}, 1 + 2j, range(3)])
    )
    bomb, tensors, numbers, z, other = read_pickle(tmp_path / 'a.pkl')
    assert (
        isinstance(bomb, Record)
        and (bomb.module, bomb.name) == ('builtins', 'exec')
        and not went_off()
    )
    assert (
        torch.equal(tensors['x'], torch.ones(3))
        and numbers == {1, 2}
        and z == 1 + 2j
        and isinstance(other, Record)
    )


@pytest.mark.parametrize(
    'content, message',
    [
        (b'not a pickle', 'cannot be read safely'),
        (b'', 'cannot be read safely'),
        (pickle.dumps({'weights': 3}), 'must hold a state dict .*; got dict'),
        (pickle.dumps({'a': torch.ones(1), 'b': torch.ones(2)}), 'tensors named a, b'),
        (pickle.dumps({'model_ema': {}, 'config': {}}), 'load it with K.load_model'),
        (pickle.dumps(Bomb()), 'must hold a state dict'),
    ],
    ids=['no pickle', 'empty', 'numbers', 'strangers', 'ours', 'a bomb'],
)
def test_refusals(tmp_path, content, message, went_off):
    (tmp_path / 'x.pkl').write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_published(tmp_path / 'x.pkl')
    assert not went_off()
    with pytest.raises(ValueError, match='from_diffusers'):
        load_published(tmp_path)
    with pytest.raises(FileNotFoundError, match='no file at'):
        load_published(tmp_path / 'none.pt')
