"""Extractors with tiny networks in place of the published ones, the classifier, and features
that are kept.
"""

from __future__ import annotations

import hashlib
import math
import warnings

import pytest
import torch
from torch import nn

from k_diffusion import evaluation as E
from k_diffusion.core.images import from_bytes
from k_diffusion.data import Images
from k_diffusion.data.demo import DemoConfig
from k_diffusion.data.opening import Request
from k_diffusion.tasks.reference import make_extractor


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return DemoConfig().open(Request((16, 16), 1, tmp_path_factory.mktemp('x'), False))


class Body(nn.Module):
    def forward(self, x):
        return torch.stack([x.mean([2, 3]).sum(1), x.amax([1, 2, 3]), x[:, 0, 0, 0]], 1)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Body()

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def script(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(Whole()), str(tmp_path / 'net.pt'))
    return tmp_path / 'net.pt'


def test_inception_is_fed_levels_at_its_size(script):
    extractor = E.InceptionV3FeatureExtractor(path=script, allow_code=True)
    output = extractor(torch.tensor([-1.0, 0.0, 1.0, 3.0])[:, None, None, None].expand(4, 1, 8, 8))
    expected = (torch.tensor([0.0, 127.5, 255.0, 255.0]) - 128) / 128
    torch.testing.assert_close(output, expected[:, None] * torch.tensor([3.0, 1.0, 1.0]))
    assert extractor.fingerprint.startswith('inception ')


def test_a_script_of_ones_own(script, tmp_path):
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(E.ScriptFeatureExtractor(script, allow_code=True)(x), Body()(x))
    with pytest.raises(FileNotFoundError, match='no feature extractor at'):
        E.ScriptFeatureExtractor(tmp_path / 'nothing.pt')
    (tmp_path / 'bad.pt').write_bytes(b'no script')
    with pytest.raises(ValueError, match='must be a TorchScript file'):
        E.ScriptFeatureExtractor(tmp_path / 'bad.pt', allow_code=True)


def test_inception_offline_says_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(
        'urllib.request.urlopen', lambda *_, **__: (_ for _ in ()).throw(OSError('no network'))
    )
    with pytest.raises(OSError, match=r'could not download .*inception.*place it at .*k-diffusion'):
        E.InceptionV3FeatureExtractor()


