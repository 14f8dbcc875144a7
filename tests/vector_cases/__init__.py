"""What the golden files hold, door by door: inputs that are good, and one for each way of being wrong.

    CASES = {door: {name: (input, words of the sentence that must refuse it; "" where it is accepted)}}

The name of a case is what is wrong with it. `python -m tests.make_vectors` writes the files, and stops where a door
says something else than the case expects.
"""

from __future__ import annotations

Cases = dict[str, tuple[bytes, str]]
