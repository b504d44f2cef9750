"""Weights as other projects publish them: read safely, recognised by the names of their tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.pickles import Record, read_pickle, state_of, tensors_of
from ..core.weights import load_safetensors

#: The settings of guided-diffusion's published networks: arguments of its
#: create_model_and_diffusion.
_GUIDED: dict[str, Any] = {
    'attention_resolutions': '32,16,8',
    'class_cond': True,
    'diffusion_steps': 1000,
    'learn_sigma': True,
    'noise_schedule': 'linear',
    'num_channels': 256,
    'num_head_channels': 64,
    'num_res_blocks': 2,
    'resblock_updown': True,
    'use_scale_shift_norm': True,
}
GUIDED_DIFFUSION: dict[str, dict[str, Any]] = {
    '64x64_diffusion': {
        **_GUIDED,
        'image_size': 64,
        'num_channels': 192,
        'num_res_blocks': 3,
        'noise_schedule': 'cosine',
        'dropout': 0.1,
        'use_new_attention_order': True,
    },
    '128x128_diffusion': {
        **{k: v for k, v in _GUIDED.items() if k != 'num_head_channels'},
        'image_size': 128,
        'num_heads': 4,
    },
    '256x256_diffusion': {**_GUIDED, 'image_size': 256},
    '256x256_diffusion_uncond': {**_GUIDED, 'image_size': 256, 'class_cond': False},
    '512x512_diffusion': {**_GUIDED, 'image_size': 512},
    'lsun': {**_GUIDED, 'image_size': 256, 'class_cond': False, 'dropout': 0.1},
    'lsun_horse_nodropout': {**_GUIDED, 'image_size': 256, 'class_cond': False, 'dropout': 0.0},
}
#: Those of its upsamplers: arguments of its sr_create_model_and_diffusion.
_UPSAMPLER: dict[str, Any] = {k: v for k, v in _GUIDED.items() if k != 'num_head_channels'} | {
    'num_channels': 192
}
GUIDED_UPSAMPLERS: dict[str, dict[str, Any]] = {
    '64_256_upsampler': {**_UPSAMPLER, 'large_size': 256, 'small_size': 64, 'num_heads': 4},
    '128_512_upsampler': {
        **_UPSAMPLER,
        'large_size': 512,
        'small_size': 128,
        'num_head_channels': 64,
        'attention_resolutions': '32,16',
    },
}


@dataclass(frozen=True)
class Published:
    """A file of weights: its family, and the class of network that it needs.

    Attributes:
        family: The project.
        network: The class, as its own project names it.
        weights: The tensors by name.
        arguments: Arguments of the class, if the file tells them.
        parts: Other content of the file, by its name there: "first_stage_model" and
            "cond_stage_model" of a CompVis model.
        advice: How to build the network.
    """

    family: str
    network: str
    weights: dict[str, Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    advice: str = ''

    def into(self, network: Any) -> nn.Module:
        """Load the weights into a network, and return it in evaluation mode.

        Args:
            network: An instance, or its class, which is called with `arguments`.

        Raises:
            TypeError: If it is not a network or its class.
            ValueError: If its parameters do not fit the weights.
        """
        if not isinstance(network, nn.Module) and not callable(network):
            raise TypeError(
                f'network must be a network or its class, {self.network}; got '
                f'{type(network).__name__}'
            )
        try:
            module: nn.Module = (
                network if isinstance(network, nn.Module) else network(**self.arguments)
            )
        except TypeError as error:
            raise TypeError(
                f'network must be {self.network}; {getattr(network, "__name__", network)} cannot '
                f'be called with the arguments {", ".join(self.arguments) or "none"}: {error}'
            ) from error
        if not isinstance(module, nn.Module):
            raise TypeError(
                'network must be a network or its class; got a function that returns '
                f'{type(module).__name__}. Call it, and pass the network'
            )
        self._check_shapes(module)
        missing, unexpected = module.load_state_dict(self.weights, strict=False)
        persistent = [name for name in missing if name in dict(module.named_parameters())]
        if persistent or unexpected:
            odd = (persistent or unexpected)[0]
            raise ValueError(
                f'network must fit these weights of {self.family}, which need {self.network}; got '
                f'{type(module).__name__} ({odd} is only in '
                f'{"the network" if persistent else "the file"}). {self.advice}'
            )
        return module.eval().requires_grad_(False)

    def _check_shapes(self, network: nn.Module) -> None:
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        odd = next(
            (
                name
                for name, value in self.weights.items()
                if shapes.get(name, value.shape) != value.shape
            ),
            None,
        )
        if odd is not None:
            raise ValueError(
                f'network must fit these weights of {self.family}; {odd} has the shape '
                f'{list(shapes[odd])} in {type(network).__name__} and '
                f'{list(self.weights[odd].shape)} in the file. Make the network with the arguments '
                f'of the file, {self.arguments}'
            )


def load_published(path: str | os.PathLike[str], ema: bool = True) -> Published:
    """Read weights that another project published, without executing anything in the file.

    Files: guided-diffusion .pt, v-diffusion .pth, CompVis and Stable Diffusion .ckpt or
    .safetensors, EDM and EDM2 .pkl. For folders of diffusers use `from_diffusers`, for files of
    this project K.load_model.

    Args:
        path: The file.
        ema: Take the averaged weights if a file has both.

    Raises:
        TypeError: If path is not a path.
        ValueError: If the file is of another kind, or cannot be read safely.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f'path must be the path of a file; got {type(path).__name__}')
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f'path must be a file; {path} is a folder. Pass it to K.external.from_diffusers, or to '
            'K.load_model for a run of this project'
        )
    content: Any = load_safetensors(path) if path.suffix == '.safetensors' else read_pickle(path)
    if isinstance(content, Mapping):
        network = next(
            (
                key
                for key in (('ema', 'net') if ema else ('net', 'ema'))
                if _is_network(content.get(key))
            ),
            None,
        )
        if network is not None:
            return _edm(content, network)
        if isinstance(content.get('net'), Mapping) and 'optimizer' in content:
            raise ValueError(
                f'{path} is the training state of EDM2, which does not state its network; load a '
                'snapshot of the run, network-snapshot-*.pkl'
            )
    if isinstance(content, Mapping) and 'model_ema' in content and 'config' in content:
        raise ValueError(f'{path} is a checkpoint of this project; load it with K.load_model')
    if isinstance(content, Mapping) and isinstance(content.get('state_dict'), Mapping):
        content = content['state_dict']
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise ValueError(
            f'{path} must hold a state dict or a network of EDM; got {type(content).__name__}. '
            'Export a state dict of it'
        )
    return _by_names(path, dict(content), ema)


