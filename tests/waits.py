"""A device that may not be waited for, played by the CPU.

Tensors are marked as on the device: those given to `mark`, those that `send` copies, and all that
is computed from marked ones. What a host would have to wait for is refused: numbers read from
marked tensors, shapes that depend on their values, and copies of them to the host.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from k_diffusion.core import devices

aten = torch.ops.aten
#: Operators whose result, or the shape of it, the host needs.
READING = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten.repeat_interleave,
    aten.bincount,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.linalg_inv_ex,  # (its caller checks `info`)
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPYING = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}


class Waited(AssertionError):
    """The host waited for the device."""


class Marks(TorchDispatchMode):
    """Marks what is computed from marked tensors, and refuses to read them."""

    def __init__(self):
        super().__init__()
        self.storages = {}  # by address; they are kept, or an address would be used again
        self.allowed = False

    def mark(self, *tensors):
        for x in tensors:
            self.storages[x.untyped_storage()._cdata] = x.untyped_storage()
        return tensors[0] if tensors else None

    def is_marked(self, x):
        return isinstance(x, Tensor) and x.untyped_storage()._cdata in self.storages

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        marked = [x for x in tree_leaves((args, kwargs)) if self.is_marked(x)]
        if marked and not self.allowed:
            packet = function.overloadpacket
            masks = tree_leaves(args[1]) if packet in INDEXING else ()
            if packet in READING or any(
                self.is_marked(mask) and mask.dtype in (torch.bool, torch.uint8) for mask in masks
            ):
                raise Waited(f'{function} reads a tensor of the device')
        out = function(*args, **kwargs)
        if marked:
            self.mark(*(x for x in tree_leaves(out) if isinstance(x, Tensor)))
            if function._schema.is_mutable:
                self.mark(*(x for x in tree_leaves(args[:1]) if isinstance(x, Tensor)))
        return out


class Copies(TorchFunctionMode):
    """Refuses copies of marked tensors to the host, which the CPU does not make, and says that
    marked tensors are not there.
    """

    def __init__(self, marks):
        super().__init__()
        self.marks = marks

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == Tensor.is_cpu.__get__:
            return not self.marks.is_marked(args[0])
        to_host = function in COPYING or (
            function is Tensor.to and ('cpu' in args[1:2] or kwargs.get('device') == 'cpu')
        )
        if to_host and self.marks.is_marked(args[0]) and not self.marks.allowed:
            raise Waited(f'{function.__name__} copies a tensor of the device to the host')
        return function(*args, **kwargs)


def allow(marks, patch, place, name):
    """Let a method wait."""
    plain = getattr(place, name)

    def method(*args, **kwargs):
        marks.allowed = True
        try:
            return plain(*args, **kwargs)
        finally:
            marks.allowed = False

    patch.setattr(place, name, method)


@contextmanager
def no_waits(marks):
    """Refuse to wait for what `marks` marks, within it."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        plain = devices.send

        def send(x, device):
            return x if marks.is_marked(x) else marks.mark(plain(x, device).clone())

        def send_together(tensors, device):
            return {name: send(x, device) for name, x in tensors.items()}

        for name, module in list(sys.modules.items()):
            if name.startswith('k_diffusion.'):
                for old, new in ((devices.send, send), (devices.send_together, send_together)):
                    if vars(module).get(old.__name__) is old:
                        patch.setattr(module, old.__name__, new)
        stack.enter_context(marks)
        stack.enter_context(Copies(marks))
        yield
