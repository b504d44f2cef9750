"""The second noise level as an input of every network: old weights load, and it starts without
effect.
"""

import pytest
import torch

import k_diffusion as K

SHARED = {
    'input_channels': 1,
    'input_size': [8, 8],
    'sigma_data': 0.5,
    'sigma_min': 0.02,
    'sigma_max': 40,
    'sigma_sample_density': {'type': 'lognormal', 'mean': -1.0, 'std': 1.2},
}
U_NET = {
    'mapping_out': 16,
    'depths': [1, 1],
    'channels': [16, 16],
    'self_attn_depths': [False, True],
}
NETWORKS = {
    'image_v1': U_NET,
    'image_v2': U_NET,
    'image_v3': U_NET,
    'image_transformer_v1': {'patch_size': [2, 2], 'depth': 1, 'width': 64},
    'image_transformer_v2': {
        'patch_size': [2, 2],
        'depths': [1],
        'widths': [64],
        'self_attns': [{'type': 'global', 'd_head': 32}],
        'mapping_width': 32,
    },
}


def config(kind, **more):
    model = {'type': kind, **SHARED, **NETWORKS[kind], **more}
    return {'model': model, 'dataset': {'type': 'demo', 'num_classes': 3}}


@pytest.mark.parametrize('kind', NETWORKS)
def test_the_inputs_start_without_effect_and_old_weights_load(kind):
    torch.manual_seed(0)
    old = K.config.make_model(config(kind))
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    new = K.config.make_model(config(kind, flow_map=True, guidance_input=True))
    keys = new.load_state_dict(old.state_dict(), strict=False)
    assert not keys.unexpected_keys and keys.missing_keys
    assert all('map_inputs.' in key for key in keys.missing_keys)
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0, 40.0])
    cond = {'class_cond': torch.tensor([0, 1, 2, 3])}
    second = {'sigma_next': sigma / 3, 'guidance_scale': torch.tensor([1.0, 2.0, 3.0, 4.0])}
    before = old.eval()(x, sigma, **cond)
    torch.testing.assert_close(new.eval()(x, sigma, **cond, **second), before)
    inner = getattr(new, 'inner_model', new)
    for part in (inner.map_inputs.level, inner.map_inputs.scale):
        with torch.no_grad():
            part[1].weight.normal_()
        after = new(x, sigma, **cond, **second)
        assert (after - before).abs().max() > 1e-4
        before = after
    with pytest.raises(ValueError, match='sigma_next and guidance_scale must be left out'):
        old(x, sigma, **cond, sigma_next=sigma)


@pytest.mark.parametrize('kind', NETWORKS)
def test_every_parameter_is_given_to_the_optimizer_once(kind):
    filled = K.config.Experiment.open(config(kind, flow_map=True))
    optimizer = filled.sections.optimizer.make(filled.network, None)
    ids = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert sorted(ids) == sorted(id(p) for p in filled.network.parameters())


@pytest.mark.parametrize('kind', NETWORKS)
def test_the_forward_derivative_of_a_map_is_that_of_differences(kind):
    torch.manual_seed(0)
    network = K.config.make_model(config(kind, flow_map=True)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=torch.float64))
    flow_map = K.denoisers.FlowMap(network, 0.5)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    direction = torch.randn_like(x)
    cond = {'class_cond': torch.tensor([0, 1])}

    def along(x, sigma):
        return flow_map(x, sigma, torch.full_like(sigma, 0.1), **cond)

    _, slope = torch.func.jvp(along, (x, sigma), (direction, torch.ones_like(sigma)))
    h = 1e-5
    difference = (along(x + h * direction, sigma + h) - along(x - h * direction, sigma - h)) / (
        2 * h
    )
    torch.testing.assert_close(slope, difference, atol=1e-6, rtol=1e-5)