def test_transformers_from_a_folder(tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is in the extra "clip"')
    torch.manual_seed(1)
    clip = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
            projection_dim=8,
        )
    )
    clip.save_pretrained(tmp_path / 'clip')
    dino = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=12, num_hidden_layers=1, num_attention_heads=2, patch_size=14
        )
    )
    dino.save_pretrained(tmp_path / 'dino')
    x = torch.rand(3, 1, 20, 20) * 2 - 1
    a, b = (
        E.CLIPFeatureExtractor(str(tmp_path / 'clip')),
        E.DINOv2FeatureExtractor(str(tmp_path / 'dino')),
    )
    for extractor, width in ((a, 8), (b, 12)):
        output = extractor(x)
        assert output.shape == (3, width)
        torch.testing.assert_close(output.norm(dim=1), torch.full([3], width**0.5))
        assert (output[0] - output[1]).abs().max() > 1e-4
    resized = torch.nn.functional.interpolate(x, (32, 32), mode='bicubic', antialias=True).expand(
        -1, 3, -1, -1
    )
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    raw = clip.eval()(
        pixel_values=((resized + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    ).image_embeds
    torch.testing.assert_close(
        a(x), raw / raw.norm(dim=1, keepdim=True) * 8**0.5, rtol=1e-4, atol=1e-5
    )
    assert 'ViT-L/14@336px' in a.available_models() and 'vitg14' in b.available_models()
    clip.visual_projection.weight.data[0, 0] += 1
    clip.save_pretrained(tmp_path / 'clip')
    assert E.CLIPFeatureExtractor(str(tmp_path / 'clip')).fingerprint != a.fingerprint


@pytest.mark.slow
def test_a_classifier_trained_in_seconds_knows_digits(digits, tmp_path):
    before = torch.get_rng_state()
    network = E.cached_classifier(tmp_path, digits.images[:4000], digits.labels[:4000], 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0.93 < network.accuracy < 1
    x = from_bytes(digits.images[9000:])
    assert (network.logits(x).argmax(1) == digits.labels[9000:]).double().mean() > 0.93
    again = E.cached_classifier(
        tmp_path,
        digits.images[:4000],
        digits.labels[:4000],
        10,
        report=lambda *_: pytest.fail('trained again'),
    )
    assert (
        torch.equal(again(x), network(x))
        and again.fingerprint == network.fingerprint
        and again.accuracy == network.accuracy
    )
    real, other = network(x[:500]), network(x[500:])
    torn = network(x[500:].flip(2) + 0.5 * torch.randn_like(x[500:]))
    assert E.fid(torn, real) > 5 * E.fid(other, real)


def test_larger_pictures_and_few_of_them():
    images = torch.randint(256, (40, 3, 50, 70), dtype=torch.uint8)
    network = E.train_classifier(images, torch.arange(40) % 2, 2, steps=2)
    assert network(from_bytes(images[:3])).shape == (3, 64) and math.isfinite(network.accuracy)
    same = E.train_classifier(images, torch.arange(40) % 2, 2, steps=2)
    assert torch.equal(same.head.weight, network.head.weight)
    with pytest.raises(ValueError, match='20 images'):
        E.train_classifier(images[:5], torch.zeros(5), 1)


def test_reference_features_are_computed_once(digits, tmp_path):
    calls = []

    class Extractor:
        fingerprint = 'toy 1'

        def __call__(self, x):
            calls.append(len(x))
            return x.flatten(1)[:, :7] + 1

    extractor = Extractor()
    first = E.reference_features(digits, range(100), extractor, tmp_path, 32)
    assert calls == [32, 32, 32, 4]
    torch.testing.assert_close(first, from_bytes(digits.images[:100]).flatten(1)[:, :7] + 1)
    assert (
        torch.equal(E.reference_features(digits, range(100), extractor, tmp_path, 50), first)
        and len(calls) == 4
    )
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match='its contents are computed again'):
        again = E.reference_features(digits, range(100), extractor, tmp_path, 100)
    assert torch.equal(again, first) and len(calls) == 5
    changed = Images(digits.images.clone(), digits.labels, digits.class_names)
    changed.images[3, 0, 4, 4] += 1
    E.reference_features(changed, range(100), extractor, tmp_path, 100)
    assert len(calls) == 6
    extractor.fingerprint = 'toy 2'
    E.reference_features(digits, range(100), extractor, tmp_path, 100)
    assert len(calls) == 7


class Lone:
    """An accelerator of one process."""

    num_processes = 1

    def gather(self, x):
        return x


def test_compute_features_takes_as_many_as_asked():
    sizes = []

    def draw(count):
        sizes.append(count)
        return torch.full([count + 2, 1], float(len(sizes)))

    output = E.compute_features(Lone(), draw, lambda x: x * 2, 10, 4)
    assert sizes == [4, 4, 2] and output.flatten().tolist() == [2.0] * 4 + [4.0] * 4 + [6.0] * 2
    batches = iter([torch.ones(4, 1), torch.ones(4, 1)])
    assert len(E.compute_features(Lone(), lambda count: next(batches), lambda x: x, 100, 4)) == 8
    with pytest.raises(ValueError, match='n must be >= 1; got 0'):
        E.compute_features(Lone(), draw, lambda x: x, 0, 4)


def test_measure_gives_all_that_was_asked():
    x, y = torch.randn(200, 5), torch.randn(400, 5)
    values = E.measure(x, y, E.METRICS, blocks=10)
    assert values.keys() == {
        *(
            f'{name}{what}'
            for name in ('fid', 'fid_unbiased', 'fid_infinity', 'kid')
            for what in ('', '_stderr', '_low', '_high')
        ),
        'precision',
        'recall',
        'density',
        'coverage',
        'floor',
        'cmmd',
    }
    assert (
        values['floor'] == E.fid(y[:200], y[200:]).item()
        and values['coverage'] == E.density_coverage(x, y[:200])[1]
    )
    assert values['fid'] == E.fid(x, y).item() and values['recall'] > 0.5
    assert 'fewer than 10,000' in E.caution(9_999) and E.caution(10_000) is None


class Gradients(nn.Module):
    """Sixteen sharp features: how much neighbouring pixels differ, over patches."""

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(
            (x[..., 1:] - x[..., :-1]).abs() * 127.5, (4, 3)
        ).flatten(1)


def test_samples_are_rounded_as_a_file_would():
    """Bytes with noise of a third of a level are the bytes; what a sharp extractor sees is then
    the same.
    """
    source = torch.Generator().manual_seed(0)
    levels = torch.randint(100, 104, (50, 1, 16, 16), generator=source, dtype=torch.uint8)
    noise = (torch.rand(levels.shape, generator=source) - 0.5) * 0.66
    samples = (levels + noise) / 127.5 - 1
    expected = Gradients()(levels / 127.5 - 1)
    assert (Gradients()(samples) - expected).abs().mean() > 0.01
    for output in (
        E.extract(Gradients(), samples),
        E.extract(Gradients(), iter([samples])),
        E.compute_features(Lone(), lambda n: samples[:n], Gradients(), 50, 50),
    ):
        torch.testing.assert_close(output, expected)
    unrounded = E.compute_features(
        Lone(), lambda n: samples[:n], Gradients(), 50, 50, round_pictures=False
    )
    torch.testing.assert_close(unrounded, Gradients()(samples))
    bounds = torch.tensor([-9.0, 9.0, 0.5 / 127.5 - 1 - 1e-4])[:, None, None, None]
    clipped = E.compute_features(Lone(), lambda n: bounds, lambda x: x.flatten(1), 3, 3)
    assert clipped.flatten().tolist() == [-1.0, 1.0, -1.0]


def test_a_script_needs_leave_to_run_its_code(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, 'load', lambda *_, **__: pytest.fail('loaded'))
    for load in (
        lambda: E.ScriptFeatureExtractor(script),
        lambda: E.InceptionV3FeatureExtractor(path=script),
        lambda: make_extractor(str(script), lambda: None, tmp_path),
    ):
        with pytest.raises(ValueError, match=r'is loaded only with allow_code=True'):
            load()


def test_the_published_inception_needs_none(script, monkeypatch):
    """A file is known by its SHA-256, wherever it lies; one byte more and it is another."""
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    for module in ('k_diffusion.evaluation.features', 'k_diffusion.tasks.reference'):
        monkeypatch.setattr(f'{module}.INCEPTION_DIGEST', digest)
    for extractor in (
        E.InceptionV3FeatureExtractor(path=script),
        make_extractor(str(script), lambda: None, 'nowhere'),
    ):
        assert extractor.fingerprint == f'inception {digest}'
    script.write_bytes(script.read_bytes() + b'0')
    with pytest.raises(ValueError, match='is loaded only with allow_code=True'):
        E.InceptionV3FeatureExtractor(path=script)
