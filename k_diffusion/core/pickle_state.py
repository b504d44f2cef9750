"""The parts of the pickle machine: limits, inert values, stack and checked calls."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, BinaryIO, NamedTuple

#: Number of opcodes that a pickle may have, besides one for each 256 bytes of the file.
OPERATIONS = 1_000_000


#: Tensors and unpacked members of a file may take this multiple of its size, or MEMORY bytes if
#: that is more.
EXPANSION, MEMORY = 16, 16 << 20


#: Longest text of a key or a name, largest integer in bytes, largest number of items of a tuple as
#: a key, number of such tuples.
TEXT_LENGTH, NUMBER_BYTES, TUPLE_LENGTH, TUPLE_KEYS = 4096, 1024, 8, 1000


class Unreadable(ValueError):
    """The contents are damaged, of an unknown form, or larger than the limits."""


class Foreign(Unreadable):
    """The contents name something that only running code could make."""


class Budget:
    """The remaining cost of reading a file of `size` bytes.

    Args:
        size: The size in bytes.
    """

    def __init__(self, size: int) -> None:
        self.operations = OPERATIONS + size // 256
        self.memory = max(EXPANSION * size, MEMORY)
        self.tuple_keys = TUPLE_KEYS

    def spend(self, operations: int) -> None:
        """Charge a number of operations.

        Args:
            operations: The number.

        Raises:
            Unreadable: If none are left.
        """
        self.operations -= operations
        if self.operations < 0:
            raise Unreadable('it has more operations than a file of this size may have')

    def allocate(self, count: int) -> None:
        """Charge bytes before they are allocated.

        Args:
            count: Number of bytes.

        Raises:
            Unreadable: If they exceed the limit.
        """
        self.memory -= count
        if self.memory < 0:
            raise Unreadable(
                f'its contents would take more than {EXPANSION} times the size of the file'
            )


class Name(NamedTuple):
    """The name of a class or function in a pickle, which is neither looked up nor run."""

    module: str
    name: str


class Record(dict[Any, Any]):
    """A call in a pickle that is not made: its name, arguments, state, and added items.

    Args:
        module: The module of the name.
        name: The name.
        arguments: The arguments.
    """

    __slots__ = ('arguments', 'items_added', 'module', 'name', 'state')

    def __init__(self, module: str, name: str, arguments: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.module, self.name, self.arguments = module, name, arguments
        self.state: Any = None
        self.items_added: list[Any] = []

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __repr__(self) -> str:
        return f'<{ascii(f"{self.module}.{self.name}")[1:-1]} as a record>'


class PickleState:
    """The stream, stack, memo and tables of a machine that reads pickles.

    Args:
        stream: The pickles.
        size: Number of bytes of it that may be read.
        budget: Limits, shared by everything that is read from one file.
        calls: Functions by (module, name), called with the arguments in the pickle, which they must
            check.
        constants: Values by (module, name).
        names: Names that stand for themselves, such as torch.FloatStorage.
        records: Names that may become Records; None for all. Any other name raises Foreign.
        persistent: A function of a persistent id, called with the value in the pickle.
        text: False returns the strings of Python 2 as bytes.
    """

    def __init__(
        self,
        stream: BinaryIO,
        size: int,
        budget: Budget,
        *,
        calls: Mapping[tuple[str, str], Callable[..., Any]] | None = None,
        constants: Mapping[tuple[str, str], Any] | None = None,
        names: Collection[tuple[str, str]] = (),
        records: Collection[tuple[str, str]] | None = None,
        persistent: Callable[[Any], Any] | None = None,
        text: bool = True,
    ) -> None:
        self.stream, self.size, self.budget = stream, size, budget
        self.calls = {**_builtin_calls(budget), **(calls or {})}
        self.constants, self.names, self.records = constants or {}, names, records
        self.persistent, self.text = persistent, text
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.name_cache: dict[tuple[str, str], Name] = {}

    def take(self, count: int) -> bytes:
        """Read the next bytes.

        Args:
            count: Their number.

        Raises:
            Unreadable: If there are fewer.
        """
        if count < 0 or (count > 4096 and count > self.size - self.stream.tell()):
            raise Unreadable('it is cut short, or a length in it is damaged')
        data = self.stream.read(count)
        if len(data) != count:
            raise Unreadable('it is cut short')
        return data

    def line(self) -> bytes:
        """Read a line, without its end."""
        line = self.stream.readline()
        if line[-1:] != b'\n':
            raise Unreadable('it is cut short')
        return line[:-1]

    def unsigned(self, count: int) -> int:
        """Read an unsigned little-endian integer.

        Args:
            count: Its number of bytes.
        """
        return int.from_bytes(self.take(count), 'little')

    def pop_mark(self) -> list[Any]:
        """Return the values since the last MARK."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def find(self, module: str, name: str) -> Any:
        """Return the constant or Name of two strings.

        Args:
            module: The module.
            name: The name.
        """
        if (
            type(module) is not str
            or type(name) is not str
            or len(module) + len(name) > TEXT_LENGTH
        ):
            raise Unreadable('a name in it is damaged')
        key = self.name_cache.setdefault((module, name), Name(module, name))
        if key in self.constants:
            return self.constants[key]
        if (
            key not in self.calls
            and key not in self.names
            and self.records is not None
            and key not in self.records
        ):
            raise Foreign(f'it names {ascii(f"{module}.{name}")[1:-1][:100]}')
        return key

    def call(self, callee: Any, arguments: tuple[Any, ...]) -> Any:
        """Return the result of a call: a value of this module, or a Record of the call.

        Args:
            callee: The Name that is called.
            arguments: The arguments.
        """
        if type(callee) is not Name or type(arguments) is not tuple:
            raise Unreadable('it calls what is not a name')
        if callee in self.calls:
            return self.calls[callee](*arguments)
        self.budget.spend(2)
        return Record(*callee, arguments)

    def refer(self, key: Any) -> Any:
        """Return the value of a persistent id.

        Args:
            key: The id.
        """
        if self.persistent is None:
            raise Unreadable('it refers to data that is not in it')
        return self.persistent(key)

    def decode(self, data: bytes) -> str | bytes:
        """Return a string of Python 2.

        Args:
            data: Its bytes.
        """
        if not self.text:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data


