"""Reading configs: checked against dataclasses, with their defaults filled in."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .. import data, encoders, generation, models, schedules, training
from ..core.files import read_json
from ..core.registry import Registry, nearest, unknown
from ..core.weights import load_safetensors_config
from .schema import Findings, near_miss, read_section

#: The defaults of the optimizer by network: the original's values, and image_v2's own.
_ADAMW = {
    'image_v1': {'lr': 1e-4, 'betas': (0.95, 0.999), 'eps': 1e-6, 'weight_decay': 1e-3},
    'image_v2': {'lr': 1e-2, 'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 0.0},
    'python': {'lr': 1e-3, 'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 1e-4},
}
_ADAMW_TRANSFORMER = {'lr': 5e-4, 'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 1e-4}


@dataclasses.dataclass(frozen=True)
class Sections:
    """A checked config: an instance of the dataclass of each section."""

    model: Any
    density: Any
    dataset: Any
    optimizer: Any
    lr_sched: Any
    ema_sched: Any
    distillation: training.DistillationConfig
    training: training.TrainingConfig
    sampling: generation.SamplingConfig
    encoder: Any
    conditions: list[Any]


#: The section of a density given from Python.
PYTHON_DENSITY = {'type': 'python'}
#: Largest size of a config file in bytes (usual ones have some kilobytes).
CONFIG_BYTES = 2**24


def load_config(
    path_or_dict: str | os.PathLike[str] | IO[str] | Mapping[str, Any], strict: bool = False
) -> dict[str, Any]:
    """Read a config and fill in the defaults of its sections.

    Unknown keys are kept with one warning, since programs built on this package read their own. A
    key that is nearly a known one is refused with a suggestion. All errors are reported at once.

    Args:
        path_or_dict: The path of a .json file or of a .safetensors file with a config, an open
            file, a dict, or the name of a shipped config.
        strict: Refuse unknown keys.

    Raises:
        ValueError: If it is invalid.
    """
    raw, name = read_source(path_or_dict)
    return fill_defaults(raw, parse_sections(raw, name, strict))


def parse_sections(raw: Mapping[str, Any], name: str, strict: bool = False) -> Sections:
    """Return the sections of a config.

    Args:
        raw: The config.
        name: Its name in messages.
        strict: Refuse unknown keys; otherwise one warning names them.

    Raises:
        ValueError: If it is invalid; the message names all errors.
    """
    sections, findings = read_sections(raw)
    if strict:
        findings.errors += [
            f'{key} is not a key of this config; remove it' for key in findings.unknown
        ]
    if findings.errors or sections is None:
        raise ValueError(f'{name} cannot be used: ' + '; '.join(findings.errors))
    if findings.unknown:
        warnings.warn(
            f'{name} has unknown keys, which are ignored: {", ".join(findings.unknown)}',
            stacklevel=3,
        )
    return sections


def read_sections(config: Mapping[str, Any]) -> tuple[Sections | None, Findings]:
    """Return the sections of a config (None if there are errors), and the findings.

    Args:
        config: The config.
    """
    findings = Findings()
    sections = [field.name for field in dataclasses.fields(Sections) if field.name != 'density']
    for key in config:
        if key not in sections:
            near = near_miss(key, sections)
            if near:
                findings.errors.append(f'{key} is not a section; did you mean {near}?')
            else:
                findings.unknown.append(key)
    if 'model' not in config:
        findings.errors.append('model is missing; it is the section that describes the network')
        return None, findings
    model = choose(models.MODELS, config['model'], 'model', findings)
    kind = getattr(model, 'type', None)
    adamw = _ADAMW.get(str(kind), _ADAMW_TRANSFORMER)
    parts = {
        'model': model,
        'density': _density(model, findings),
        'dataset': choose(
            data.DATASETS, config.get('dataset', {}), 'dataset', findings, 'imagefolder'
        ),
        'optimizer': choose(
            training.OPTIMIZERS,
            config.get('optimizer', {}),
            'optimizer',
            findings,
            'adamw',
            {'adamw': adamw, 'adam8bit': adamw},
        ),
        'lr_sched': choose(
            training.LR_SCHEDS, config.get('lr_sched', {}), 'lr_sched', findings, 'constant'
        ),
        'ema_sched': choose(
            training.EMA_SCHEDS, config.get('ema_sched', {}), 'ema_sched', findings, 'inverse'
        ),
        'training': read_section(
            training.TrainingConfig, config.get('training', {}), 'training', findings
        ),
        'sampling': read_section(
            generation.SamplingConfig, config.get('sampling', {}), 'sampling', findings
        ),
        'distillation': read_section(
            training.DistillationConfig, config.get('distillation', {}), 'distillation', findings
        ),
        'encoder': choose(
            encoders.ENCODERS, config.get('encoder', {}), 'encoder', findings, 'pixels'
        ),
        'conditions': _conditions(config.get('conditions', []), findings),
    }
    _check_distillation(parts, findings)
    return (None if findings.errors else Sections(**parts)), findings


def _check_distillation(parts: Mapping[str, Any], findings: Findings) -> None:
    """Refuse what the sections allow each by itself, and not together."""
    model, distillation = parts['model'], parts['distillation']
    if model is None or distillation is None or distillation.method is None:
        return
    if not model.flow_map:
        findings.errors.append(
            f'model.flow_map is false; it must be true with distillation.method '
            f'{distillation.method!r}'
        )
    if model.guidance_input != (distillation.guidance_max is not None):
        findings.errors.append(
            f'model.guidance_input is {str(model.guidance_input).lower()}; it must be true where '
            'distillation.guidance_max is given, else false'
        )


def fill_config(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a config with its defaults, without warnings; None if it is invalid.

    Args:
        raw: The config.
    """
    sections, _ = read_sections(raw)
    return None if sections is None else fill_defaults(raw, sections)


