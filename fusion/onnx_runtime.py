"""ONNX Runtime as this program uses it: it reports to nobody.

Since 1.29 its official builds for Linux and macOS send names and hashes of models, timings and a lasting identifier of
the machine, which they keep in the user's cache, to their maker, unless told not to before they begin (its Privacy.md).
So everything here gets the module from `load`.
"""

from __future__ import annotations

import os
from typing import Any


def load() -> Any:
    """The `onnxruntime` module, with its reports off for the life of this process, whatever the environment says."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # for builds that do not read the variable
    return onnxruntime
