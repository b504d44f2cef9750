"""Tiny parts of pipelines that several tests of diffusers share."""

import pytest


@pytest.fixture(scope='module')
def vae():
    import tiny_pipelines

    return tiny_pipelines.make_vae()


@pytest.fixture(scope='module')
def flux():
    import tiny_pipelines

    return tiny_pipelines.make_flux()
