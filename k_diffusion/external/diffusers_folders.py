"""Loading network, scheduler and ControlNet from the folder of a diffusers pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.extras import require
from ..core.hub import hub_fault

#: A file of weights: its variant, and its number among several.
_WEIGHTS = re.compile(
    r'diffusion_pytorch_model(?:-\d{5}-of-\d{5})?(?:\.(?P<variant>[^.]+?))?'
    r'(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)'
)


def load_parts(source: str, dtype: torch.dtype | None, variant: str | None) -> tuple[Any, Any, Any]:
    """Load the network, the scheduler and the ControlNet of a pipeline's folder or hub name.

    A missing part is None.

    Args:
        source: The folder or the name.
        dtype: The dtype of the network; None for float32.
        variant: The variant of the weights, such as 'fp16'; None for those without one or, if there
            are none, for the only variant.

    Raises:
        FileNotFoundError: If the folder, the name or the variant does not exist.
        ValueError: If the pipeline has two networks, or classes outside diffusers.
    """
    diffusers = require('diffusers', 'diffusers', 'loading a diffusers model')
    index = _read_index(diffusers, source)
    parts = {
        key: index[key]
        for key in ('unet', 'transformer', 'scheduler', 'controlnet')
        if index.get(key) not in (None, [None, None])
    }
    second = next(
        (key for key in ('transformer_2', 'unet_2') if index.get(key) not in (None, [None, None])),
        None,
    )
    if second is not None:
        raise ValueError(
            f'source must have one network; {source} has a second, {second}, for other noise '
            'levels. Load each yourself and pass it with the scheduler'
        )
    for key, (library, name) in parts.items():
        if library != 'diffusers' or not hasattr(diffusers, name):
            raise ValueError(
                f'source must use classes of diffusers only, because others are code that comes '
                f'with the weights; {source} has {name} of {library} as its {key}'
            )
    components: dict[str, Any] = {}
    for key, (_, name) in parts.items():
        options = {} if key == 'scheduler' else _weight_options(source, key, dtype, variant)
        options['local_files_only'] = hub_fault(source) is not None
        try:
            components[key] = getattr(diffusers, name).from_pretrained(
                source, subfolder=key, **options
            )
        except Exception as error:  # damaged and missing files raise many kinds
            lines = str(error).strip().splitlines() or ['']
            kind = FileNotFoundError if isinstance(error, OSError) else ValueError
            raise kind(
                f'the {key} of {source} cannot be loaded ({type(error).__name__}: {lines[0]}); the '
                f'folder {key} must hold its config and its weights. If they have a variant, pass '
                'variant='
            ) from error
    return (
        components.get('unet', components.get('transformer')),
        components.get('scheduler'),
        components.get('controlnet'),
    )


def choose_variant(folder: Path, variant: str | None) -> str | None:
    """Return the requested variant of the weights in a folder, or the only one.

    Args:
        folder: The folder.
        variant: The requested variant, or None.

    Raises:
        FileNotFoundError: If the folder has no weights, or none of that variant.
        ValueError: If none was requested and several fit.
    """
    variants = (
        {
            match['variant'] or ''
            for file in sorted(folder.iterdir())
            if (match := _WEIGHTS.fullmatch(file.name))
        }
        if folder.is_dir()
        else set()
    )
    names = ', '.join(repr(name) for name in sorted(variants - {''})) or 'none'
    if not variants:
        raise FileNotFoundError(f'{folder} holds no weights (diffusion_pytorch_model*.safetensors)')
    if variant is not None:
        if variant not in variants:
            raise FileNotFoundError(
                f'variant must be one of those in {folder}: {names}; got {variant!r}'
                + ('; omit it for the weights without a variant' if '' in variants else '')
            )
        return variant
    if '' in variants:
        return None
    if len(variants) > 1:
        raise ValueError(
            f'variant must be given for {folder}, which has several and none without: {names}'
        )
    return variants.pop()


def _weight_options(
    source: str, key: str, dtype: torch.dtype | None, variant: str | None
) -> dict[str, Any]:
    """Return the options of from_pretrained for the weights."""
    if Path(source).is_dir():
        variant = choose_variant(Path(source) / key, variant)
    return {
        **({} if dtype is None else {'torch_dtype': dtype}),
        **({} if variant is None else {'variant': variant}),
    }


def _read_index(diffusers: Any, source: str) -> Mapping[str, Any]:
    """Return the model_index.json of a pipeline's folder or hub name."""
    path = Path(source)
    if path.is_file():
        raise ValueError(
            f'source must be the folder of a pipeline; {source} is a file. Read it with '
            'K.external.load_published, or convert it with diffusers (from_single_file) and '
            'pass the pipeline'
        )
    fault = hub_fault(source)
    try:
        index: Mapping[str, Any] = diffusers.DiffusionPipeline.load_config(
            source, local_files_only=fault is not None
        )
    except Exception as error:  # hub clients and a damaged file raise many kinds
        if (path / 'model_index.json').is_file():
            raise ValueError(
                f'{path / "model_index.json"} cannot be read ({type(error).__name__}); save the '
                'pipeline again'
            ) from None
        why = f' ({fault})' if fault else ''
        where = (
            'is a folder without model_index.json'
            if path.is_dir()
            else (f'is not a folder, and no model of that name is available{why}')
        )
        raise FileNotFoundError(
            'source must be the folder of a diffusers pipeline, or a model and its scheduler; '
            f'{source} {where}'
        ) from None
    return index