def sections_of(config: Mapping[str, Any]) -> Sections:
    """Return the sections of a config that load_config has accepted.

    Args:
        config: The config.

    Raises:
        ValueError: If it is invalid.
    """
    sections, findings = read_sections(config)
    if sections is None:
        raise ValueError('the config cannot be used: ' + '; '.join(findings.errors))
    return sections


def read_dataset_section(section: Mapping[str, Any]) -> Any:
    """Return a "dataset" section alone as an instance of its dataclass.

    Args:
        section: The section.

    Raises:
        ValueError: If it is invalid; the message names all errors.
    """
    findings = Findings()
    result = choose(data.DATASETS, section, 'dataset', findings, 'imagefolder')
    if findings.errors:
        raise ValueError('the config cannot be used: ' + '; '.join(findings.errors))
    return result


def read_source(
    source: str | os.PathLike[str] | IO[str] | Mapping[str, Any],
) -> tuple[Mapping[str, Any], str]:
    """Return the contents of a config before any checks, and its name in messages.

    Args:
        source: A path, an open file or a dict.
    """
    if isinstance(source, Mapping):
        return source, 'the config'
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.suffix == '.safetensors':
            raw, name = load_safetensors_config(path), f'the config inside {path}'
        else:
            raw, name = _read_text(path), str(path)
    else:
        name = str(getattr(source, 'name', 'the config'))
        raw = read_json(source.read(), name)
    if not isinstance(raw, Mapping):
        raise ValueError(
            f'{name} must be a JSON object with a "model" section; got {type(raw).__name__}'
        )
    return raw, name


def _read_text(path: Path) -> Any:
    path = find_config(path)
    if not path.is_file():
        near = nearest(path.stem, shipped_configs())
        raise FileNotFoundError(
            f'no config at {path}'
            + (
                f', did you mean {near!r}?'
                if near
                else '; path must be a .json file, or the name of a shipped config'
            )
        )
    try:
        if (size := path.stat().st_size) > CONFIG_BYTES:
            raise ValueError(
                f'{path} must have at most {CONFIG_BYTES:,} bytes to be a config; got {size:,}'
            )
        return read_json(path.read_text('utf-8'), str(path))
    except UnicodeDecodeError:
        raise ValueError(
            f'{path} must be a .json file, or a .safetensors file with a config; it is not text'
        ) from None


