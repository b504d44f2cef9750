"""A machine for pickles that calls nothing the pickle names.

A pickle is a program for a stack machine. Python's machine looks names up among all modules and
calls what it finds, which is how a pickle runs code. This machine executes the same opcodes over
values of its own making, and it is safe for four reasons:

1. A name (GLOBAL, STACK_GLOBAL, INST) is pushed as a `Name`, two strings. No module is imported and
no attribute is read. Constants
   such as torch.float32 come from a table that the caller gives.
2. A call (REDUCE, OBJ, NEWOBJ) runs one of the functions in the tables here and in the caller's,
chosen by the two strings. These
   functions check every argument and are never themselves on the stack. Any other name makes a
   `Record` of the call.
3. State (BUILD) is stored in a slot of a Record. The one exception is `_metadata` of an
OrderedDict, where torch keeps versions of
   state dicts. There is no setattr, no `__setstate__`, no `__dict__` of anything else. Items go
   into lists, sets, dicts and Records alone.
4. Everything is counted. Opcodes and memory are charged to a `Budget`. Lengths are compared with
the bytes that are left before
   they are read. Keys are text, 64-bit integers, floats and short flat tuples, so that hashing and
   comparing stay cheap, and nothing here recurses into what the pickle nests.
"""

from __future__ import annotations

import codecs
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, BinaryIO, NamedTuple

#: Opcodes that a pickle may have, beside one for each 256 bytes of the file.
OPERATIONS = 1_000_000
#: All tensors and unpacked members of a file may take this many times its size, or MEMORY bytes
#: where that is more.
EXPANSION, MEMORY = 16, 16 << 20
#: Longest text that serves as a key or a name, largest whole number in bytes, items of a tuple that
#: is a key, number of such tuples.
TEXT_LENGTH, NUMBER_BYTES, TUPLE_LENGTH, TUPLE_KEYS = 4096, 1024, 8, 1000


class Unreadable(ValueError):
    """The contents are damaged, of an unknown form, or larger than the limits allow."""


class Foreign(Unreadable):
    """The contents name what is not read; only running code could make it."""


class Budget:
    """What reading a file of `size` bytes may still cost."""

    def __init__(self, size: int) -> None:
        self.operations = OPERATIONS + size // 256
        self.memory = max(EXPANSION * size, MEMORY)
        self.tuple_keys = TUPLE_KEYS

    def spend(self, operations: int) -> None:
        self.operations -= operations
        if self.operations < 0:
            raise Unreadable('it has more operations than a file of this size may have')

    def allocate(self, count: int) -> None:
        """Charge bytes before they are allocated."""
        self.memory -= count
        if self.memory < 0:
            raise Unreadable(
                f'its contents would take more than {EXPANSION} times the size of the file'
            )


class Name(NamedTuple):
    """A name in a pickle: of a class or function that is neither looked up nor run."""

    module: str
    name: str


