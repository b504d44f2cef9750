"""The opcodes of pickles, as functions of the state of the machine."""

from __future__ import annotations

import codecs
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from .pickle_state import NUMBER_BYTES, PickleState, Record, Unreadable, checked_key


def _push(value: Callable[[PickleState], Any], cost: int = 0) -> Callable[[PickleState], None]:
    def operation(machine: PickleState) -> None:
        if cost:
            machine.budget.spend(cost)
        result = value(machine)  # may replace the stack
        machine.stack.append(result)

    return operation


def _number(data: bytes) -> int:
    if len(data) > NUMBER_BYTES:
        raise Unreadable('an integer in it is too large')
    return int.from_bytes(data, 'little', signed=True)


def _int_of_text(line: bytes) -> Any:
    if line in (b'00', b'01'):
        return line == b'01'
    if len(line) > NUMBER_BYTES:
        raise Unreadable('an integer in it is too large')
    return int(line.rstrip(b'L\r'))


def _read_quoted(line: bytes) -> bytes:
    line = line.rstrip(b'\r')
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b'"\'':
        raise Unreadable('a string in it has no quotes')
    return codecs.escape_decode(line[1:-1])[0]


def _dict_of(machine: PickleState, target: Any, items: list[Any]) -> None:
    if type(target) not in (dict, OrderedDict, Counter, Record):
        raise Unreadable('it sets items of a value without items')
    if len(items) % 2:
        raise Unreadable('a key in it has no value')
    for key, value in zip(items[::2], items[1::2]):
        target[checked_key(key, machine.budget)] = value


def _dict(machine: PickleState) -> dict[Any, Any]:
    items, target = machine.pop_mark(), {}  # type: ignore[var-annotated]
    _dict_of(machine, target, items)
    return target


def _set_item(machine: PickleState) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _dict_of(machine, machine.stack[-1], [key, value])


def _set_items(machine: PickleState) -> None:
    items = machine.pop_mark()
    _dict_of(machine, machine.stack[-1], items)


def _list_of(target: Any) -> list[Any]:
    if type(target) is Record:
        return target.items_added
    if type(target) is not list:
        raise Unreadable('it adds items to a value without items')
    return target


def _append(machine: PickleState) -> None:
    value = machine.stack.pop()
    _list_of(machine.stack[-1]).append(value)


def _appends(machine: PickleState) -> None:
    items = machine.pop_mark()
    _list_of(machine.stack[-1]).extend(items)


def _add_items(machine: PickleState) -> None:
    items, target = machine.pop_mark(), machine.stack[-1]
    if type(target) is not set:
        raise Unreadable('it adds items of a set to another value')
    target.update(checked_key(item, machine.budget) for item in items)


def _frozen(machine: PickleState) -> frozenset[Any]:
    return frozenset([checked_key(item, machine.budget) for item in machine.pop_mark()])


def _mark(machine: PickleState) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple_of(count: int) -> Callable[[PickleState], None]:
    def operation(machine: PickleState) -> None:
        if len(machine.stack) < count:
            raise Unreadable('it is damaged')
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return operation


def _pop(machine: PickleState) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _make_put(index: Callable[[PickleState], int]) -> Callable[[PickleState], None]:
    def operation(machine: PickleState) -> None:
        machine.memo[index(machine)] = machine.stack[-1]

    return operation


def _reduce(machine: PickleState) -> Any:
    arguments, callee = machine.stack.pop(), machine.stack.pop()
    return machine.call(callee, arguments)


def _new_with_keywords(machine: PickleState) -> Any:
    keywords, arguments, callee = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    return machine.call(callee, (*arguments, keywords) if keywords else arguments)


def _object(machine: PickleState) -> Any:
    callee, *arguments = machine.pop_mark()
    return machine.call(callee, tuple(arguments))


def _instance(machine: PickleState) -> Any:
    callee = machine.find(machine.line().decode(), machine.line().decode())
    return machine.call(callee, tuple(machine.pop_mark()))


def _stack_global(machine: PickleState) -> Any:
    name, module = machine.stack.pop(), machine.stack.pop()
    return machine.find(module, name)


def _build(machine: PickleState) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if type(target) is Record:
        target.state = state
    elif type(target) is not OrderedDict or type(state) is not dict:
        raise Unreadable('it gives a state to a value without one')
    elif isinstance(versions := state.get('_metadata'), dict) and all(
        type(entry) is dict for entry in versions.values()
    ):
        target._metadata = versions  # type: ignore[attr-defined]


def _text(machine: PickleState, width: int) -> str:
    return machine.take(machine.unsigned(width)).decode('utf-8', 'surrogatepass')


def _protocol(machine: PickleState) -> None:
    if (number := machine.unsigned(1)) > 5:
        raise Unreadable(f'its protocol {number} is not known')


def _signed_length(machine: PickleState) -> int:
    return struct.unpack('<i', machine.take(4))[0]


OPCODES: dict[bytes, Callable[[PickleState], object]] = {
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
    b'S': _push(lambda m: m.decode(_read_quoted(m.line()))),
    b'V': _push(lambda m: m.line().decode('raw-unicode-escape')),
    # containers
    b'(': _mark,
    b'0': _pop,
    b'1': PickleState.pop_mark,
    b'2': _push(lambda m: m.stack[-1]),
    b']': _push(lambda m: [], 1),
    b'}': _push(lambda m: {}, 1),
    b')': _push(lambda m: ()),
    b'\x8f': _push(lambda m: set(), 3),
    b'l': _push(PickleState.pop_mark),
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
    b'p': _make_put(lambda m: int(m.line()[:20])),
    b'q': _make_put(lambda m: m.unsigned(1)),
    b'r': _make_put(lambda m: m.unsigned(4)),
    b'\x94': _make_put(lambda m: len(m.memo)),
    b'g': _push(lambda m: m.memo[int(m.line()[:20])]),
    b'h': _push(lambda m: m.memo[m.unsigned(1)]),
    b'j': _push(lambda m: m.memo[m.unsigned(4)]),
    b'\x80': _protocol,
    b'\x95': lambda m: m.take(8),
}
