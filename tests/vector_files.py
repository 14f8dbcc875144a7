"""Golden files: tests/vectors/DOOR/NAME.json, an input of a door and what must come of it.

    {"door", "about", "input": {"hex" | "text" | "zlib": …}, "error", "says"}        refused: error and whole sentence
    {"door", "about", "input": {…}, "gives": digest}                                 accepted

`says_begins` takes the place of `says` where the rest of the sentence is a library's. Findings of the fuzzer lie in
tests/vectors/findings/DOOR/, as the bytes that were found; each must be refused or accepted like any other input.
"""

from __future__ import annotations

import base64
import functools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent / "vectors"
FINDINGS = VECTORS / "findings"
LONG_BYTES = 512  # from here on an input is packed


@dataclass(frozen=True)
class Vector:
    """One golden file. `error` is "accepted" or the name of an error; `says` its sentence, or the digest."""

    door: str
    name: str
    about: str
    data: bytes
    error: str
    says: str
    is_begin: bool = False

    def meets(self, error: str, says: str) -> bool:
        """Whether what came of the input is what the file says."""
        return error == self.error and (says.startswith(self.says) if self.is_begin else says == self.says)

    def content(self) -> dict[str, Any]:
        """As JSON."""
        content: dict[str, Any] = {"door": self.door, "about": self.about, "input": _packed(self.data)}
        if self.error == "accepted":
            return content | {"gives": self.says}
        return content | {"error": self.error, "says_begins" if self.is_begin else "says": self.says}


def path_of(vector: Vector) -> Path:
    return VECTORS / vector.door / f"{vector.name}.json"


def write(vector: Vector) -> None:
    path_of(vector).parent.mkdir(exist_ok=True)
    path_of(vector).write_text(json.dumps(vector.content(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> Vector:
    content = json.loads(path.read_text(encoding="utf-8"))
    error = content.get("error", "accepted")
    says = content["gives"] if error == "accepted" else content.get("says", content.get("says_begins"))
    data = _unpacked(content["input"])
    return Vector(content["door"], path.stem, content["about"], data, error, says, "says_begins" in content)


@functools.cache
def vectors_of(door: str) -> tuple[Vector, ...]:
    """All of a door, by name."""
    return tuple(read(path) for path in sorted((VECTORS / door).glob("*.json")))


def findings_of(door: str) -> list[Path]:
    """Inputs that once broke a door."""
    return sorted(path for path in (FINDINGS / door).glob("*") if path.is_file())


def inputs_of(door: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of golden files and findings: what fuzzing begins with."""
    yield from ((vector.name, vector.data) for vector in vectors_of(door))
    yield from ((f"finding-{path.name}", path.read_bytes()) for path in findings_of(door))


def _packed(data: bytes) -> dict[str, str]:
    text = data.decode("utf-8", "replace")
    if len(data) < 8 * LONG_BYTES and text.encode() == data and text.replace("\n", " ").isprintable():
        return {"text": text}
    if len(data) < LONG_BYTES:
        return {"hex": data.hex()}
    return {"zlib": base64.b64encode(zlib.compress(data, 9)).decode()}


def _unpacked(packed: dict[str, str]) -> bytes:
    ((form, text),) = packed.items()
    if form == "text":
        return text.encode("utf-8")
    return bytes.fromhex(text) if form == "hex" else zlib.decompress(base64.b64decode(text))
