"""Where the files of frozen backbones lie: a store of ONNX files named by their SHA-256.

A task with the `onnx` encoder names its backbone by hash and size; the file itself never travels with it. It is
looked for as `<sha256>.onnx`, first in the directories that this process was told of (a node tells its home's
`backbones/`), then in those that the environment variable TIDINGS_BACKBONES lists. Where a file lies decides
nothing: it is taken only if its size and hash are the task's, and it is hashed in memory, so that what was checked is
what is run.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from fusion.errors import BackboneError
from fusion.task import OnnxEncoder

ENVIRONMENT = "TIDINGS_BACKBONES"  # directories, separated as in PATH

_directories: list[Path] = []


def of_home(home: Path) -> Path:
    """Where a node with this home keeps its backbones."""
    return home / "backbones"


def use_directory(directory: Path) -> None:
    """Look in this directory too, from now on; one that is not there yet does no harm."""
    if directory not in _directories:
        _directories.append(directory)


def search_path() -> tuple[Path, ...]:
    """The directories, in the order in which they are looked through."""
    listed = os.environ.get(ENVIRONMENT, "").split(os.pathsep)
    return (*_directories, *(Path(one).expanduser() for one in listed if one))


def file_name(settings: OnnxEncoder) -> str:
    """What the file of this backbone is called in every one of these directories."""
    return f"{settings.sha256}.onnx"


def find(settings: OnnxEncoder) -> Path | None:
    """The file by its name alone; `load` is what checks it."""
    paths = (directory / file_name(settings) for directory in search_path())
    return next((path for path in paths if path.is_file()), None)


def missing(settings: OnnxEncoder) -> str:
    """The sentence for a person whose node does not have the file."""
    places = search_path()
    place = f"{places[0] / file_name(settings)}" if places else f"a directory that {ENVIRONMENT} names"
    return (
        f"the backbone of this task is not here: get the ONNX file of {settings.bytes} bytes with SHA-256 "
        f"{settings.sha256} from whoever proposed the task, and put it at {place}"
    )


def load(settings: OnnxEncoder) -> bytes:
    """The backbone's bytes, of the task's size and hash; BackboneError says what to get, or what is wrong."""
    path = find(settings)
    if path is None:
        raise BackboneError(missing(settings))
    return read(path, settings)


def read(path: Path, settings: OnnxEncoder) -> bytes:
    """The bytes of a file that must be this backbone; not more of it is read than the task says it has."""
    try:
        with path.open("rb") as file:
            data = file.read(settings.bytes + 1)
    except OSError as error:
        raise BackboneError(
            f"{path} cannot be read ({error.strerror}); the task's backbone is expected there"
        ) from None
    if len(data) != settings.bytes:
        has = "more" if len(data) > settings.bytes else f"{len(data)}"
        raise BackboneError(
            f"{path} is not the task's backbone: it has {has} bytes, where the task says {settings.bytes}"
        )
    found = hashlib.sha256(data).hexdigest()
    if found != settings.sha256:
        raise BackboneError(
            f"{path} is not the task's backbone: its SHA-256 is {found}, the task says {settings.sha256}"
        )
    return data


def install(path: Path, settings: OnnxEncoder, shape: tuple[int, ...], directory: Path) -> Path:
    """Copy a file into `directory`, once it has passed every check that running it takes; all or nothing."""
    from fusion.encoders.backbone import open_backbone

    data = read(path, settings)
    open_backbone(data, settings, shape)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = directory / file_name(settings)
    handle, draft = tempfile.mkstemp(prefix=".backbone-", dir=directory)  # 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        os.unlink(draft)
        raise
    return target
