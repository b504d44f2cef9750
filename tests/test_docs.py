"""The pages say what the code says."""
from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import k_diffusion as K

ROOT = Path(__file__).parents[1]
SECTIONS = [*K.models.MODELS.values(), *K.schedules.DENSITIES.values(), *K.data.DATASETS.values(), *K.training.OPTIMIZERS.values(),
            *K.training.LR_SCHEDS.values(), *K.training.EMA_SCHEDS.values(), K.training.TrainingConfig, K.generation.SamplingConfig]


@pytest.mark.parametrize('section', SECTIONS, ids=lambda s: s.__name__)
def test_every_key_of_a_config_is_on_the_page(section):
    page = (ROOT / 'docs' / 'config.md').read_text()
    for field in dataclasses.fields(section):
        assert f'`{field.name}`' in page, field.name


def test_every_type_is_on_the_page():
    page = (ROOT / 'docs' / 'config.md').read_text()
    kinds = [*K.models.MODELS, *K.schedules.DENSITIES, *K.data.DATASETS, *K.training.OPTIMIZERS, *K.training.LR_SCHEDS,
             *K.training.EMA_SCHEDS]
    for name in kinds:
        assert f'`{name}`' in page, name


@pytest.mark.parametrize('page', ['README.md', 'docs/config.md', 'docs/training.md', 'CHANGELOG.md'])
def test_what_a_page_points_to_is_there(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r'\]\(([^)#]+)\)', text):
        assert target.startswith('http') or (ROOT / page).parent.joinpath(target).exists(), target


def test_the_readme_shows_commands_that_exist():
    text = (ROOT / 'README.md').read_text()
    assert 'make demo' in text and 'make test' in text
    for command in re.findall(r'^k-diffusion ([a-z]+)', text, re.M):
        assert command in K.cli.entry.COMMANDS
    for name in re.findall(r'K\.sampling\.(\w+)', text):
        assert hasattr(K.sampling, name), name
