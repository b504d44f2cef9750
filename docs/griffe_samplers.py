"""Extension of griffe: show each sampler with the signature and docstring of its public function.

The decorator `K.sampling.sampler` makes that function of a generator, and `preset` makes it of
another sampler, so the source does not show it.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe


class Samplers(griffe.Extension):
    """Replace the members that are samplers once the package is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Replace the samplers of each module of `k_diffusion.sampling.samplers`."""
        if pkg.path != 'k_diffusion':
            return
        for module in pkg['sampling.samplers'].modules.values():
            loaded = importlib.import_module(module.path)
            for name, value in vars(loaded).items():
                member = module.members.get(name)
                if hasattr(value, 'entry') and member is not None and not member.is_alias:
                    module.set_member(name, make_function(name, value, member))


def make_function(name: str, value: Any, member: griffe.Object) -> griffe.Function:
    """Return griffe's description of a sampler at the lines of its definition."""
    parameters = [
        griffe.Parameter(
            parameter.name,
            annotation=annotation_of(parameter.annotation),
            kind=griffe.ParameterKind(parameter.kind.description),
            default=None if parameter.default is parameter.empty else repr(parameter.default),
        )
        for parameter in inspect.signature(value).parameters.values()
    ]
    function = griffe.Function(
        name,
        lineno=member.lineno,
        endlineno=member.endlineno,
        parameters=griffe.Parameters(*parameters),
        returns='Tensor',
    )
    text = inspect.cleandoc(value.__doc__ or '')
    function.docstring = griffe.Docstring(
        f'{text}\n\n{closing_line(value.entry, sourced="References:" in text)}',
        lineno=member.lineno,
        parent=function,
        parser='google',
        parser_options={'warn_unknown_params': False},
    )
    return function


def annotation_of(annotation: Any) -> str | None:
    """Return an annotation as the source would write it, or None."""
    if annotation is inspect.Parameter.empty:
        return None
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def closing_line(entry: Any, sourced: bool) -> str:
    """Return the order and the calls of a step, and the source unless the docstring has it."""
    calls = 'call' if entry.nfe == 1 else 'calls'
    line = f'Order {entry.order or "-"}, {entry.nfe} model {calls} a step.'
    if sourced:
        return line
    source = entry.reference or "k-diffusion's own"
    return f'{line} Source: {source}.'
