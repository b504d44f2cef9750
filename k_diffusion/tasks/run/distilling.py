"""Compute the loss of a flow map in training: the levels of a batch and the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ...config import Experiment, load_model
from ...core.devices import send
from ...core.draws import Draws
from ...core.images import from_bytes
from ...core.random import derive_seed
from ...core.weights import fingerprint
from ...data import RowStream, StreamData, read_items
from ...denoisers import FlowMap
from ...denoisers.consistency_tuning import consistency_loss, end_level, middle_level
from ...denoisers.guided_data import guide_data
from ...denoisers.mean_flow import mean_flow_loss
from ...denoisers.path_regression import choose_points, path_loss
from ...generation import SamplingConfig
from ...training import DistillationConfig, unwrap
from .objective import Conditions, Objective
from .teacher_paths import TeacherPaths, teacher_paths

#: The share of items of meanflow whose second level is the first: plain flow matching.
EQUAL = 0.5
#: The second level of ect is at most at this share of the first one's angle.
NEAREST = 0.98


class Example(NamedTuple):
    """A batch as the losses take it.

    Attributes:
        data: Clean data, [B, ...].
        noise: [B, ...].
        sigma: Noise levels, [B].
        cond: The conditions, by name.
        items: Positions in the stream of items, B whole numbers.
        guided_data: The data under the guidance that is distilled in; None without guidance.
    """

    data: Tensor
    noise: Tensor
    sigma: Tensor
    cond: dict[str, Any]
    items: list[int]
    guided_data: Tensor | None = None


def open_teacher(
    experiment: Experiment,
    state: Mapping[str, Any] | None,
    network: nn.Module | str | None,
    device: torch.device,
    allow_code: bool,
) -> nn.Module | None:
    """Return the teacher of a run and write the digest of its weights into the config.

    Args:
        experiment: The experiment of the run.
        state: The checkpoint that the run continues from, or None.
        network: The network, if it is not one of this package.
        device: The device of the teacher.
        allow_code: Allow the file of the network to run.

    Returns:
        The teacher; None if the config has none.

    Raises:
        ValueError: The teacher is a flow map, its samples have another shape than those of the
            model, or its weights are not those that the run started with.
    """
    section = experiment.sections.distillation
    if section.method is None or section.teacher is None:
        return None
    teacher, _ = load_model(section.teacher, device, network=network, allow_code=allow_code)
    own: Experiment = teacher.experiment  # type: ignore[assignment]
    if own.shape != experiment.shape:
        raise ValueError(
            f'distillation.teacher must be a model of shape {experiment.shape}; got {own.shape} '
            f'in {section.teacher}'
        )
    if isinstance(teacher, FlowMap):
        raise ValueError(
            f'distillation.teacher must be a denoiser; {section.teacher} is a flow map, which is '
            'distilled already'
        )
    digest = fingerprint(teacher.state_dict())
    before = ((state or {}).get('config') or {}).get('distillation') or {}
    if before.get('teacher_digest') not in (None, digest):
        raise ValueError(
            'distillation.teacher must have the weights that the run began with; '
            f'{section.teacher} has others: give that checkpoint, or begin a new run with '
            'another name'
        )
    experiment.update('distillation', teacher_digest=digest)
    return teacher


def add_missing_inputs(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a flow map's own inputs, which start without effect, to the weights of a denoiser.

    Args:
        network: The network of the flow map.
        weights: The weights of the denoiser.

    Returns:
        Weights that fit the network.
    """
    own = {k: v for k, v in network.state_dict().items() if 'map_inputs.' in k}
    return {**own, **weights}


@dataclass
class Distillation:
    """The parts of the loss of a run with a section "distillation".

    Attributes:
        experiment: The experiment of the run, its data set open.
        teacher: The teacher, or None.
        conditions: The conditions besides the class.
        null: The null conditions, by name.
        draws: The random numbers of an item.
        end_step: The number of steps of the run.
    """

    experiment: Experiment
    teacher: nn.Module | None
    conditions: Conditions
    null: dict[str, Any]
    draws: Draws
    end_step: int | None

    def make_loss(
        self,
        model: nn.Module,
        objective: Objective,
        folder: Path,
        device: torch.device,
        say: Callable[[str], None],
    ) -> Distiller:
        """Return the loss, a function from a batch to [B].

        Args:
            model: The network in training.
            objective: Makes clean data, noise, levels and conditions of a batch.
            folder: The folder of the run, which caches the paths of the teacher.
            device: The device of the teacher.
            say: Report a line of text.

        Raises:
            ValueError: The run has no end, or the paths cannot be drawn.
        """
        if self.end_step is None:
            raise ValueError('end_step must be given for a distillation, whose schedule it sets')
        return Distiller(
            cast(FlowMap, self.experiment.wrap(model)),
            cast(FlowMap, self.experiment.wrap(unwrap(model))),
            objective,
            self.experiment.sections.distillation,
            self.experiment.sections.model.sigma_max,
            self.draws.seed,
            self.end_step,
            self.null,
            self.teacher,
            self.draw_paths(folder, device, say),
        )

    def draw_paths(
        self, folder: Path, device: torch.device, say: Callable[[str], None]
    ) -> TeacherPaths | None:
        """Return the paths of the method cmt; None for other methods.

        Paths use the conditions of the items of the data set in turn.

        Args:
            folder: The folder of the run.
            device: The device of the teacher.
            say: Report a line of text.
        """
        section = self.experiment.sections.distillation
        if section.method != 'cmt' or self.teacher is None:
            return None
        own: Experiment = self.teacher.experiment  # type: ignore[assignment]
        sampling = own.sections.sampling
        how = SamplingConfig(
            sampling.sampler,
            section.path_steps,
            sampling.schedule,
            section.guidance,
            section.guidance_interval,
        )
        return teacher_paths(
            folder / 'cache' / 'teacher_paths.safetensors',
            self.teacher,
            str(section.teacher),
            how,
            self.null,
            self._conditions_of,
            section.paths,
            self.draws.seed,
            device,
            say,
        )

    def _conditions_of(self, items: Sequence[int]) -> dict[str, Tensor]:
        """Return the conditions of paths: those of the items of the data set in turn.

        The items of a stream have no numbers; there it is each class in turn.
        """
        dataset = self.experiment.dataset()
        num_classes = self.experiment.sections.dataset.num_classes
        if not num_classes and not self.conditions:
            return {}
        if isinstance(dataset, (RowStream, StreamData)):
            if self.conditions:
                raise ValueError(
                    'distillation.method must not be cmt for a stream of data with conditions '
                    'besides classes; take ect, or decode the data'
                )
            return {'class_cond': torch.tensor(list(items)) % num_classes}
        images, labels, index, _, texts = read_items(dataset, [i % len(dataset) for i in items])
        batch = {
            'image': from_bytes(images) if images.dtype == torch.uint8 else images,
            'index': index,
            'item': torch.tensor(list(items)),
            'class_cond': labels,
            'text': texts,
        }
        cond = {'class_cond': labels} if num_classes and labels is not None else {}
        for _, condition in self.conditions:
            cond.update(condition.prepare(batch, self.draws))
        return cond


@dataclass
class Distiller:
    """The loss of a flow map as a function from a batch to [B].

    All random numbers are a function of (seed, item), and the position in the schedules is one of
    the step, `batch['step']`.

    Attributes:
        flow_map: The model in training.
        plain: The same network without wrappers of parallel training.
        objective: Makes clean data, noise, levels and conditions of a batch.
        section: The method and its settings.
        sigma_max: The level that samples start from.
        seed: The seed.
        end_step: The number of steps of the run.
        null: The null conditions, by name.
        teacher: The teacher.
        paths: Its paths.
    """

    flow_map: FlowMap
    plain: FlowMap
    objective: Objective
    section: DistillationConfig
    sigma_max: float
    seed: int
    end_step: int
    null: Mapping[str, Any]
    teacher: nn.Module | None = None
    paths: TeacherPaths | None = None

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        step = batch['step']  # not of its items: a change of the batch size would move them
        first = 0
        if self.paths is not None:
            first = round(self.section.path_share * self.end_step)
            if step < first:
                return self._regress(batch['item'].tolist(), batch['image'].device)
        # After paths the map is consistent already: far levels would make a denoiser of it again.
        progress = step / self.end_step if self.paths is None else 1.0
        data, noise, sigma, cond = self.objective.prepare(batch)
        items = batch['item'].tolist()
        example = self._begin(Example(data, noise, sigma, cond, items))
        if self.section.method == 'meanflow':
            return self._mean_flow(example)
        return self._tune(example, progress)

    def make_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the inputs of the objective for `batch`, which the trainer sends to the device."""
        return self.objective.make_inputs(batch)

    def _regress(self, items: Sequence[int], device: torch.device) -> Tensor:
        """Return the loss on points of the teacher's paths."""
        assert self.paths is not None
        count = len(self.paths.x)
        paths = torch.tensor([derive_seed(self.seed, 'which path', i) % count for i in items])
        i, j = choose_points(
            self.paths.levels,
            self.flow_map.sigma_data,
            self._uniform('point', items),
            self._uniform('later point', items),
            self._uniform('start', items) < self.section.starts,
            self._uniform('end', items) < self.section.ends,
        )
        x, sigma = self.paths.at(paths, i, device)
        x_next, sigma_next = self.paths.at(paths, j, device)
        cond = self.paths.conditions(paths, device)
        return path_loss(self.flow_map, x, sigma, x_next, sigma_next, **cond)

    def _tune(self, example: Example, progress: float) -> Tensor:
        """Return the loss of consistency tuning."""
        data, noise, sigma, cond, items, guided_data = example
        sigma_data = self.flow_map.sigma_data
        at_end = send(self._uniform('end', items) < self.section.ends, sigma.device)
        share = send(self._uniform('second level', items), sigma.device).clamp(max=NEAREST)
        second = end_level(sigma, sigma_data, share, at_end)
        middle = middle_level(sigma, second, progress, self.section.stages, sigma_data)
        return consistency_loss(
            self.flow_map, data, noise, sigma, middle, second, guided_data, **cond
        )

    def _mean_flow(self, example: Example) -> Tensor:
        """Return the loss of mean flows."""
        data, noise, sigma, cond, items, guided_data = example
        at_end = send(self._uniform('end', items) < self.section.ends, sigma.device)
        second = end_level(
            sigma,
            self.flow_map.sigma_data,
            send(self._uniform('second level', items), sigma.device),
            at_end,
        )
        equal = send(self._uniform('equal levels', items) < EQUAL, sigma.device)
        second = torch.where(equal, sigma, second)
        return mean_flow_loss(
            self.flow_map, self.plain, data, noise, sigma, second, guided_data, **cond
        )

    def _begin(self, example: Example) -> Example:
        """Return an example with starts at sigma_max and the guidance that is distilled in.

        A share of the items starts at sigma_max; the guidance moves the data.
        """
        data, noise, sigma, cond, items, guided_data = example
        starts = send(self._uniform('start', items) < self.section.starts, sigma.device)
        sigma = sigma.masked_fill(starts, self.sigma_max)
        if self.section.guided:
            scale, cond = self._scales(sigma, items, cond)
            guided_data = guide_data(
                self._guide, data, noise, sigma, cond, self.null, scale, self._interval
            )
        return Example(data, noise, sigma, cond, items, guided_data)

    def _scales(
        self, like: Tensor, items: Sequence[int], cond: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the guidance scales [B], and the conditions with them if they are an input.

        As an input, the logarithm of the scale is uniform.
        """
        if self.section.guidance_max is None:
            return torch.full_like(like, self.section.guidance), cond
        u = send(self._uniform('guidance', items).to(like.dtype), like.device)
        scale = self.section.guidance_max**u
        return scale, {**cond, 'guidance_scale': scale}

    def _guide(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the estimate of the guiding denoiser: the teacher, or the model itself."""
        if self.teacher is None:
            return self.plain.denoiser(x, sigma, **cond)
        cond.pop('guidance_scale', None)
        estimate: Tensor = self.teacher(x, sigma, **cond)
        return estimate

    @property
    def _interval(self) -> tuple[float, float] | None:
        return self.section.guidance_interval

    def _uniform(self, name: str, items: Sequence[int]) -> Tensor:
        """Return a number in [0, 1) for each item, on the CPU."""
        draws = [derive_seed(self.seed, name, item) / 2**63 for item in items]
        return torch.tensor(draws, dtype=torch.float64)