def _by_names(path: Path, weights: dict[str, Tensor], ema: bool) -> Published:
    """Recognise a state dict by the names of its tensors."""
    if any(key.startswith('model.diffusion_model.') for key in weights):
        return _compvis(weights, ema)
    if 'time_embed.0.weight' in weights and 'input_blocks.0.0.weight' in weights:
        return _guided_diffusion(path, weights)
    if 'timestep_embed.weight' in weights or any(key.startswith('net.0.') for key in weights):
        return Published(
            'v-diffusion',
            f'the class that its get_model names for {path.stem}',
            weights,
            advice='Build it with v-diffusion-pytorch: diffusion.get_model(name)(), then '
            'K.external.VDenoiser.',
        )
    first = ', '.join(list(weights)[:3])
    raise ValueError(
        f'{path} holds tensors named {first}, ... of no known family (guided-diffusion, '
        'v-diffusion, CompVis, EDM); load them into your own network and pass that to '
        'K.external.wrap'
    )


def _compvis(weights: dict[str, Tensor], ema: bool) -> Published:
    unet = _under(weights, 'model.diffusion_model.')
    averaged = _under(weights, 'model_ema.')
    if ema and averaged:  # averaged weights have names without dots
        unet = {
            key: averaged.get(f'diffusion_model{key.replace(".", "")}', value)
            for key, value in unet.items()
        }
    parts = {
        name: _under(weights, f'{name}.') for name in ('first_stage_model', 'cond_stage_model')
    }
    kinds = {768: 'Stable Diffusion 1', 1024: 'Stable Diffusion 2', 2048: 'Stable Diffusion XL'}
    key = next((key for key in unet if key.endswith('attn2.to_k.weight')), None)
    family = (
        'CompVis latent diffusion'
        if key is None
        else kinds.get(unet[key].shape[1], 'CompVis latent diffusion')
    )
    parts['others'] = {
        key: weights[key] for key in ('alphas_cumprod', 'betas', 'scale_factor') if key in weights
    }
    return Published(
        family,
        'UNetModel of ldm.modules.diffusionmodules.openaimodel',
        unet,
        parts={k: v for k, v in parts.items() if v},
        advice='Or convert the file with diffusers (from_single_file) and pass the pipeline to '
        'K.external.from_diffusers.',
    )