class Record(dict[Any, Any]):
    """A call in a pickle that is not made: the name, its arguments, its state, and the items
    that were added to it.
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


class Machine:
    """Reads one pickle after another from a stream.

    Args:
        stream: the pickles; `size` bytes of it may be read.
        budget: limits, shared by all that is read from one file.
        calls: functions by (module, name), called with the arguments that the pickle gives; they
            must check them.
        constants: values by (module, name).
        names: names that stand for themselves, such as torch.FloatStorage.
        records: names that may become Records; None means all. Any other name raises Foreign.
        persistent: function of a persistent id, called with the value that the pickle gives.
        text: False gives the strings of Python 2 as bytes.
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
        self.known: dict[tuple[str, str], Name] = {}

    def load(self) -> Any:
        """Read the next pickle.

        Raises:
            Unreadable: the pickle is damaged or exceeds a limit.
            Foreign: it names what `records` leaves out.
        """
        self.stack, self.marks, self.memo = [], [], {}
        read, budget = self.stream.read, self.budget
        try:
            while True:
                code = read(1)
                if code == b'.':
                    return self.stack.pop()
                budget.operations -= 1
                if budget.operations < 0:
                    budget.spend(0)
                _OPERATIONS[code](self)
        except Unreadable:
            raise
        except KeyError as error:
            raise Unreadable(
                'it has an opcode or refers to a value that does not exist: '
                f'{ascii(error.args[0])[:40]}'
            ) from None
        except Exception as error:  # values of wrong types fail in many ways
            raise Unreadable(f'it is cut short or damaged ({type(error).__name__})') from None

    def take(self, count: int) -> bytes:
        """The next `count` bytes, which must be there."""
        if count < 0 or (count > 4096 and count > self.size - self.stream.tell()):
            raise Unreadable('it is cut short, or a length in it is damaged')
        data = self.stream.read(count)
        if len(data) != count:
            raise Unreadable('it is cut short')
        return data

    def line(self) -> bytes:
        line = self.stream.readline()
        if line[-1:] != b'\n':
            raise Unreadable('it is cut short')
        return line[:-1]

    def unsigned(self, count: int) -> int:
        return int.from_bytes(self.take(count), 'little')

    def pop_mark(self) -> list[Any]:
        """The values since the last MARK."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def find(self, module: str, name: str) -> Any:
        """The constant or Name that two strings stand for."""
        if (
            type(module) is not str
            or type(name) is not str
            or len(module) + len(name) > TEXT_LENGTH
        ):
            raise Unreadable('a name in it is damaged')
        key = self.known.setdefault((module, name), Name(module, name))
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
        """What a call gives: a value of ours, or the Record of it."""
        if type(callee) is not Name or type(arguments) is not tuple:
            raise Unreadable('it calls what is not a name')
        if callee in self.calls:
            return self.calls[callee](*arguments)
        self.budget.spend(2)
        return Record(*callee, arguments)

    def refer(self, key: Any) -> Any:
        """The value of a persistent id."""
        if self.persistent is None:
            raise Unreadable('it refers to data that is not in it')
        return self.persistent(key)

    def decode(self, data: bytes) -> str | bytes:
        """A string of Python 2."""
        if not self.text:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data


def checked_key(key: Any, budget: Budget) -> Any:
    """A key of a dict or an item of a set, whose hash and comparison cost little."""
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
    raise Unreadable(f'a key of it is a {kind.__name__} that cannot serve as one')


def _builtin_calls(budget: Budget) -> dict[tuple[str, str], Callable[..., Any]]:
    """Types of the standard library that are made from checked arguments."""

    def items_of(value: Any) -> Any:
        if type(value) not in (list, tuple, set):
            raise Unreadable('a set of it is made from no list')
        budget.spend(len(value))
        return (checked_key(item, budget) for item in value)

    def ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
        budget.spend(2 + len(pairs))
        return OrderedDict((checked_key(key, budget), value) for key, value in pairs)

    def counter(counts: Any = None) -> Any:
        if type(counts) not in (dict, type(None)):
            raise Unreadable('a Counter of it is made from no dict')
        budget.spend(2 + len(counts or ()))
        return Counter(counts)

    def byte_array(data: Any = b'', encoding: Any = 'latin-1') -> bytearray:
        data = encode(data, encoding) if type(data) is str else data
        if type(data) is not bytes:
            raise Unreadable('an array of bytes of it is made from no bytes')
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
            raise Unreadable('an encoded text of it is none')
        budget.allocate(len(text))
        return text.encode(encoding if isinstance(encoding, str) else encoding.decode())

    def number(real: Any, imaginary: Any = 0.0) -> complex:
        if type(real) not in (int, float) or type(imaginary) not in (int, float):
            raise Unreadable('a complex number of it is made from no numbers')
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
        ('collections', 'OrderedDict'): ordered,
        ('collections', 'Counter'): counter,
        ('_codecs', 'encode'): encode,
    }


# The opcodes, by their byte


def _push(value: Callable[[Machine], Any], cost: int = 0) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        if cost:
            machine.budget.spend(cost)
        result = value(machine)  # may replace the stack
        machine.stack.append(result)

    return operation


def _number(data: bytes) -> int:
    if len(data) > NUMBER_BYTES:
        raise Unreadable('a whole number in it is too large')
    return int.from_bytes(data, 'little', signed=True)


def _int_of_text(line: bytes) -> Any:
    if line in (b'00', b'01'):
        return line == b'01'
    if len(line) > NUMBER_BYTES:
        raise Unreadable('a whole number in it is too large')
    return int(line.rstrip(b'L\r'))


def _quoted(line: bytes) -> bytes:
    line = line.rstrip(b'\r')
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b'"\'':
        raise Unreadable('a string in it has no quotes')
    return codecs.escape_decode(line[1:-1])[0]


def _dict_of(machine: Machine, target: Any, items: list[Any]) -> None:
    if type(target) not in (dict, OrderedDict, Counter, Record):
        raise Unreadable('it sets items of what holds none')
    if len(items) % 2:
        raise Unreadable('a key in it has no value')
    for key, value in zip(items[::2], items[1::2]):
        target[checked_key(key, machine.budget)] = value


def _dict(machine: Machine) -> dict[Any, Any]:
    items, target = machine.pop_mark(), {}  # type: ignore[var-annotated]
    _dict_of(machine, target, items)
    return target


def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _dict_of(machine, machine.stack[-1], [key, value])


def _set_items(machine: Machine) -> None:
    items = machine.pop_mark()
    _dict_of(machine, machine.stack[-1], items)


def _list_of(target: Any) -> list[Any]:
    if type(target) is Record:
        return target.items_added
    if type(target) is not list:
        raise Unreadable('it adds items to what holds none')
    return target


def _append(machine: Machine) -> None:
    value = machine.stack.pop()
    _list_of(machine.stack[-1]).append(value)


def _appends(machine: Machine) -> None:
    items = machine.pop_mark()
    _list_of(machine.stack[-1]).extend(items)


def _add_items(machine: Machine) -> None:
    items, target = machine.pop_mark(), machine.stack[-1]
    if type(target) is not set:
        raise Unreadable('it adds items to what is no set')
    target.update(checked_key(item, machine.budget) for item in items)


def _frozen(machine: Machine) -> frozenset[Any]:
    return frozenset([checked_key(item, machine.budget) for item in machine.pop_mark()])


def _mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        if len(machine.stack) < count:
            raise Unreadable('it is damaged')
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return operation


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _put(index: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        machine.memo[index(machine)] = machine.stack[-1]

    return operation


def _reduce(machine: Machine) -> Any:
    arguments, callee = machine.stack.pop(), machine.stack.pop()
    return machine.call(callee, arguments)


def _new_with_keywords(machine: Machine) -> Any:
    keywords, arguments, callee = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    return machine.call(callee, (*arguments, keywords) if keywords else arguments)


def _object(machine: Machine) -> Any:
    callee, *arguments = machine.pop_mark()
    return machine.call(callee, tuple(arguments))


def _instance(machine: Machine) -> Any:
    callee = machine.find(machine.line().decode(), machine.line().decode())
    return machine.call(callee, tuple(machine.pop_mark()))


def _stack_global(machine: Machine) -> Any:
    name, module = machine.stack.pop(), machine.stack.pop()
    return machine.find(module, name)


def _build(machine: Machine) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if type(target) is Record:
        target.state = state
    elif type(target) is not OrderedDict or type(state) is not dict:
        raise Unreadable('it gives a state to what has none')
    elif isinstance(versions := state.get('_metadata'), dict) and all(
        type(entry) is dict for entry in versions.values()
    ):
        target._metadata = versions  # type: ignore[attr-defined]


def _text(machine: Machine, width: int) -> str:
    return machine.take(machine.unsigned(width)).decode('utf-8', 'surrogatepass')


def _protocol(machine: Machine) -> None:
    if (number := machine.unsigned(1)) > 5:
        raise Unreadable(f'its protocol {number} is not known')


def _signed_length(machine: Machine) -> int:
    return struct.unpack('<i', machine.take(4))[0]


_OPERATIONS: dict[bytes, Callable[[Machine], object]] = {
    # numbers and constants
    b'N': _push(lambda m: None),
    b'\x88': _push(lambda m: True),
    b'\x89': _push(lambda m: False),
    b'K': _push(lambda m: m.unsigned(1)),
    b'M': _push(lambda m: m.unsigned(2)),
    b'J': _push(_signed_length),
    b'\x8a': _push(lambda m: _number(m.take(m.unsigned(1)))),
    b'\x8b': _push(lambda m: _number(m.take(_signed_length(m)))),
    b'G': _push(lambda m: struct.unpack('>d', m.take(8))[0]),
    b'F': _push(lambda m: float(m.line())),
    b'I': _push(lambda m: _int_of_text(m.line())),
    b'L': _push(lambda m: _int_of_text(m.line())),
    # text and bytes
    b'X': _push(lambda m: _text(m, 4)),
    b'\x8c': _push(lambda m: _text(m, 1)),
    b'\x8d': _push(lambda m: _text(m, 8)),
    b'B': _push(lambda m: m.take(m.unsigned(4))),
    b'C': _push(lambda m: m.take(m.unsigned(1))),
    b'\x8e': _push(lambda m: m.take(m.unsigned(8))),
    b'\x96': _push(lambda m: bytearray(m.take(m.unsigned(8)))),
    b'T': _push(lambda m: m.decode(m.take(_signed_length(m)))),
    b'U': _push(lambda m: m.decode(m.take(m.unsigned(1)))),
    b'S': _push(lambda m: m.decode(_quoted(m.line()))),
    b'V': _push(lambda m: m.line().decode('raw-unicode-escape')),
    # containers
    b'(': _mark,
    b'0': _pop,
    b'1': Machine.pop_mark,
    b'2': _push(lambda m: m.stack[-1]),
    b']': _push(lambda m: [], 1),
    b'}': _push(lambda m: {}, 1),
    b')': _push(lambda m: ()),
    b'\x8f': _push(lambda m: set(), 3),
    b'l': _push(Machine.pop_mark),
    b't': _push(lambda m: tuple(m.pop_mark())),
    b'd': _push(_dict, 1),
    b'\x85': _tuple_of(1),
    b'\x86': _tuple_of(2),
    b'\x87': _tuple_of(3),
    b'\x91': _push(_frozen, 3),
    b'a': _append,
    b'e': _appends,
    b's': _set_item,
    b'u': _set_items,
    b'\x90': _add_items,
    # names, calls and states
    b'c': _push(lambda m: m.find(m.line().decode(), m.line().decode()), 2),
    b'\x93': _push(_stack_global, 2),
    b'R': _push(_reduce),
    b'\x81': _push(_reduce),
    b'\x92': _push(_new_with_keywords),
    b'o': _push(_object),
    b'i': _push(_instance, 2),
    b'b': _build,
    b'P': _push(lambda m: m.refer(m.line().decode())),
    b'Q': _push(lambda m: m.refer(m.stack.pop())),
    # memo and framing
    b'p': _put(lambda m: int(m.line()[:20])),
    b'q': _put(lambda m: m.unsigned(1)),
    b'r': _put(lambda m: m.unsigned(4)),
    b'\x94': _put(lambda m: len(m.memo)),
    b'g': _push(lambda m: m.memo[int(m.line()[:20])]),
    b'h': _push(lambda m: m.memo[m.unsigned(1)]),
    b'j': _push(lambda m: m.memo[m.unsigned(4)]),
    b'\x80': _protocol,
    b'\x95': lambda m: m.take(8),
}