def checked_key(key: Any, budget: Budget) -> Any:
    """Return a key of a dict or an item of a set, whose hash and comparison are cheap.

    Args:
        key: The key.
        budget: The limits.

    Raises:
        Unreadable: If it is of another type.
    """
    kind = type(key)
    if kind is tuple and len(key) <= TUPLE_LENGTH:
        budget.tuple_keys -= 1
        if budget.tuple_keys >= 0 and not any(type(item) is tuple for item in key):
            return tuple(checked_key(item, budget) for item in key)
    elif kind in (str, bytes):
        if len(key) <= TEXT_LENGTH:
            return key
    elif kind is int:
        if -1 << 63 <= key < 1 << 63:
            return key
    elif kind in (float, bool, type(None), Record, Name):
        return key
    raise Unreadable(f'a key of it has the type {kind.__name__}, which cannot be a key')


def _builtin_calls(budget: Budget) -> dict[tuple[str, str], Callable[..., Any]]:
    """Return the types of the standard library, made from checked arguments."""

    def items_of(value: Any) -> Any:
        if type(value) not in (list, tuple, set):
            raise Unreadable('a set of it is not made from a list')
        budget.spend(len(value))
        return (checked_key(item, budget) for item in value)

    def make_ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
        budget.spend(2 + len(pairs))
        return OrderedDict((checked_key(key, budget), value) for key, value in pairs)

    def counter(counts: Any = None) -> Any:
        if type(counts) not in (dict, type(None)):
            raise Unreadable('a Counter of it is not made from a dict')
        budget.spend(2 + len(counts or ()))
        return Counter(counts)

    def byte_array(data: Any = b'', encoding: Any = 'latin-1') -> bytearray:
        data = encode(data, encoding) if type(data) is str else data
        if type(data) is not bytes:
            raise Unreadable('a byte array of it is not made from bytes')
        budget.allocate(len(data))
        return bytearray(data)

    def encode(text: Any, encoding: Any = 'utf-8') -> bytes:
        if type(text) is not str or encoding not in (
            'latin1',
            'latin-1',
            'utf-8',
            'utf8',
            'ascii',
            b'latin1',
        ):
            raise Unreadable('an encoded text of it is not a text')
        budget.allocate(len(text))
        return text.encode(encoding if isinstance(encoding, str) else encoding.decode())

    def number(real: Any, imaginary: Any = 0.0) -> complex:
        if type(real) not in (int, float) or type(imaginary) not in (int, float):
            raise Unreadable('a complex number of it is not made from numbers')
        return complex(real, imaginary)

    calls: dict[str, Callable[..., Any]] = {
        'set': lambda items=(): set(items_of(items)),
        'frozenset': lambda items=(): frozenset(items_of(items)),
        'bytearray': byte_array,
        'complex': number,
    }
    return {
        **{
            (module, name): function
            for name, function in calls.items()
            for module in ('builtins', '__builtin__')
        },
        ('collections', 'OrderedDict'): make_ordered,
        ('collections', 'Counter'): counter,
        ('_codecs', 'encode'): encode,
    }
