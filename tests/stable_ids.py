"""Names of test cases that are the same in every process, as running them in several at once
needs.
"""

import re


def stable_id(value):
    """The text of a value, without the address of a function."""
    return re.sub(r' at 0x[0-9a-f]+', '', str(value))