def _guided_diffusion(path: Path, weights: dict[str, Tensor]) -> Published:
    if 'out.2.weight' not in weights or weights['out.2.weight'].ndim != 4:
        return Published(
            'guided-diffusion',
            'EncoderUNetModel of guided_diffusion.unet (a classifier)',
            weights,
            advice='Build it with create_classifier and the flags of its README; guide with '
            'K.external.openai_classifier.',
        )
    facts = {
        'class_cond': 'label_emb.weight' in weights,
        'learn_sigma': len(weights['out.2.weight']) == 6,
        'num_channels': weights['time_embed.0.weight'].shape[1],
    }
    if weights['input_blocks.0.0.weight'].shape[1] == 6:  # x and the low resolution
        return Published(
            'guided-diffusion',
            'SuperResModel of guided_diffusion.unet (an upsampler)',
            weights,
            {**_preset(path, GUIDED_UPSAMPLERS), **facts},
            advice='Call its sr_create_model_and_diffusion with these arguments over its defaults, '
            'and pass the network and the diffusion to K.external.wrap; the small image is the '
            'condition low_res.',
        )
    return Published(
        'guided-diffusion',
        'UNetModel of guided_diffusion.unet',
        weights,
        {**_preset(path, GUIDED_DIFFUSION), **facts},
        advice='Its create_model_and_diffusion takes these arguments over its defaults and gives '
        'the network and the '
        'diffusion, which K.external.wrap takes.',
    )


def _preset(path: Path, presets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of the longest name with which the file name begins."""
    fitting = [name for name in presets if path.stem == name or path.stem.startswith(f'{name}_')]
    return presets[max(fitting, key=len)] if fitting else {}


def _edm(content: Mapping[str, Any], key: str) -> Published:
    record = content[key]
    meta = record.arguments[0] if record.arguments else {}
    state = state_of(record)
    name = str(meta.get('class_name', record.name)) if isinstance(meta, dict) else record.name
    kwargs = {
        k: v for k, v in dict(state.get('_init_kwargs') or {}).items() if not isinstance(v, Record)
    }
    file = 'training.networks_edm2' if name == 'Precond' else 'training.networks'
    weights = dict(tensors_of(record))
    if not weights or not all(torch.is_tensor(tensor) for tensor in weights.values()):
        raise ValueError(
            f'the network {name!r} in this file must hold tensors that can be read without '
            'running its code; found none'
        )
    return Published(
        'EDM2' if name == 'Precond' else 'EDM',
        f'{name} of {file}',
        weights,
        kwargs,
        advice='Pass that class to .into(...), and the result to K.external.wrap.',
    )


def _is_network(value: Any) -> bool:
    """Return True for a pickled network: a record that holds modules."""
    return isinstance(value, Record) and '_modules' in state_of(value)


def _under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }
