"""The samplers in the denoise loop of a modular pipeline of diffusers.

The blocks of the pipeline's own loop are kept: they prepare the input of the network, call the
guider and the network, and apply masks. They run once for each model call of the sampler.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from ..sampling import Request
from .diffusers import KDiffusionScheduler


class KDiffusionLoop(LoopSequentialPipelineBlocks):
    """The loop of a denoise block, run by a sampler; `use_samplers` makes such blocks.

    A guider receives the step of the sampler and the number of steps, so that its start and stop
    are shares of the steps also where the sampler calls the network twice in one. CFG++ samplers
    take the unconditional estimate from the guider. Calls that a sampler does not use are skipped.
    """

    @property
    def loop_inputs(self) -> list[InputParam]:
        """Return the inputs of the loop, with the generator."""
        generator = InputParam(
            'generator',
            description='One, or one for each image: the noise of the steps is drawn from it.',
        )
        return [*super().loop_inputs, generator]

    def loop_step(self, components: Any, state: Any, **kwargs: Any) -> Any:
        """Run the blocks of one model call.

        Args:
            components: The components of the pipeline.
            state: Its state.
            **kwargs: The index i of the call among the times, and its time t.
        """
        scheduler = components.scheduler
        if not isinstance(scheduler, KDiffusionScheduler):
            raise ValueError(
                'the component scheduler must be a KDiffusionScheduler; got '
                f'{type(scheduler).__name__}: pipe.update_components('
                'scheduler=KDiffusionScheduler.from_config(pipe.scheduler.config))'
            )
        request = scheduler.begin_run(kwargs['t'], state.latents, getattr(state, 'generator', None))
        if request is None:
            unused: Any = None
            state.latents = scheduler.step(unused, kwargs['t'], state.latents, return_dict=False)[0]
            return components, state
        with _follow(getattr(components, 'guider', None), scheduler, request):
            return super().loop_step(components, state, **kwargs)


@contextlib.contextmanager
def _follow(guider: Any, scheduler: KDiffusionScheduler, request: Request) -> Iterator[None]:
    """Pass the steps of the sampler to a guider, and the guider's outputs to the scheduler."""
    if guider is None:
        yield
        return
    set_state, forward = guider.set_state, guider.forward

    def set_step(step: int, num_inference_steps: int, timestep: Any) -> None:
        set_state(request.i, request.n or num_inference_steps, timestep)

    def look(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        scheduler.unconditional = getattr(output, 'pred_uncond', None)
        return output

    guider.set_state, guider.forward = set_step, look
    try:
        yield
    finally:
        del guider.set_state, guider.forward


def use_samplers(blocks: Any) -> Any:
    """Replace the denoise loops in the blocks of a modular pipeline by loops that run a sampler.

    The component scheduler of the pipeline must then be a KDiffusionScheduler.

    Args:
        blocks: The blocks of a pipeline, which are changed in place, or one denoise block.

    Returns:
        The blocks.

    Example:
        pipe = use_samplers(StableDiffusionXLAutoBlocks()).init_pipeline()
    """
    parts = getattr(blocks, 'sub_blocks', {})
    for name, block in parts.items():
        parts[name] = use_samplers(block)
    if not isinstance(blocks, LoopSequentialPipelineBlocks) or isinstance(blocks, KDiffusionLoop):
        return blocks
    kind = type(blocks)
    loop_class = type(f'KDiffusion{kind.__name__}', (KDiffusionLoop, kind), {})()
    loop_class.sub_blocks = parts
    return loop_class
