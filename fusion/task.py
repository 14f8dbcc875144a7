"""The task: the public contract that makes the summaries of all partners add up.

A task is written by a person as a TOML file (`Task.from_toml`) or arrives from a peer as canonical JSON
(`Task.from_canonical`); both pass the same checks. Everything in it is public and independent of the private
data: column bounds, categories, classes, encoder constants, the largest epsilon and delta. Its id is the hash
of its canonical bytes, so two nodes that agree on an id agree on every number below.

The checks are in `fusion.task_checks`. Nothing heavy is imported, so that listing tasks stays cheap.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANONICAL_VERSION = 1
MAX_TASK_BYTES = 8 * 2**20  # 100,000 categories of 40 bytes fit; a peer cannot make us parse more
MAX_NAME_CHARS = 200
MAX_COLUMNS = 10_000
MAX_FILE_COLUMNS = 10_000
MAX_CATEGORIES = 100_000
MAX_CLASSES = 1_000
MAX_MISSING = 100
MAX_BINS = 64
MAX_IMAGE_SIDE = 1_024
MAX_IMAGE_BYTES = 2**20
MAX_BACKBONE_BYTES = 512 * 2**20  # a vision transformer of 86 million weights in float32 is 350 MB
MAX_DIMENSION = 4_096  # a Gram matrix of 8.4 million entries: about 5 MB on the wire
MAX_EPSILON = 20.0
MAX_DELTA = 1e-5
MIN_DELTA = 1e-10  # well above the 1e-12 that the discrete noise is charged, see docs/privacy.md
DEFAULT_DELTA = 1e-6
MAX_BOUND = 1e30  # models run in single precision
MIN_RELATIVE_WIDTH = 1e-6  # closer bounds cannot be told apart in single precision
DEFAULT_BIAS = 0.4
DEFAULT_IMAGE_FEATURES = 800
MAX_IMAGE_FEATURES = 1_000  # as many as `fusion.encoders.image` has directions for
TEXT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # all-MiniLM-L6-v2
TEXT_CONSTANTS_SHA256 = "844e9d7e6a2f7e5ad84fb56c4f9625f6ba9380b4829abfab7dcb9d2dc8cb6c1c"  # text_constants.safetensors
TEXT_WIDTH = 384  # of a sentence vector
TEXT_LENSES = ("plain", "opinion")
KINDS = ("classification", "regression")
SUMMARY_KINDS = ("moments", "mean-embedding", "class-moments", "histograms", "residual-moments", "model")
UNIT_RECORD = "record"
MAX_PERSON_ROWS = 1_000
MAX_ROWS = 2**30  # of a release: then every sum stays below 2^62 and int64 cannot overflow
MAX_DIRECTIONS = 2**21  # entries of the directions of a lift: 16 MB in a model file
MAX_GAMMA = 1_000.0  # of a lift: points of the unit ball further apart than 0.1 then share nothing
DEFAULT_FEATURES = 256
DEFAULT_GAMMA = 1.0
MAX_SEED = 2**32 - 1
MAX_HIDDEN = 1_024  # units of a hidden layer
MAX_TRAINING_STEPS = 1_000
MAX_TRAINING_ENTRIES = 2**23  # weights times steps: every one of them gets noise, and noise is proved for 2^24 entries
MAX_CLASS_DIMENSION = 64  # of class-moments: as many numbers as moments have, for every class
MAX_CLASS_WIDTH = 8_192  # classes times dimensions: the first layer of its models
MAX_CELL_FEATURES = 2_048  # columns times classes: models take the cube of it
MAX_PAIRED_COLUMNS = 64
DEFAULT_CELL_BINS = 8
COVARIANCES = ("full", "diagonal")

_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.0)?")


@dataclass(frozen=True)
class LabelClass:
    """One class: its name in the model, and the label cells that mean it."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    """What is predicted: classes (classification), or a number within public bounds (regression)."""

    column: str
    classes: tuple[LabelClass, ...] = ()
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class PersonUnit:
    """All rows with one id in `column` are protected together; at most `max_rows` of them are used."""

    column: str
    max_rows: int


@dataclass(frozen=True)
class Privacy:
    """The most that one release may spend, and the public delta and unit of every release."""

    max_epsilon: float
    delta: float = DEFAULT_DELTA
    person: PersonUnit | None = None  # None: the unit is one row

    @property
    def unit(self) -> str:
        """Whom a release protects, as its claim and the ledger say it: `record`, or `person:<column>`."""
        return UNIT_RECORD if self.person is None else f"person:{self.person.column}"


@dataclass(frozen=True)
class CsvFormat:
    """How CSV files of this task look. `names` are the columns of a file that has no header line."""

    header: bool = True
    missing: tuple[str, ...] = ()
    delimiter: str = ","
    names: tuple[str, ...] = ()
    quote: bool = True  # False: quotation marks are ordinary characters


@dataclass(frozen=True)
class NumberColumn:
    """A number within public bounds; with `bins`, interpolated between that many evenly spaced points."""

    name: str
    lower: float
    upper: float
    bins: int | None = None


@dataclass(frozen=True)
class CategoryColumn:
    """One of a public list of values; anything else counts as missing."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class ImageColumn:
    """A picture of fixed size, one byte a pixel and channel (1 grey, 3 red-green-blue)."""

    name: str
    height: int
    width: int
    channels: int = 1

    @property
    def pixels(self) -> int:
        """Bytes of one picture."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class TextColumn:
    """A text of any length; encoders read its beginning."""

    name: str


Column = NumberColumn | CategoryColumn | ImageColumn | TextColumn


@dataclass(frozen=True)
class Lift:
    """Random Fourier features of a Gaussian kernel on encoded rows, see `fusion.encoders.lift`.

    `features` is their (even) number: the kernel is met up to about 1/sqrt(features / 2). `gamma` is that of
    exp(-gamma ||u - v||^2): a larger one sees finer differences and needs more rows. `seed` fixes the directions.
    """

    features: int = DEFAULT_FEATURES
    gamma: float = DEFAULT_GAMMA
    seed: int = 1


@dataclass(frozen=True)
class TabularEncoder:
    """How rows of numbers and categories become vectors, see `fusion.encoders.tabular`.

    With `lift` they are lifted once more, into random Fourier features. `bias` is beta in [0.05, 0.95]: a larger
    one recovers counts better, and leaves sqrt(1 - beta^2) of the norm to the features. Between 0.2 and 0.5 it hardly
    matters.
    """

    kind: str = "tabular"
    bias: float = DEFAULT_BIAS
    lift: Lift | None = None

    def dimension(self, columns: Sequence[Column]) -> int:
        """Coordinates of an encoded row, bias included."""
        return 1 + (columns_width(columns) if self.lift is None else self.lift.features)

    def content(self) -> dict[str, Any]:
        """For the canonical form."""
        content: dict[str, Any] = {"kind": self.kind, "bias": self.bias}
        return content if self.lift is None else content | {"lift": vars(self.lift)}


@dataclass(frozen=True)
class TextEncoder:
    """How one column of texts becomes vectors, see `fusion.encoders.text`.

    `weights` and `constants` are the sha256 of the sentence model and of the public constants. `lens` is "plain", or
    "opinion" for tasks about what people think of something.
    """

    kind: str = "text"
    bias: float = DEFAULT_BIAS
    lens: str = "plain"
    weights: str = TEXT_WEIGHTS_SHA256
    constants: str = TEXT_CONSTANTS_SHA256

    def dimension(self, columns: Sequence[Column]) -> int:
        """The sentence vector, the coordinate of a missing text, the bias."""
        return TEXT_WIDTH + 2

    def content(self) -> dict[str, Any]:
        """For the canonical form."""
        files = {"weights": self.weights, "constants": self.constants}
        return {"kind": self.kind, "bias": self.bias, "lens": self.lens, **files}


@dataclass(frozen=True)
class PictureInput:
    """How a picture becomes a backbone's input: enlarged to `height` x `width` (bilinear), each channel scaled to
    (pixel / 255 - mean) / std, and laid out channels first ("NCHW") or last ("NHWC"). A grey picture is repeated in
    each of the `channels`."""

    layout: str
    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the backbone's input for one row, the batch dimension of 1 included."""
        if self.layout == "NCHW":
            return (1, self.channels, self.height, self.width)
        return (1, self.height, self.width, self.channels)

    def content(self) -> dict[str, Any]:
        """For the canonical form."""
        size = {"height": self.height, "width": self.width, "channels": self.channels}
        return {"layout": self.layout, **size, "mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True)
class OnnxEncoder:
    """A frozen public backbone, named by its sha256 and size, see `fusion.encoders.backbone`.

    The file is no part of the task: it is fetched once and lies where `fusion.backbones` looks. `features` is the
    width of the output that is taken; `output` its name, empty where the backbone has only one. `picture` is None
    where the columns are numbers, which enter as one vector [1, columns].
    """

    kind: str
    bias: float
    sha256: str
    bytes: int
    features: int
    output: str = ""
    picture: PictureInput | None = None

    def dimension(self, columns: Sequence[Column]) -> int:
        """Coordinates of an encoded row, bias included."""
        return 1 + self.features

    def input_shape(self, columns: Sequence[Column]) -> tuple[int, ...]:
        """Of the backbone's input for one row, the batch dimension of 1 included."""
        return (1, len(columns)) if self.picture is None else self.picture.shape

    def content(self) -> dict[str, Any]:
        """For the canonical form."""
        content: dict[str, Any] = {
            "kind": self.kind,
            "bias": self.bias,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "features": self.features,
        }
        if self.output:
            content["output"] = self.output
        if self.picture is not None:
            content["picture"] = self.picture.content()
        return content


@dataclass(frozen=True)
class ImageEncoder:
    """How one picture becomes a vector, see `fusion.encoders.image`.

    `features` are the first of its ordered directions: more of them tell more and cost noise and bytes, about
    5/16 of features^2 bytes a summary. `bias` as for tables.
    """

    kind: str = "image"
    bias: float = DEFAULT_BIAS
    features: int = DEFAULT_IMAGE_FEATURES

    def dimension(self, columns: Sequence[Column]) -> int:
        """Coordinates of an encoded row, bias included."""
        return 1 + self.features

    def content(self) -> dict[str, Any]:
        """For the canonical form."""
        return {"kind": self.kind, "bias": self.bias, "features": self.features}


EncoderSettings = TabularEncoder | TextEncoder | OnnxEncoder | ImageEncoder


@dataclass(frozen=True)
class ClassMomentsSettings:
    """What summary kind `class-moments` sums of each class: a `full` covariance, or variances alone (`diagonal`)."""

    covariance: str = "full"


@dataclass(frozen=True)
class HistogramSettings:
    """What summary kind `histograms` counts: see `fusion.partitions`.

    `bins` are the cells of a number. With `pairs` all pairs of columns are counted too: their columns can then be
    weighed against each other, and the noise grows with the square root of the number of partitions.
    """

    bins: int = DEFAULT_CELL_BINS
    pairs: bool = False


@dataclass(frozen=True)
class ModelSettings:
    """How the small head of summary kind `model` is shaped and trained, see `fusion.summaries.model`. All public.

    `hidden` and `teacher_hidden` are the units of one hidden layer, or empty for a linear head; `teacher_hidden` None
    means that the head itself is trained. More steps learn more and need more noise each: their noise grows with
    sqrt(steps). `clip_norm` bounds a row's gradient (a linear head's is at most sqrt(2)). `mean_share` of mu^2 goes to
    the class means. `expected_rows` is a guess, for advice alone. `initial` are the first weights, float32 in base64,
    and `initial_model` is the digest of the model that they come from; without them weights are drawn from `seed`.
    """

    hidden: tuple[int, ...] = ()
    teacher_hidden: tuple[int, ...] | None = None
    steps: int = 40
    clip_norm: float = 1.0
    learning_rate: float = 5.0
    mean_share: float = 0.1
    expected_rows: int = 1_000
    seed: int = 0
    initial: str = ""
    initial_model: str = ""

    def content(self) -> dict[str, Any]:
        """For the canonical form: `teacher_hidden` and the first weights only where the task gives them."""
        always = ("steps", "clip_norm", "learning_rate", "mean_share", "expected_rows", "seed")
        content: dict[str, Any] = {name: getattr(self, name) for name in always} | {"hidden": list(self.hidden)}
        if self.teacher_hidden is not None:
            content["teacher_hidden"] = list(self.teacher_hidden)
        if self.initial:
            content |= {"initial": self.initial, "initial_model": self.initial_model}
        return content


@dataclass(frozen=True)
class Task:
    """A validated task. Make one with `from_toml` or `from_canonical`, which hold the checks."""

    name: str
    kind: str
    summary: str
    label: Label
    privacy: Privacy
    csv: CsvFormat
    columns: tuple[Column, ...]
    encoder: EncoderSettings
    class_moments: ClassMomentsSettings | None = None  # of that kind of summary alone
    model: ModelSettings | None = None  # likewise
    histograms: HistogramSettings | None = None
    max_rows: int = MAX_ROWS  # that one release may count, or persons where they are the unit

    @classmethod
    def from_toml(cls, text: str, source: str, folder: Path | None = None) -> Task:
        """The task in a TOML text; TaskError names `source`, the line and the field.

        Files that the text names (`model.initial_file`) are read from `folder` and become part of the task.
        """
        from fusion.task_checks import task_from_toml

        return task_from_toml(text, source, folder)

    @classmethod
    def from_canonical(cls, data: bytes) -> Task:
        """The task in canonical bytes, which must be exactly what `canonical` would write; else TaskError."""
        from fusion.task_checks import task_from_canonical

        return task_from_canonical(data)

    def canonical(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, every default written out, numbers as shortest floats."""
        content = {
            "version": CANONICAL_VERSION,
            "name": self.name,
            "kind": self.kind,
            "summary": self.summary,
            "label": _label_content(self.label),
            "privacy": {
                "max_epsilon": self.privacy.max_epsilon,
                "delta": self.privacy.delta,
                "unit": _unit_content(self.privacy.person),
            },
            "csv": _csv_content(self.csv),
            "columns": [_column_content(column) for column in self.columns],
            "encoder": self.encoder.content(),
        }
        if self.max_rows < MAX_ROWS:
            content["max_rows"] = self.max_rows
        if self.class_moments is not None:
            content["class-moments"] = vars(self.class_moments)
        if self.histograms is not None:
            content["histograms"] = vars(self.histograms)
        if self.model is not None:
            content["model"] = self.model.content()
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")

    @property
    def id(self) -> bytes:
        """32 bytes: the BLAKE2b hash of the canonical form."""
        return hashlib.blake2b(self.canonical(), digest_size=32, person=b"tidings-task-v1").digest()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the model's outputs; empty for regression."""
        return tuple(one.name for one in self.label.classes)


# --- spellings: one table for the reader and for the exported model -----------------------------------------


def spellings(column: CategoryColumn) -> dict[str, int]:
    """Text of a cell -> index in `column.values`; "1" also matches "1.0", as files write floats."""
    return _spelling_table([(value,) for value in column.values])


def label_spellings(label: Label) -> dict[str, int]:
    """Text of a label cell -> class index."""
    return _spelling_table([one.values for one in label.classes])


def _spelling_table(groups: Sequence[Sequence[str]]) -> dict[str, int]:
    table: dict[str, int] = {}
    for index, values in enumerate(groups):
        for value in values:
            for text in spellings_of(value):
                table.setdefault(text, index)
    return table


def spellings_of(value: str) -> tuple[str, ...]:
    """The texts that mean the same as `value` in a cell."""
    if not _WHOLE_NUMBER.fullmatch(value):
        return (value,)
    whole = value.removesuffix(".0")
    return (value, whole, f"{whole}.0")


def dimension(task: Task) -> int:
    """Coordinates of an encoded row, bias included (see fusion.encoders)."""
    if task.histograms is not None:
        from fusion.partitions import partitions_of

        return 1 + partitions_of(task).leaves
    return task.encoder.dimension(task.columns)


def tabular_columns(task: Task) -> tuple[NumberColumn | CategoryColumn, ...]:
    """The columns of numbers and categories."""
    return tuple(one for one in task.columns if isinstance(one, NumberColumn | CategoryColumn))


def columns_width(columns: Sequence[Column]) -> int:
    """Coordinates of all columns of numbers and categories."""
    return sum(column_width(one) for one in columns if isinstance(one, NumberColumn | CategoryColumn))


def column_width(column: NumberColumn | CategoryColumn) -> int:
    """Coordinates of one column: its simplex of k points takes k - 1, its missing indicator 1."""
    return len(column.values) if isinstance(column, CategoryColumn) else (column.bins or 2)


# --- canonical content --------------------------------------------------------------------------------------


def _label_content(label: Label) -> dict[str, Any]:
    if label.classes:
        return {
            "column": label.column,
            "classes": [{"name": one.name, "values": list(one.values)} for one in label.classes],
        }
    return {"column": label.column, "lower": label.lower, "upper": label.upper}


def _unit_content(person: PersonUnit | None) -> str | dict[str, Any]:
    return UNIT_RECORD if person is None else {"column": person.column, "max_rows": person.max_rows}


def _csv_content(csv: CsvFormat) -> dict[str, Any]:
    content: dict[str, Any] = {"header": csv.header, "missing": list(csv.missing), "delimiter": csv.delimiter}
    if not csv.header:
        content["names"] = list(csv.names)
    return content if csv.quote else content | {"quote": False}


def _column_content(column: Column) -> dict[str, Any]:
    if isinstance(column, CategoryColumn):
        return {"name": column.name, "type": "category", "values": list(column.values)}
    if isinstance(column, TextColumn):
        return {"name": column.name, "type": "text"}
    if isinstance(column, ImageColumn):
        size = {"height": column.height, "width": column.width, "channels": column.channels}
        return {"name": column.name, "type": "image", **size}
    content = {"name": column.name, "type": "number", "lower": column.lower, "upper": column.upper}
    return content if column.bins is None else content | {"bins": column.bins}
