"""The samplers as a scheduler of diffusers pipelines.

A pipeline evaluates its network at one time after another and passes each output to
`scheduler.step`. The scheduler therefore runs a sampler with its model outside
(K.sampling.requests): `timesteps` are the times of the sampler's model calls, and `step` returns
the latents of the next call.

Latents are clean + sigma noise, as with EulerDiscreteScheduler; for flows (1 - t) clean + t noise.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor, nn

from ..core.arguments import check_whole, show_value
from ..core.devices import has_float64
from ..core.files import read_json
from ..core.tensors import append_dims
from ..external.diffusers_tokens import Packing
from ..external.flow import FlowDenoiser
from ..external.frames import Frame
from ..external.schedule import DiscreteSchedule
from ..external.schedulers import complete_config, make_denoiser, make_scheduler, scheduler_sigmas
from ..generation import list_calls, make_seeds, plan, request_batch, resume_calls, split_title
from ..sampling import Request, Sampler, draw_seeds, find_sampler
from ..sampling.calibration.files import from_dict


class _Clock(nn.Module):
    """A network whose output is its time, to find the time of a level."""

    flow_time_scale = 1000.0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return t


class KDiffusionScheduler(SchedulerMixin, ConfigMixin):
    """Any sampler and any schedule of k-diffusion in a pipeline of diffusers.

    `num_inference_steps` is the number of steps of the schedule (of model calls for a calibration).
    Samplers with several stages evaluate the network several times in a step. If a sampler does not
    evaluate it at the first level (churn, afs, calibrations), the first output of the network is
    ignored. dpm_adaptive makes at most num_inference_steps calls. CFG++ needs `watch(pipe.unet)`
    and a guidance_scale above 1.

    Args:
        sampler: The name of a sampler, or a title: 'DPM++ 2M Karras'.
        schedule: The name of a schedule; None for the levels of the pipeline's own scheduler, with
            its spacing and shift.
        sampler_options: Options of the sampler.
        calibration: A file of `k-diffusion calibrate`, or its content, in place of sampler and
            schedule. The content is saved with the scheduler.
        seed: Seeds of the noise of the steps, as `seeds` of K.sample: one number, or one for each
            image. With None a number for each image is drawn from the generators that the pipeline
            passes, or from torch's global generator.
        latent_shape: The shape of an image's latents, [C, H, W], in pipelines that pack them into
            rows (Flux, LTX). By default square images in patches of 2 x 2. It determines the noise
            of stochastic samplers.
        **kwargs: The settings of the pipeline's own scheduler: prediction_type, beta_schedule, ...

    Raises:
        ValueError: If the sampler is unknown, or the settings do not fit each other.

    Example:
        pipe.scheduler = KDiffusionScheduler.from_config(pipe.scheduler.config,
            sampler='dpmpp_2m_sde')
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012
    config_name: Any = 'scheduler_config.json'
    config: Any
    order = 1

    def __init__(
        self,
        sampler: str = 'dpmpp_2m',
        schedule: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        calibration: Any = None,
        seed: int | Sequence[int] | None = None,
        latent_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        name, schedule_of_title = split_title(sampler)
        if not isinstance(sampler_options or {}, Mapping):
            raise ValueError(f'sampler_options must be a dict; got {show_value(sampler_options)}')
        if isinstance(calibration, str):
            with open(calibration, encoding='utf-8') as file:
                calibration = read_json(file.read(), calibration)
        self.register_to_config(
            sampler=name,
            schedule=schedule or schedule_of_title,
            calibration=calibration,
            sampler_options=dict(sampler_options or {}),
            seed=seed,
            latent_shape=latent_shape,
            **{'num_train_timesteps': 1000, 'prediction_type': 'epsilon', **kwargs},
        )
        self.calibration = None if calibration is None else from_dict(calibration)
        takes = self.entry.takes  # without n the number of calls follows from the answers
        self.open_ended = 'sigma_min' in takes and 'n' not in takes
        self.seed = seed
        self.denoiser = make_denoiser(_Clock(), self.original)
        self.is_flow = isinstance(self.denoiser, FlowDenoiser)
        self.frame = Frame(self.is_flow)
        self.num_inference_steps: int | None = None
        self.timesteps = self.sigmas = torch.empty(0)
        self.levels = torch.empty(0)  # of the schedule, [n + 1], as samplers take them
        self._calls: list[float] = []
        self.unconditional: Tensor | None = None  # the network's last such answer, for CFG++
        self._scalings_of: dict[float, tuple[float, ...]] = {}
        self.set_begin_index(None)

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make a scheduler with the settings of another, or of its config, and the given ones.

        A given sampler drops what belonged to another: its options, its calibration, and the
        schedule if the sampler is a title that names one.

        Args:
            config: A scheduler or its config.
            return_unused_kwargs: Return an empty dict as well, for diffusers.
            **kwargs: Settings.
        """
        values = dict(getattr(config, 'config', config) or {})
        if 'sampler' in kwargs:
            titled = split_title(kwargs['sampler'])[1] is not None
            own = ('sampler_options', 'calibration', *['schedule'] * titled)
            values = {key: value for key, value in values.items() if key not in own}
        values = {key: value for key, value in {**values, **kwargs}.items() if key[0] != '_'}
        scheduler = cls(**complete_config(values))
        return (scheduler, {}) if return_unused_kwargs else scheduler

    @functools.cached_property
    def entry(self) -> Sampler:
        """Return the sampler."""
        own = self.calibration
        return find_sampler(self.config.sampler if own is None else own.sampler())

    @functools.cached_property
    def original(self) -> Any:
        """Return the diffusers scheduler that defines the meaning of predictions and times."""
        return make_scheduler(self.config)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
    ) -> None:
        """Choose the noise levels of a run, and thereby the times of the network calls.

        Flow pipelines always pass sigmas, so with a flow a schedule takes precedence over them.

        Args:
            num_inference_steps: Number of steps.
            device: The device of the times.
            sigmas: Replace the schedule, in the form of the pipeline's own scheduler.
            timesteps: Replace the schedule, in the form of the pipeline's own scheduler.
            mu: The shift of a flow, by the number of tokens.

        Raises:
            ValueError: If num_inference_steps is not a number of steps, or an option of the sampler
                is out of its range.
        """
        arguments = {'sigmas': sigmas, 'timesteps': timesteps, 'mu': mu}
        own = {key: value for key, value in arguments.items() if value is not None}
        n = len(own.get('sigmas', own.get('timesteps', ()))) or num_inference_steps
        if n is not None or self.calibration is None:
            check_whole('num_inference_steps', n)
        schedule = self.config.schedule
        explicit = 'timesteps' in own or ('sigmas' in own and not self.is_flow)
        if self.calibration is None and (schedule is None or explicit):
            counted = {} if own.keys() & {'sigmas', 'timesteps'} else {'num_inference_steps': n}
            self.original.set_timesteps(**counted, **own)
            schedule, n = scheduler_sigmas(self.original), None
        self.levels, _, self._options, _ = plan(
            self.denoiser, n, self.entry, schedule, None, None, self.config.sampler_options
        )
        self.num_inference_steps = num_inference_steps or len(self.levels) - 1
        self._calls, self._unused_first = self._list_calls(self.levels)
        self._calls = [float(self.levels[0])] * self._unused_first + self._calls
        self.timesteps = self._times(self._calls).to(device)
        self.sigmas = self.frame.to_level(torch.tensor([*self._calls, float(self.levels[-1])]))
        counts_steps = not self.is_flow and not self.open_ended  # flow pipelines count calls
        self.order = self.entry.nfe if counts_steps else 1
        self.set_begin_index(None)

    def _list_calls(self, levels: Tensor) -> tuple[list[float], int]:
        """Return the levels of the model calls, and 1 if the first is not at the x of the start."""
        if self.open_ended:  # the levels of the schedule, until the sampler calls at its own
            n, positive = self.num_inference_steps or 1, levels[levels > 0].tolist()
            return (positive + positive[-1:] * n)[:n], 0
        calls, at_start = list_calls(self.entry, levels, self._options, self._item)
        return calls, int(not at_start)

    @property
    def _item(self) -> Sequence[int]:
        spectrum = self.calibration.spectrum if self.calibration else self._options.get('spectrum')
        return (1,) if spectrum is None else spectrum.variance.shape

    def _times(self, levels: Sequence[float]) -> Tensor:
        sigma = torch.tensor(levels)  # in float32, as a denoiser works the times out
        return self.denoiser.network(sigma, sigma).float()

    @property
    def init_noise_sigma(self) -> float:
        """Return the factor of unit noise that gives the latents of the first level."""
        high: Any = self.levels[0] if len(self.levels) else self.denoiser.sigma_max
        return 1.0 if self.is_flow else float(high)

    @property
    def step_index(self) -> int | None:
        """Return the index of the next time; None before the first step."""
        return None if self._run is None else self._index

    def set_begin_index(self, begin_index: int | None = 0) -> None:
        """Start a new run at an index of the times; image-to-image skips the first ones.

        Args:
            begin_index: The index, or None.
        """
        self.begin_index, self._index, self._unused = begin_index, 0, 0
        self._run: Generator[Request, Any, Tensor] | None = None
        self._request: Request | None = None
        self._returned: tuple[Tensor, int | None] | None = None
        self._result: Any = None

    def _find_begin(self, timestep: Any) -> int:
        if self.begin_index is not None:
            return self.begin_index
        places = (self.timesteps - torch.as_tensor(timestep).to(self.timesteps)).abs()
        if places[0] == 0:
            return 0
        return (
            len(places) - 1 - int(places.flip(0).argmin())
        )  # the last of equal times starts a step

    def _levels_from(self, begin: int) -> tuple[Tensor, int]:
        """Return the levels of a run from an index on, and the number of outputs it ignores."""
        if not begin:
            return self.levels, self._unused_first
        levels, calls, unused = resume_calls(
            self.entry, self.levels, self._calls, begin, self._options, self._item
        )
        if calls != self._calls[begin:]:
            self._calls[begin:], ends = calls, torch.tensor(calls)
            self.timesteps[begin:] = self._times(calls)  # a pipeline walks views of the times
            self.sigmas[begin:-1] = self.frame.to_level(ends)
        return levels, unused

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the input of the network: c_in x, or a flow's latents unchanged.

        Args:
            sample: The latents, [B, ...].
            timestep: The time.
        """
        if self.is_flow:
            return sample
        if self._request is None or self._unused:
            return sample * self._scalings(self._calls[self._find_begin(timestep)])[2]
        return sample * self._scalings(self._request.level)[2]

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """Pass the output of the network at the latents `sample` to the sampler.

        If the latents were edited after the last step, the sampler continues from the edited ones.

        Args:
            model_output: The output of the network, [B, ...].
            timestep: The time.
            sample: The latents, [B, ...].
            generator: One, or one for each image, from which the seeds of the noise are drawn if
                the scheduler has no seed.
            return_dict: Return an object in place of a tuple.

        Raises:
            ValueError: If it is called before set_timesteps, or too often.
        """
        if not self._calls:
            raise ValueError('step must be called after set_timesteps')
        self.begin_run(timestep, sample, generator)
        denoised: Any = None
        if self._unused:
            self._unused -= 1
        elif self._request is not None:
            self._read_edit(self._request, sample)
            denoised = self._to_denoised(model_output, self._request)
            pair = self._request.pair
            self._send((denoised, self._unconditional(self._request)) if pair else denoised)
        elif self._index >= len(self._calls):
            raise ValueError(
                f'step must be called once for each of the {len(self._calls)} times; '
                'got another call'
            )
        self._index += 1
        output = self._next_sample(sample), denoised
        return EulerDiscreteSchedulerOutput(*output) if return_dict else output

    def begin_run(self, timestep: Any, sample: Tensor, generator: Any = None) -> Request | None:
        """Start the run of the first step, and return its first request, if it is used.

        Args:
            timestep: The time.
            sample: The latents, [B, ...].
            generator: As in `step`.
        """
        if self._run is not None:
            return None if self._unused else self._request
        self._index = self._find_begin(timestep)
        levels, self._unused = self._levels_from(self._index)
        # x of a flow is 1e4 at its first level, where float32 would lose 1e-3
        wide = self.is_flow and has_float64(sample.device)
        tokens = sample.ndim == 3 and self.is_flow
        self._packing = Packing(
            sample.shape, self.config.latent_shape if tokens else sample.shape[1:]
        )
        x = self._packing.unpack(sample).to(
            torch.float64 if wide else torch.promote_types(sample.dtype, torch.float32)
        )
        x = x * (1 / self.frame.factor(float(levels[0])))
        draws = generator is not None and self.seed is None
        seeds = (
            None
            if self.entry.noise is None
            else draw_seeds(x, generator)
            if draws
            else make_seeds(self.seed, len(x))
        )
        self._run = request_batch(self.entry, x, levels, seeds, self._options)
        self._send(None)
        return self.begin_run(timestep, sample)

    def _send(self, answer: Any) -> None:
        try:
            self._request = self._run.send(answer)  # type: ignore[union-attr]
        except StopIteration as end:
            self._request, self._result = None, end.value

    def _next_sample(self, sample: Tensor) -> Tensor:
        """Return the latents of the next network call, or the result."""
        request = self._request
        if request is None:
            x, self._result = self._result, None  # later calls return the latents as they are
            end = self.frame.factor(float(self.levels[-1]))
            return sample if x is None else self._packing.pack(x * end).to(sample.dtype)
        if self._index == len(self._calls):
            raise ValueError(
                'num_inference_steps must be at least the number of model calls of '
                f'{self.entry.name}; got {self._index}, which reached sigma '
                f'{request.level:g}. Raise it, or rtol and atol in sampler_options'
            )
        if self.open_ended:  # a pipeline walks views of the times
            self.timesteps[self._index :] = self._times([request.level]).to(self.timesteps)
        x = self._as_latents(request, sample.dtype)
        self._returned = x, None if x.is_inference() else x._version
        return x

    def _as_latents(self, request: Request, dtype: torch.dtype) -> Tensor:
        x = request.live * self.frame.factor(request.level) if self.is_flow else request.live
        return self._packing.pack(x).to(dtype)

    def _read_edit(self, request: Request, sample: Tensor) -> None:
        """Apply edits of the latents since they were returned."""
        if self._returned is None or sample is request.live:
            return
        state, version = self._returned  # a tensor of inference mode has no version
        if sample is not state or version is None or sample._version != version:
            before = self._as_latents(request, sample.dtype)
            change = sample.to(request.live.dtype) - before.to(request.live.dtype)
            request.live.add_(self._packing.unpack(change) / self.frame.factor(request.level))

    def _to_denoised(self, output: Tensor, request: Request) -> Tensor:
        c_skip, c_out, _ = self._scalings(request.level)
        x = request.live if c_skip == 1 else request.live * c_skip
        return torch.add(x, self._packing.unpack(output).to(x.dtype), alpha=c_out)

    def _scalings(self, level: float) -> tuple[float, ...]:
        if level not in self._scalings_of:
            c = self.denoiser.scalings(torch.tensor(level, dtype=torch.float64))
            self._scalings_of[level] = tuple(float(value) for value in c)
        return self._scalings_of[level]

    def watch(self, network: nn.Module) -> Any:
        """Record the outputs of a pipeline's network; call `remove()` of the result to stop.

        Args:
            network: The network.
        """

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self.unconditional = output[0][: len(output[0]) // 2]

        return network.register_forward_hook(keep)

    def _unconditional(self, request: Request) -> Tensor:
        output, self.unconditional = self.unconditional, None
        if output is None or len(output) != len(request.x):
            raise ValueError(
                f'{self.entry.name} must see the unconditional estimate. Call '
                'scheduler.watch(pipe.unet), and pass a guidance_scale above 1'
            )
        return self._to_denoised(output, request)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return clean latents with the noise of some times.

        Args:
            original_samples: The clean latents, [B, ...].
            noise: Unit noise, [B, ...].
            timesteps: The times [B], or one time.
        """
        t = timesteps.to(original_samples.device, torch.float32).reshape(-1)
        if self.is_flow:
            t = append_dims(t / self.config.num_train_timesteps, noise.ndim).to(noise)
            return (1 - t) * original_samples + t * noise
        table = self.denoiser
        sigma = table.t_to_sigma(t) if isinstance(table, DiscreteSchedule) else (4 * t).exp()
        return original_samples + noise * append_dims(sigma.to(noise), noise.ndim)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return `add_noise` with its arguments in the order of flow pipelines.

        Args:
            sample: The clean latents, [B, ...].
            timestep: The times [B], or one time.
            noise: Unit noise, [B, ...].
        """
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the run, which cannot be copied and restarts in a copy."""
        none = dict.fromkeys(['_run', '_request', '_returned', 'unconditional'])
        return {key: value for key, value in {**vars(self), **none}.items() if key != 'entry'}
