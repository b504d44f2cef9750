"""Going on: rates follow the config, moments follow the names of the parameters, also those the
original wrote.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import k_diffusion as K
from k_diffusion.training import AdamWConfig, MuonConfig, SGDConfig, Trainer
from k_diffusion.training.ema import EMAWarmup, PowerEMA
from k_diffusion.training.lr import ConstantLRWithWarmup, InverseLR, WarmupDecayLR
from k_diffusion.training.optimizer_state import matched_state, original_names, parameter_names

CONFIGS = Path(__file__).parents[2] / 'configs'
OPTIMIZERS = {'adamw': AdamWConfig, 'sgd': SGDConfig, 'muon': MuonConfig}


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('adamw', {}),
        ('sgd', {}),
        ('sgd', {'momentum': 0.9, 'nesterov': True, 'weight_decay': 0.1}),
        ('muon', {}),
    ],
)
def test_another_learning_rate_takes_effect(toy, kind, options):
    """A step is proportional to the learning rate, for every parameter: a tenth of it moves a
    tenth as far.
    """
    config = OPTIMIZERS[kind](lr=0.1, **options)
    first = toy.make_trainer(config, end_step=3)
    first.run()
    state = copy.deepcopy(first.state_dict())
    moves = []
    for lr in (0.1, 0.01):
        trainer = toy.make_trainer(
            OPTIMIZERS[kind](lr=0.1, **options), end_step=4, ema_sched=EMAWarmup(power=0.75)
        )
        optimizer = config.make(trainer.model, lr)
        trainer.optimizer, trainer.lr_sched = optimizer, ConstantLRWithWarmup(optimizer, 0.9)
        trainer.load_state_dict(copy.deepcopy(state))
        trainer.run()
        moves.append(
            [(p - state['model'][name]).double() for name, p in trainer.model.named_parameters()]
        )
    names = [name for name, _ in first.model.named_parameters()]
    for name, far, near in zip(names, *moves):
        assert far.abs().max() > 1e-6, name
        torch.testing.assert_close(
            near * 10, far, atol=float(far.abs().max()) * 0.1, rtol=0, msg=name
        )


def test_schedules_take_their_position_from_the_checkpoint_and_nothing_else(toy):
    first = toy.make_trainer(end_step=5)
    first.run()
    state = first.state_dict()
    shapes = {
        InverseLR: ({'inv_gamma': 4.0, 'power': 0.5}, (1 + 5 / 4) ** -0.5),
        WarmupDecayLR: (
            {'num_steps': 10, 'warmup_steps': 2, 'decay_start': 0.0, 'final': 0.0},
            0.5,
        ),
        ConstantLRWithWarmup: ({'warmup': 0.5}, 1 - 0.5**6),
    }
    for sched, (options, factor) in shapes.items():
        trainer = toy.make_trainer(AdamWConfig(lr=2.0))
        trainer.lr_sched = sched(trainer.optimizer.optimizer, **options)
        trainer.load_state_dict(copy.deepcopy(state))
        assert [group['lr'] for group in trainer.optimizer.param_groups] == pytest.approx(
            [2 * factor, factor]
        )
        assert trainer.lr_sched.get_last_lr() == pytest.approx([2 * factor, factor])
    trainer = toy.make_trainer(ema_sched=EMAWarmup(inv_gamma=2.0, power=0.5, max_value=0.9))
    trainer.load_state_dict(copy.deepcopy(state))
    assert trainer.ema_sched.get_value() == pytest.approx(1 - (1 + 5 / 2) ** -0.5)
    trainer = toy.make_trainer(ema_sched=PowerEMA(12**-0.5))  # the plain average: exponent 0
    trainer.load_state_dict(copy.deepcopy(state))
    assert trainer.ema_sched.get_value() == pytest.approx(1 - 1 / 6, abs=1e-6)


def test_a_schedule_of_torch_keeps_its_own_state(toy):
    """It computes a rate from the one before, which must be the saved one."""

    def make(end_step):
        trainer = toy.make_trainer(end_step=end_step)
        trainer.lr_sched = torch.optim.lr_scheduler.CosineAnnealingLR(
            trainer.optimizer.optimizer, 10
        )
        return trainer

    straight, first, second = make(6), make(3), make(6)
    straight.run()
    first.run()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.run()
    for p, q in zip(straight.model.parameters(), second.model.parameters()):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ('old', 'new'),
    [('adamw', 'sgd'), ('sgd', 'adamw'), ('adamw', 'muon'), ('muon', 'adamw'), ('muon', 'sgd')],
)
def test_another_type_of_optimizer_is_refused_or_begins_anew(toy, old, new):
    first = toy.make_trainer(OPTIMIZERS[old](), end_step=2)
    first.run()
    state = first.state_dict()
    trainer = toy.make_trainer(OPTIMIZERS[new](), end_step=4)
    with pytest.raises(ValueError, match=r'another type of optimizer.*reset_optimizer=True'):
        trainer.load_state_dict(copy.deepcopy(state))
    trainer.load_state_dict(copy.deepcopy(state), reset_optimizer=True)
    assert not trainer.optimizer.state and trainer.lr_sched.last_epoch == 2
    assert trainer.run() == 'done' and trainer.step == 4


def test_moments_of_another_shape_are_refused(toy):
    first = toy.make_trainer(end_step=1)
    first.run()
    state = copy.deepcopy(first.state_dict())
    state['opt']['state'][1]['exp_avg_sq'] = torch.zeros(2, 2)
    with pytest.raises(
        ValueError,
        match=r'exp_avg_sq of mix\.weight has the shape \[2, 2\], and mix\.weight has \[8, 8\]',
    ):
        toy.make_trainer().load_state_dict(state)


def test_groups_in_another_order_are_matched_by_name(toy):
    first = toy.make_trainer(end_step=2)
    first.run()
    state = copy.deepcopy(first.state_dict())
    trainer = toy.make_trainer()
    net = trainer.model
    groups = [{'params': list(net.parameters())[::-1], 'lr': 1.0}]
    trainer.optimizer = torch.optim.AdamW(groups)
    trainer.lr_sched = ConstantLRWithWarmup(trainer.optimizer)
    trainer.load_state_dict(state)
    for p, q in zip(first.model.parameters(), net.parameters()):
        assert torch.equal(
            first.optimizer.state[p]['exp_avg'], trainer.optimizer.state[q]['exp_avg']
        )


# What follows writes checkpoints as the original does, from the facts of its networks: the order in
# which weights are registered, which is that of its state_dict, and the groups of its optimizer.


def image_v1_order(model, head=''):
    """(name, is a parameter) of every tensor of the original's image_v1, in its order."""
    depths, channels = model['depths'], model['channels']
    names = ['timestep_embed.weight|']
    if model.get('mapping_cond_dim', 0) or model.get('augment_wrapper', True):
        names += ['mapping_cond.weight']
    names += [f'mapping.{i}.{kind}' for i in (0, 2) for kind in ('weight', 'bias')]
    names += [f'{which}.{kind}' for which in ('proj_in', 'proj_out') for kind in ('weight', 'bias')]
    levels = len(channels)
    for i in range(levels):
        if i > model.get('skip_stages', 0):
            names += [f'u_net.d_blocks.{i}.0.kernel|']
        widths = [channels[max(0, i - 1)]] + [channels[i]] * depths[i]
        names += block_order(model, i, f'u_net.d_blocks.{i}.', widths, 1)
    for i in reversed(range(levels)):
        at = levels - 1 - i
        first = channels[i] if i == levels - 1 else 2 * channels[i]
        widths = [first] + [channels[i]] * (depths[i] - 1) + [channels[max(0, i - 1)]]
        names += block_order(model, i, f'u_net.u_blocks.{at}.', widths, 0)
        if i > model.get('skip_stages', 0):
            per_layer = (
                1
                + model['self_attn_depths'][i]
                + bool((model.get('cross_attn_depths') or [0] * levels)[i])
            )
            names += [f'u_net.u_blocks.{at}.{depths[i] * per_layer}.kernel|']
    return [(head + name.rstrip('|'), not name.endswith('|')) for name in names]


def block_order(model, level, head, widths, first):
    names, j = [], first
    for n in range(model['depths'][level]):
        names += [
            f'{head}{j}.main.{k}.{kind}'
            for k in ('0.mapper', '2', '4.mapper', '6')
            for kind in ('weight', 'bias')
        ]
        if widths[n] != widths[n + 1]:
            names += [f'{head}{j}.skip.weight']
        j += 1
        if model['self_attn_depths'][level]:
            names += [
                f'{head}{j}.{part}.{kind}'
                for part in ('norm_in.mapper', 'qkv_proj', 'out_proj')
                for kind in ('weight', 'bias')
            ]
            j += 1
        if (model.get('cross_attn_depths') or [False] * 9)[level]:
            parts = ('norm_enc', 'norm_dec.mapper', 'q_proj', 'kv_proj', 'out_proj')
            names += [f'{head}{j}.{part}.{kind}' for part in parts for kind in ('weight', 'bias')]
            j += 1
    return names


def mapping_order(blocks):
    parts = ('norm.scale', 'up_proj.weight', 'down_proj.weight')
    return [
        'mapping.in_norm.scale',
        *(f'mapping.blocks.{i}.{part}' for i in range(blocks) for part in parts),
        'mapping.out_norm.scale',
    ]


def transformer_v1_order(model, classes):
    names = [
        'time_emb.weight|',
        'time_in_proj.weight',
        'aug_emb.weight|',
        'aug_in_proj.weight',
        *(['class_emb.weight'] if classes else []),
        *mapping_order(2),
        'in_proj.weight',
    ]
    for i in range(model['depth']):
        attention = (
            'norm.linear.weight',
            'qkv_proj.weight',
            'qk_norm.scale',
            'pos_emb.freqs_h',
            'pos_emb.freqs_w',
            'out_proj.weight',
        )
        names += [f'blocks.{i}.self_attn.{part}' for part in attention]
        names += [
            f'blocks.{i}.ff.{part}.weight' for part in ('norm.linear', 'up_proj', 'down_proj')
        ]
    return [
        (name.rstrip('|'), not name.endswith('|'))
        for name in [*names, 'out_norm.scale', 'out_proj.weight']
    ]


def transformer_v2_order(model, classes):
    names = [
        'patch_in.proj.weight',
        'time_emb.weight|',
        'time_in_proj.weight',
        'aug_emb.weight|',
        'aug_in_proj.weight',
        *(['class_emb.weight'] if classes else []),
        *mapping_order(model.get('mapping_depth', 2)),
    ]
    last = len(model['depths']) - 1
    heads = [f'{side}_levels.{i}' for side in ('down', 'up') for i in range(last)] + ['mid_level']
    for head in heads:
        level = last if head == 'mid_level' else int(head.split('.')[1])
        for i in range(model['depths'][level]):
            attention = (
                'scale',
                'norm.linear.weight',
                'qkv_proj.weight',
                'pos_emb.freqs|',
                'out_proj.weight',
            )
            names += [f'{head}.{i}.self_attn.{part}' for part in attention]
            names += [
                f'{head}.{i}.ff.{part}.weight' for part in ('norm.linear', 'up_proj', 'down_proj')
            ]
    names += [f'merges.{i}.proj.weight' for i in range(last)]
    names += [f'splits.{i}.{part}' for i in range(last) for part in ('fac', 'proj.weight')]
    return [
        (name.rstrip('|'), not name.endswith('|'))
        for name in [*names, 'out_norm.scale', 'patch_out.proj.weight']
    ]


def groups_of(kind, names):
    """The groups of the original's optimizer: (names, factor of the rate, decayed)."""
    if kind == 'image_v1':
        decayed = [
            n
            for n in names
            if n.removeprefix('inner_model.').startswith(('mapping', 'u_net'))
            and n.endswith('.weight')
        ]
        return [(decayed, 1.0, True), ([n for n in names if n not in decayed], 1.0, False)]
    untagged = ('time_in_proj', 'aug_in_proj', 'class_emb')
    tags = [
        (
            n.startswith('mapping.') or 'norm.linear' in n,
            n.endswith('.weight') and not n.startswith(untagged),
        )
        for n in names
    ]
    return [
        (
            [n for n, tag in zip(names, tags) if tag == (mapping, decayed)],
            1 / 3 if mapping else 1.0,
            decayed,
        )
        for mapping, decayed in ((False, True), (False, False), (True, True), (True, False))
    ]


def order_of(filled):
    model, classes = filled['model'], filled['dataset']['num_classes']
    if model['type'] == 'image_v1':
        return image_v1_order(model, 'inner_model.' if model['augment_wrapper'] else '')
    return (
        transformer_v1_order if model['type'] == 'image_transformer_v1' else transformer_v2_order
    )(model, classes)


DATA = {'dataset': {'type': 'demo', 'num_classes': 0}}
NOISE = {
    'input_channels': 1,
    'input_size': [16, 16],
    'sigma_data': 0.5,
    'sigma_min': 0.02,
    'sigma_max': 40,
    'sigma_sample_density': {'type': 'lognormal', 'mean': -1.0, 'std': 1.2},
}
SMALL = {
    'patches': {
        'type': 'image_v1',
        'patch_size': 2,
        'mapping_out': 16,
        'depths': [2, 1],
        'channels': [16, 32],
        'self_attn_depths': [False, True],
    },
    'everything': {
        'type': 'image_v1',
        'mapping_out': 16,
        'depths': [1, 2, 1],
        'channels': [16, 16, 32],
        'self_attn_depths': [False, True, True],
        'cross_attn_depths': [False, False, True],
        'cross_cond_dim': 8,
        'unet_cond_dim': 2,
        'mapping_cond_dim': 3,
        'skip_stages': 1,
        'has_variance': True,
        'loss_weighting': 'karras',
    },
    'unwrapped': {
        'type': 'image_v1',
        'mapping_out': 16,
        'depths': [1, 1],
        'channels': [16, 16],
        'self_attn_depths': [True, False],
        'augment_wrapper': False,
    },
    'transformer_v1': {
        'type': 'image_transformer_v1',
        'patch_size': [4, 4],
        'depth': 2,
        'width': 64,
    },
    'transformer_v2': {
        'type': 'image_transformer_v2',
        'patch_size': [2, 2],
        'depths': [1, 2, 1],
        'widths': [64, 64, 128],
        'self_attns': [{'type': 'global'}, {'type': 'global'}, {'type': 'global'}],
        'mapping_width': 64,
    },
}


def original_checkpoint(filled, network, one_group=False):
    """A checkpoint as the original writes it, and the first moment of each parameter by name."""
    order = order_of(filled)
    tensors = network.state_dict()
    assert sorted(tensors) == sorted(name for name, _ in order)
    weights = OrderedDict((name, tensors[name].clone()) for name, _ in order)
    names = [name for name, is_parameter in order if is_parameter]
    groups = [(names, 1.0, True)] if one_group else groups_of(filled['model']['type'], names)
    generator = torch.Generator().manual_seed(5)
    moments = {name: torch.randn(weights[name].shape, generator=generator) for name in names}
    state, saved, first = {}, [], 0
    for group, factor, decayed in groups:
        for name in group:
            state[first + group.index(name)] = {
                'step': torch.tensor(7.0),
                'exp_avg': moments[name].clone(),
                'exp_avg_sq': moments[name].square(),
            }
        options = {
            'lr': 1e-4 * factor,
            'betas': (0.95, 0.999),
            'eps': 1e-6,
            'weight_decay': 1e-3 * decayed,
            'amsgrad': False,
            'foreach': None,
            'maximize': False,
            'capturable': False,
            'differentiable': False,
            'fused': None,
            'initial_lr': 1e-4 * factor,
        }
        saved.append({**options, 'params': list(range(first, first := first + len(group)))})
    sched = {
        'warmup': 0.0,
        'base_lrs': [group['lr'] for group in saved],
        'last_epoch': 7,
        'verbose': False,
        '_step_count': 8,
        '_last_lr': [group['lr'] for group in saved],
    }
    ema_sched = {
        'inv_gamma': 1.0,
        'power': 0.6667,
        'min_value': 0.0,
        'max_value': 0.9999,
        'start_at': 0,
        'last_epoch': 7,
    }
    return {
        'config': filled,
        'model': weights,
        'model_ema': OrderedDict((n, w.clone()) for n, w in weights.items()),
        'opt': {'state': state, 'param_groups': saved},
        'sched': sched,
        'ema_sched': ema_sched,
        'epoch': 0,
        'step': 7,
        'gns_stats': None,
        'ema_stats': {'loss': 0.5},
        'demo_gen': torch.Generator().get_state(),
        'elapsed': 12.5,
    }, moments


