import io
import json
import math
import random
import warnings
from pathlib import Path

import pytest
import torch

import k_diffusion as K

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.json'))
MODEL = {
    'type': 'image_v1',
    'input_channels': 3,
    'input_size': [32, 32],
    'mapping_out': 64,
    'depths': [1, 1],
    'channels': [32, 64],
    'self_attn_depths': [False, True],
    'sigma_min': 0.01,
    'sigma_max': 80,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}


def config(**changes):
    return {'model': {**MODEL, **changes}}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load_and_build(path):
    filled = K.config.load_config(path, strict=True)
    assert K.config.load_config(filled, strict=True) == filled
    with torch.device('meta'):
        assert K.utils.n_params(K.config.make_model(filled)) > 50_000
    assert K.config.make_sample_density(filled['model'])([4]).shape == (4,)


def test_the_names_of_the_original_are_here():
    original = {
        'config_mnist',
        'config_cifar10',
        'config_32x32_small',
        'config_32x32_small_butterflies',
        'config_mnist_transformer',
        'config_cifar10_transformer',
        'config_oxford_flowers',
        'config_oxford_flowers_shifted_window',
    }
    assert original <= {path.stem for path in CONFIGS}


def test_defaults_are_the_originals():
    filled = K.config.load_config(config())
    model = filled['model']
    assert (
        model['patch_size'],
        model['augment_wrapper'],
        model['skip_stages'],
        model['has_variance'],
    ) == (1, True, 0, False)
    assert (model['sigma_data'], model['dropout_rate'], model['augment_prob']) == (1.0, 0.0, 0.0)
    assert (model['loss_config'], model['loss_weighting'], model['loss_scales']) == (
        'karras',
        'karras',
        1,
    )
    assert filled['optimizer'] == {
        'type': 'adamw',
        'lr': 1e-4,
        'betas': [0.95, 0.999],
        'eps': 1e-6,
        'weight_decay': 1e-3,
    }
    assert filled['lr_sched'] == {'type': 'constant', 'warmup': 0.0}
    assert filled['ema_sched']['power'] == 0.6667 and filled['ema_sched']['max_value'] == 0.9999
    assert (
        filled['dataset']['type'],
        filled['dataset']['num_classes'],
        filled['dataset']['cond_dropout_rate'],
    ) == ('imagefolder', 0, 0.1)


def test_a_path_an_open_file_and_a_dict_are_the_same(tmp_path):
    path = tmp_path / 'c.json'
    path.write_text(json.dumps(config()))
    from_path = K.config.load_config(path)
    assert from_path == K.config.load_config(str(path)) == K.config.load_config(config())
    assert from_path == K.config.load_config(io.StringIO(path.read_text()))
    with open(path) as file:
        assert K.config.load_config(file) == from_path


def test_unknown_keys_stay_with_one_warning():
    mine = {**config(my_key=[1]), 'my_section': {'a': 1}}
    with pytest.warns(UserWarning, match='my_section, model.my_key') as caught:
        filled = K.config.load_config(mine)
    assert (
        len(caught) == 1 and filled['my_section'] == {'a': 1} and filled['model']['my_key'] == [1]
    )
    with pytest.raises(ValueError, match='my_key is not a key'):
        K.config.load_config(mine, strict=True)


@pytest.mark.parametrize(
    'text, complaint',
    [
        ('{"model": {"type": "image_v1", "type": "image_v1"}}', 'given twice'),
        ('{"model": {"sigma_max": NaN}}', 'NaN'),
        ('[]', 'JSON object'),
        ('{}', 'model is missing'),
        ('{"model": 3}', 'must be an object'),
        ('{"model": {"tpye": "image_v1"}}', "you wrote 'tpye'"),
        ('{"model": {"type": "image_v9"}}', "did you mean 'image_v"),
        ('{"modle": {}}', 'did you mean model'),
        ('nonsense', 'not valid JSON'),
    ],
)
def test_what_is_no_config_is_told(tmp_path, text, complaint):
    path = tmp_path / 'c.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        K.config.load_config(path)


def test_every_key_misspelt_by_a_letter_is_refused():
    filled = K.config.load_config(Path(__file__).parents[2] / 'configs' / 'config_demo.json')
    source = random.Random(0)
    for section in ('model', 'dataset', 'optimizer', 'lr_sched', 'ema_sched', 'training'):
        for key in filled[section]:
            i = source.randrange(len(key))
            changed = {
                ('x' if key[:i] + key[i + 1 :] == '' else '') + key[:i] + key[i + 1 :]: filled[
                    section
                ][key]
            }
            broken = {
                **filled,
                section: {**{k: v for k, v in filled[section].items() if k != key}, **changed},
            }
            with pytest.raises(ValueError):
                K.config.load_config(broken, strict=True)


def test_mutated_configs_never_end_in_anything_but_a_sentence():
    base = json.loads((Path(__file__).parents[2] / 'configs' / 'config_demo.json').read_text())
    source, refused = random.Random(1), 0
    odd = [
        None,
        True,
        -1,
        0,
        1e400,
        float('nan'),
        10**30,
        'x',
        '',
        [],
        {},
        [[]],
        {'type': 'x'},
        [1, 2, 3],
        0.5,
    ]
    for _ in range(300):
        broken = json.loads(json.dumps(base))
        section = broken[source.choice(list(broken))]
        section[source.choice(list(section))] = source.choice(odd)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                K.config.load_config(broken)
        except ValueError as error:
            refused += 1
            assert str(error).startswith('the config cannot be used: ')
    assert refused > 200


def test_make_sample_density_takes_the_model_section(golden):
    density = K.config.make_sample_density(
        {**MODEL, 'sigma_sample_density': {'type': 'lognormal', 'loc': -1.2, 'scale': 1.2}}
    )
    sigma = density([20000], device='cpu')
    assert abs(sigma.log().mean() + 1.2) < 0.05 and abs(sigma.log().std() - 1.2) < 0.05
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(density.quantile(u)[1], torch.tensor(-1.2, dtype=torch.float64).exp())


@pytest.mark.parametrize(
    ('section', 'median'),
    [
        ({'sigma_sample_density': {'type': 'lognormal', 'mean': -1.2, 'std': 1.2}}, math.exp(-1.2)),
        ({'sigma_sample_density': {'type': 'loglogistic'}, 'sigma_data': 0.5}, 0.5),
        (
            {'sigma_sample_density': {'type': 'loguniform', 'min_value': 0.01}, 'sigma_max': 100.0},
            1.0,
        ),
    ],
)
def test_make_sample_density_takes_a_part_of_the_model_section(section, median):
    density = K.config.make_sample_density(section)
    assert density.quantile(torch.tensor([0.5], dtype=torch.float64)).item() == pytest.approx(
        median, rel=1e-6
    )


def test_make_sample_density_names_what_a_part_lacks():
    with pytest.raises(ValueError, match=r'model\.sigma_max must be given'):
        K.config.make_sample_density(
            {'sigma_sample_density': {'type': 'loguniform', 'min_value': 0.01}}
        )
    with pytest.raises(
        ValueError, match=r'model\.sigma_sample_density must be an object .*; got None'
    ):
        K.config.make_sample_density({'sigma_data': 1.0})


def test_make_denoiser_wrapper_takes_a_part_of_a_config():
    denoiser = K.config.make_denoiser_wrapper({'model': {'sigma_data': 0.5, 'loss_scales': 1}})(
        torch.nn.Identity()
    )
    assert type(denoiser) is K.Denoiser and denoiser.sigma_data == 0.5
    simple = K.config.make_denoiser_wrapper(
        {'model': {'sigma_data': 0.5, 'loss_config': 'simple'}}
    )(torch.nn.Identity())
    assert type(simple) is K.layers.SimpleLossDenoiser
    varied = K.config.make_denoiser_wrapper({'model': {'type': 'image_v2', 'sigma_data': 0.5}})(
        torch.nn.Identity()
    )
    assert type(varied) is K.layers.DenoiserWithVariance  # image_v2 learns a variance by default
    with pytest.raises(ValueError, match=r'model\.sigma_data must be above 0; got -1'):
        K.config.make_denoiser_wrapper({'model': {'sigma_data': -1}})


def test_denoisers_by_config():
    assert type(K.config.make_denoiser_wrapper(config())(torch.nn.Identity())) is K.Denoiser
    assert (
        type(K.config.make_denoiser_wrapper(config(loss_config='simple'))(torch.nn.Identity()))
        is K.layers.SimpleLossDenoiser
    )
    assert (
        type(K.config.make_denoiser_wrapper(config(has_variance=True))(torch.nn.Identity()))
        is K.layers.DenoiserWithVariance
    )
    with pytest.raises(ValueError, match='has_variance'):
        K.config.make_denoiser_wrapper(config(loss_config='simple', has_variance=True))
    with pytest.raises(ValueError, match='loss_weighting'):
        K.config.load_config(config(loss_weighting='snrr'))


def test_round_to_power_of_two():
    assert [
        K.config.round_to_power_of_two(8 / 3 * width, 0.05)
        for width in (64, 128, 256, 384, 512, 768, 1024)
    ] == [176, 352, 704, 1024, 1408, 2048, 2816]


def test_load_model_refuses_what_does_not_fit(tmp_path):
    model = K.config.make_model(config())
    K.core.weights.save_checkpoint(
        tmp_path / 'seed.pth', {'model': model.state_dict(), 'model_ema': model.state_dict()}
    )
    with pytest.raises(ValueError, match='has no config'):
        K.load_model(tmp_path / 'seed.pth')
    denoiser, filled = K.load_model(tmp_path / 'seed.pth', config=config())
    assert (
        denoiser(torch.randn(1, 3, 32, 32), torch.ones(1)).shape == (1, 3, 32, 32)
        and filled['model']['sigma_max'] == 80
    )
    with pytest.raises(ValueError, match='of shape'):
        K.load_model(tmp_path / 'seed.pth', config=config(channels=[32, 32]))
    K.core.weights.save_checkpoint(tmp_path / 'other.pth', {'state': 1})
    with pytest.raises(ValueError, match="no entry 'model_ema'"):
        K.load_model(tmp_path / 'other.pth')


def test_a_file_larger_than_configs_are_is_not_read(tmp_path):
    path = tmp_path / 'large.json'
    with open(path, 'wb') as file:
        file.truncate(2**24 + 1)
    with pytest.raises(
        ValueError,
        match=r'large\.json must have at most 16,777,216 bytes to be a config; got 16,777,217',
    ):
        K.config.load_config(path)
