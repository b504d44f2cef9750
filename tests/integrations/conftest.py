"""Tiny parts of pipelines that several tests of diffusers share."""

import pytest
import torch


@pytest.fixture(scope='module')
def vae():
    import tiny_pipelines

    return tiny_pipelines.make_vae()


@pytest.fixture(scope='module')
def flux():
    import tiny_pipelines

    return tiny_pipelines.make_flux()


@pytest.fixture(scope='module')
def unet():
    import diffusers
    import tiny_pipelines as tiny

    torch.manual_seed(0)
    return tiny.randomised(diffusers.UNet2DConditionModel(**tiny.TINY, **tiny.CROSS))