def choose(
    kinds: Registry[type],
    section: Any,
    path: str,
    findings: Findings,
    default: str | None = None,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Read a section with the dataclass of its "type".

    Args:
        kinds: The dataclasses by type.
        section: The section.
        path: Its name in messages.
        findings: Collects errors.
        default: The type of a section without one.
        defaults: Replace the defaults of a dataclass, by type.
    """
    if not isinstance(section, Mapping):
        findings.errors.append(f'{path} must be an object; got {section!r}')
        return None
    kind = section.get('type', default)
    if kind is None:
        near = next((key for key in section if near_miss(key, ['type'])), None)
        findings.errors.append(
            f'{path}.type is missing'
            + (f' (you wrote {near!r})' if near else '')
            + f'; it takes {" or ".join(kinds)}'
        )
        return None
    if kind not in kinds:
        findings.errors.append(f'{path}.type: {unknown("type", kind, kinds)}')
        return None
    return read_section(kinds[kind], section, path, findings, (defaults or {}).get(kind))


def _conditions(entries: Any, findings: Findings) -> list[Any]:
    if not isinstance(entries, (list, tuple)):
        findings.errors.append(
            f'conditions must be a list of objects, each with a type; got {entries!r}'
        )
        return []
    return [
        choose(encoders.CONDITIONS, entry, f'conditions[{i}]', findings)
        for i, entry in enumerate(entries)
    ]


def _density(model: Any, findings: Findings) -> Any:
    section = getattr(model, 'sigma_sample_density', None)
    if section is None or section == PYTHON_DENSITY:
        return None
    density = choose(schedules.DENSITIES, section, 'model.sigma_sample_density', findings)
    try:
        return None if density is None else density.fill_from(model)
    except ValueError as error:
        findings.errors.append(f'model.sigma_sample_density.{error}')
        return None


def fill_defaults(raw: Mapping[str, Any], sections: Sections) -> dict[str, Any]:
    """Return the config with every default as plain JSON values; unknown keys stay in place.

    Args:
        raw: The config.
        sections: Its sections.
    """
    complete = dict(raw)
    for field in dataclasses.fields(Sections):
        if field.name != 'density':
            instance = getattr(sections, field.name)
            if isinstance(instance, list):
                complete[field.name] = [plain(dataclasses.asdict(entry)) for entry in instance]
                continue
            complete[field.name] = {
                **raw.get(field.name, {}),
                **plain(dataclasses.asdict(instance)),
            }
    return complete


def plain(value: Any) -> Any:
    """Return a value in plain JSON types.

    Args:
        value: The value.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def find_config(path: str | os.PathLike[str]) -> Path:
    """Return the path of a config: a file, or else the shipped one of that name.

    Names work with or without configs/ and .json: config_mnist, configs/config_mnist.json,
    autoencoders/icons.

    Args:
        path: The path or name.
    """
    path = Path(path)
    if path.is_file() or path.suffix not in ('', '.json'):
        return path
    parts = path.with_suffix('').parts
    start = max((i + 1 for i, part in enumerate(parts) if part == 'configs'), default=0)
    return shipped_configs().get('/'.join(parts[start:]), path)


def shipped_configs() -> dict[str, Path]:
    """Return the paths of the configs in the package, by names such as config_demo."""
    package = Path(__file__).resolve().parents[1]
    installed, in_clone = package / 'configs', package.parent / 'configs'
    folder = installed if installed.is_dir() else in_clone
    return {
        path.relative_to(folder).with_suffix('').as_posix(): path
        for path in sorted(folder.rglob('*.json'))
    }


def shipped_config(name: str) -> Path:
    """Return the path of a config in the package by its name.

    Args:
        name: A name such as 'config_demo'.

    Raises:
        FileNotFoundError: If there is none.
    """
    paths = shipped_configs()
    if name not in paths:
        raise FileNotFoundError(unknown('shipped config', name, paths))
    return paths[name]
