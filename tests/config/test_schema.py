from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from k_diffusion.config.schema import Findings, describe, near_miss, read_section


@dataclass
class Part:
    width: int
    kind: Literal['a', 'b'] = 'a'


@dataclass
class Section:
    size: tuple[int, int]
    depths: list[int]
    rate: float | list[float] = 0.0
    name: str | None = None
    flag: bool = False
    part: Part | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(depth < 1 for depth in self.depths):
            raise ValueError(f'depths is {self.depths}; each must be at least 1')


def read(value, **kwargs):
    findings = Findings()
    return read_section(Section, value, 'model', findings, **kwargs), findings


def test_values_take_their_types():
    section, findings = read(
        {'size': [4, 5.0], 'depths': [1, 2], 'rate': 1, 'part': {'width': 3}, 'flag': True}
    )
    assert section == Section((4, 5), [1, 2], 1.0, None, True, Part(3)) and findings.errors == []
    assert type(section.size[1]) is int and type(section.rate) is float


def test_all_errors_come_at_once_with_their_paths():
    section, findings = read(
        {'size': [4], 'depths': 'two', 'rate': 'x', 'flag': 1, 'part': {'width': 1.5, 'kind': 'c'}}
    )
    assert section is None and len(findings.errors) == 6
    text = ' '.join(findings.errors)
    for path in (
        'model.size',
        'model.depths',
        'model.rate',
        'model.flag',
        'model.part.width',
        'model.part.kind',
    ):
        assert f'{path} is ' in text
    assert "model.part.kind is 'c'; it takes 'a' or 'b'" in text


def test_missing_and_impossible_values():
    assert read({'depths': [1]})[1].errors == [
        'model.size is missing; it takes a list of 2, each item an integer'
    ]
    assert read({'size': [1, 1], 'depths': [0]})[1].errors == [
        'model.depths is [0]; each must be at least 1'
    ]
    assert 'must be an object' in read([])[1].errors[0]
    for odd in (True, '1', None, float('nan'), float('inf'), 1.5, 10**400):
        assert read({'size': [1, odd], 'depths': [1]})[0] is None


def test_a_near_miss_is_an_error_and_a_foreign_key_is_not():
    section, findings = read({'size': [1, 1], 'depths': [1], 'my_own_key': 1})
    assert section is not None and findings.unknown == ['model.my_own_key']
    section, findings = read({'size': [1, 1], 'depths': [1], 'dephts': [1]})
    assert section is None
    assert 'model.dephts is not a key; did you mean model.depths?' in findings.errors


def test_defaults_may_hang_on_another_section():
    assert read({'size': [1, 1], 'depths': [1]}, defaults={'rate': 0.5})[0].rate == 0.5
    assert read({'size': [1, 1], 'depths': [1], 'rate': 0.1}, defaults={'rate': 0.5})[0].rate == 0.1


@pytest.mark.parametrize(
    'typo', ['sigma_dat', 'sigma_dataa', 'sigma_dsta', 'sigma_daat', 'Sigma_data', 'sigmadata']
)
def test_one_letter_off_is_near(typo):
    assert near_miss(typo, ['sigma_max', 'sigma_data']) == 'sigma_data'


def test_other_words_are_not_near():
    assert near_miss('wandb', ['warmup', 'lr']) is None
    assert near_miss('upscale', ['sigma_data', 'scales']) is None


def test_types_are_described_in_words():
    assert describe(list[int] | None) == 'a list, each item an integer or null'