@pytest.mark.parametrize(
    ('name', 'one_group'), [*((name, False) for name in SMALL), ('patches', True)]
)
def test_moments_of_the_original_reach_the_parameters_of_their_names(
    toy, tmp_path, name, one_group
):
    filled = K.config.load_config(
        {'model': {**NOISE, **SMALL[name]}, **DATA, 'optimizer': {'type': 'adamw', 'lr': 3e-5}}
    )
    network = K.config.make_model(filled)
    state, moments = original_checkpoint(filled, network, one_group)
    torch.save(state, tmp_path / 'm.pth')
    accelerator = Accelerator(cpu=True)
    optimizer = AdamWConfig(lr=3e-5).make(network)
    lr_sched = ConstantLRWithWarmup(optimizer)
    model, optimizer = accelerator.prepare(network, optimizer)
    loader = toy.MemoryLoader(toy.images(), 4)
    trainer = Trainer(
        accelerator,
        model,
        lambda batch: batch['image'],
        optimizer,
        lr_sched,
        EMAWarmup(),
        copy.deepcopy(network),
        loader,
    )
    trainer.load_state_dict(K.training.read_training_checkpoint(tmp_path / 'm.pth'))
    for key, p in network.named_parameters():
        assert torch.equal(trainer.optimizer.state[p]['exp_avg'], moments[key]), key
        assert torch.equal(trainer.optimizer.state[p]['exp_avg_sq'], moments[key].square()), key
    assert trainer.optimizer.param_groups[0]['lr'] == 3e-5


@pytest.mark.parametrize('name', [p.stem for p in sorted(CONFIGS.glob('config_*.json'))])
def test_the_order_of_the_shipped_configs_is_the_original_one(name):
    filled = json.loads((CONFIGS / f'{name}.json').read_text())
    filled = K.config.load_config(filled)
    if filled['model']['type'] not in ('image_v1', 'image_transformer_v1', 'image_transformer_v2'):
        pytest.skip('a network that the original does not have')
    with torch.device('meta'):
        network = K.config.make_model(filled)
    if filled['model']['type'] == 'image_v1' and any(
        key.endswith('class_emb.weight') for key in network.state_dict()
    ):
        pytest.skip('classes of image_v1, which the original does not have')
    order = order_of(filled)
    groups = [
        group
        for group, _, _ in groups_of(
            filled['model']['type'], [name for name, is_parameter in order if is_parameter]
        )
    ]
    ours = parameter_names(network, network.param_groups(1.0))
    result = original_names([name for name, _ in order], ours, [len(group) for group in groups])
    assert result == groups


def test_a_state_of_other_parameters_is_refused(toy):
    net = toy.TinyNet()
    optimizer = torch.optim.AdamW(net.param_groups(1.0))
    saved = optimizer.state_dict()
    names = parameter_names(net, optimizer.param_groups)
    other = [[*names[0][:-1], 'another'], names[1]]
    with pytest.raises(ValueError, match='is in one of them only'):
        matched_state(saved, optimizer.param_groups, names, other)
    with pytest.raises(ValueError, match=r'groups of \[2, 7\] parameters'):
        matched_state(saved, optimizer.param_groups, names, [names[0], names[1][:-1]])
