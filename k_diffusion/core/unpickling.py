"""An interpreter for pickles that calls nothing the pickle names.

A pickle is a program for a stack machine. Python's machine looks names up in all modules and calls
what it finds, which is how a pickle runs code. This machine executes the same opcodes on its own
values. It is safe for four reasons:

1. A name (GLOBAL, STACK_GLOBAL, INST) is pushed as a `Name`, two strings. No module is imported and
   no attribute is read. Constants such as torch.float32 come from a table of the caller.
2. A call (REDUCE, OBJ, NEWOBJ) runs one of the functions in the tables here and in the caller's,
   selected by the two strings. These functions check every argument and are never on the stack. Any
   other name makes a `Record` of the call.
3. State (BUILD) is stored in a slot of a Record. The only exception is `_metadata` of an
   OrderedDict, where torch keeps versions of state dicts. There is no setattr, no `__setstate__`,
   and no `__dict__` of anything else. Items go into lists, sets, dicts and Records only.
4. Everything is counted. Opcodes and memory are charged to a `Budget`. Lengths are compared with
   the remaining bytes before they are read. Keys are text, 64-bit integers, floats and short flat
   tuples, so that hashing and comparing stay cheap; and nothing here recurses into the nesting of
   the pickle.

The opcodes are in `opcodes`.
"""

from __future__ import annotations

from typing import Any

from .opcodes import OPCODES
from .pickle_state import PickleState, Unreadable


class Machine(PickleState):
    """Reads one pickle after another from a stream; `PickleState` lists the arguments."""

    def load(self) -> Any:
        """Read the next pickle.

        Raises:
            Unreadable: If the pickle is damaged or exceeds a limit.
            Foreign: If it has a name that is not in `records`.
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
                OPCODES[code](self)
        except Unreadable:
            raise
        except KeyError as error:
            raise Unreadable(
                'it has an opcode or refers to a value that does not exist: '
                f'{ascii(error.args[0])[:40]}'
            ) from None
        except Exception as error:  # values of wrong types fail in many ways
            raise Unreadable(f'it is cut short or damaged ({type(error).__name__})') from None
