"""The checks every task passes, whether it comes from a person's TOML file or from a peer.

An error says which file, line and field is wrong, and what to write instead. Refused: unknown and missing
fields, lists beyond their limits, bounds that are not finite, a cell that would mean two things, names that
would garble a terminal.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fusion.errors import TaskError
from fusion.task import (
    CANONICAL_VERSION,
    COVARIANCES,
    DEFAULT_BIAS,
    DEFAULT_CELL_BINS,
    DEFAULT_DELTA,
    DEFAULT_FEATURES,
    DEFAULT_GAMMA,
    DEFAULT_IMAGE_FEATURES,
    KINDS,
    MAX_BACKBONE_BYTES,
    MAX_BINS,
    MAX_BOUND,
    MAX_CATEGORIES,
    MAX_CELL_FEATURES,
    MAX_CLASS_DIMENSION,
    MAX_CLASS_WIDTH,
    MAX_CLASSES,
    MAX_COLUMNS,
    MAX_DELTA,
    MAX_DIMENSION,
    MAX_DIRECTIONS,
    MAX_EPSILON,
    MAX_FILE_COLUMNS,
    MAX_GAMMA,
    MAX_HIDDEN,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_FEATURES,
    MAX_IMAGE_SIDE,
    MAX_MISSING,
    MAX_NAME_CHARS,
    MAX_PAIRED_COLUMNS,
    MAX_PERSON_ROWS,
    MAX_SEED,
    MAX_TASK_BYTES,
    MAX_TRAINING_ENTRIES,
    MAX_TRAINING_STEPS,
    MIN_DELTA,
    MIN_RELATIVE_WIDTH,
    SUMMARY_KINDS,
    TEXT_CONSTANTS_SHA256,
    TEXT_LENSES,
    TEXT_WEIGHTS_SHA256,
    UNIT_RECORD,
    CategoryColumn,
    ClassMomentsSettings,
    Column,
    CsvFormat,
    EncoderSettings,
    HistogramSettings,
    ImageColumn,
    ImageEncoder,
    Label,
    LabelClass,
    Lift,
    ModelSettings,
    NumberColumn,
    OnnxEncoder,
    PersonUnit,
    PictureInput,
    Privacy,
    TabularEncoder,
    Task,
    TextColumn,
    TextEncoder,
    columns_width,
    dimension,
    spellings_of,
)

MIN_PIXEL_STD = 1e-3  # of pixels in [0, 1], whose steps are 1/255

FieldPath = tuple[str | int, ...]
Fail = Callable[[FieldPath, str], NoReturn]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def task_from_toml(text: str, source: str, folder: Path | None = None) -> Task:
    """See `Task.from_toml`."""
    if len(text) > MAX_TASK_BYTES:
        raise TaskError(f"{source}: a task file of over {MAX_TASK_BYTES} bytes is refused; shorten its lists")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TaskError(_toml_syntax_message(source, str(error))) from None
    except (ValueError, RecursionError):
        raise TaskError(f"{source}: this TOML file cannot be read; check its numbers and brackets") from None

    def fail(path: FieldPath, message: str) -> NoReturn:
        raise TaskError(f"{source} line {_line_of(text, path)}: {_field_name(raw, path)}{message}")

    _take_backbone_file(raw)
    earlier = _inline_initial(raw, folder, fail)
    task = _build(raw, fail)
    if earlier is not None and not _is_same_head(task, earlier):
        fail(
            ("model", "initial_file"),
            "is a model of other columns, classes or another encoder; its weights mean others",
        )
    return task


def _inline_initial(raw: dict[str, Any], folder: Path | None, fail: Fail) -> Task | None:
    """Replaces `model.initial_file` by the weights in that file; returns the task that they were fused for."""
    from fusion.errors import ModelError

    table, path = raw.get("model"), ("model", "initial_file")
    if not isinstance(table, dict) or "initial_file" not in table:
        return None
    from fusion.model_files import MAX_MODEL_BYTES, read_model
    from fusion.shapes import inline_weights

    name = table.pop("initial_file")
    if not isinstance(name, str) or folder is None or "initial" in table:
        fail(path, "must be the name of a model file beside the task file, and the only first weights")
    try:
        with (folder / name).open("rb") as file:
            model, _card = read_model(file.read(MAX_MODEL_BYTES + 1))
        table["initial"] = inline_weights(model)
    except (OSError, ModelError, ValueError) as error:
        fail(path, f"cannot be used: {error}")
    table["initial_model"] = model.digest.hex()
    return model.task


def _is_same_head(task: Task, earlier: Task) -> bool:
    ours, theirs = (
        (one.columns, one.encoder, [(c.name, c.values) for c in one.label.classes]) for one in (task, earlier)
    )
    return ours == theirs


def backbone_file(text: str) -> str | None:
    """`encoder.file` of a TOML text that is a task: where its author keeps the backbone. No part of the task itself."""
    return _take_backbone_file(tomllib.loads(text))


def _take_backbone_file(raw: dict[str, Any]) -> str | None:
    encoder = raw.get("encoder")
    if not isinstance(encoder, dict) or encoder.get("kind") != "onnx" or not isinstance(encoder.get("file"), str):
        return None  # a "file" that means nothing is refused like any other unknown field
    return str(encoder.pop("file"))


def task_from_canonical(data: bytes) -> Task:
    """See `Task.from_canonical`."""
    if len(data) > MAX_TASK_BYTES:
        raise TaskError(f"a task of over {MAX_TASK_BYTES} bytes arrived and was refused; its author must shorten it")
    try:
        raw = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise TaskError("a task arrived that is not canonical JSON; ask its author to send it again") from None
    if not isinstance(raw, dict) or raw.pop("version", None) != CANONICAL_VERSION:
        raise TaskError("a task arrived in a version that is not known here; update the older of the two nodes")

    def fail(path: FieldPath, message: str) -> NoReturn:
        raise TaskError(f"task from a peer: {_field_name(raw, path)}{message}")

    task = _build(raw, fail)
    if task.canonical() != data:
        raise TaskError("a task arrived that is not in canonical form; ask its author to send it again")
    return task


class _Table:
    """One table of the raw task: reads each field once with its check, then refuses what was not read."""

    def __init__(self, raw: object, path: FieldPath, fail: Fail) -> None:
        if not isinstance(raw, dict):
            fail(path, "must be a table of named fields")
        self._raw: Mapping[str, Any] = raw
        self._path = path
        self._fail = fail
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        return key in self._raw

    def fail(self, key: str, message: str) -> NoReturn:
        self._fail((*self._path, key), message)

    def value(self, key: str) -> Any:
        if key not in self._raw:
            self._fail(self._path, f'the field "{key}" is missing; add it')
        self._read.add(key)
        return self._raw[key]

    def table(self, key: str, *, required: bool = True) -> _Table:
        if not required and key not in self._raw:
            return _Table({}, (*self._path, key), self._fail)
        return _Table(self.value(key), (*self._path, key), self._fail)

    def text(self, key: str, default: str | None = None) -> str:
        if default is not None and key not in self._raw:
            return default
        return self._check_text(key, self.value(key))

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        if default is not None and key not in self._raw:
            return default
        value = self.value(key)
        if value not in allowed:
            self.fail(key, f"must be one of: {', '.join(allowed)}")
        return str(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.value(key) if key in self._raw else default
        if not isinstance(value, bool):
            self.fail(key, "must be true or false")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of at most MAX_BOUND in magnitude."""
        if default is not None and key not in self._raw:
            return default
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, "must be a number")
        if not abs(value) <= MAX_BOUND:
            self.fail(key, f"must be finite and at most {MAX_BOUND:g} in magnitude")
        return float(value) + 0.0  # + 0.0 turns -0.0 into 0.0: one canonical form

    def numbers(self, key: str, count: int, default: float) -> tuple[float, ...]:
        """A list of `count` finite numbers; without the field, `default` that many times."""
        if key not in self._raw:
            return (default,) * count
        value = self.value(key)
        if not isinstance(value, list) or len(value) != count:
            self.fail(key, f"must be a list of {count} numbers")
        entry = _Table({str(i): one for i, one in enumerate(value)}, (*self._path, key), self._fail)
        return tuple(entry.number(str(i)) for i in range(count))

    def texts(self, key: str, limit: int, *, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of at most `limit` distinct non-empty texts."""
        if default is not None and key not in self._raw:
            return default
        value = self.value(key)
        if not isinstance(value, list):
            self.fail(key, 'must be a list of texts in quotes, such as ["a", "b"]')
        if len(value) > limit:
            self.fail(key, f"must not hold more than {limit} entries")
        texts = tuple(self._check_text(key, entry, "every entry ") for entry in value)
        if len(set(texts)) < len(texts):
            self.fail(key, "must not name the same value twice")
        return texts

    def tables(self, key: str, limit: int) -> list[_Table]:
        value = self.value(key)
        if not isinstance(value, list) or not value:
            self.fail(key, "must be a list with at least one entry")
        if len(value) > limit:
            self.fail(key, f"must not hold more than {limit} entries")
        return [_Table(entry, (*self._path, key, index), self._fail) for index, entry in enumerate(value)]

    def done(self) -> None:
        unknown = sorted(set(self._raw) - self._read)
        if unknown:
            self.fail(unknown[0], "is not a field known here; remove it or correct its spelling")

    def _check_text(self, key: str, value: object, subject: str = "") -> str:
        if not isinstance(value, str):
            self.fail(key, f'{subject}must be a text in quotes, such as "1"')
        if not value or len(value) > MAX_NAME_CHARS:
            self.fail(key, f"{subject}must have 1 to {MAX_NAME_CHARS} characters")
        if not value.isprintable() or value != value.strip():
            self.fail(key, f"{subject}must be printable, without spaces at its ends")
        return value


def _build(raw: object, fail: Fail) -> Task:
    """The task in parsed TOML or JSON: one check after the other, from the top of the file to its end."""
    top = _Table(raw, (), fail)
    name = top.text("name")
    if not _TASK_NAME.fullmatch(name):
        top.fail("name", "must consist of letters, digits, dots, dashes and underscores")
    kind = top.choice("kind", KINDS)
    summary = top.choice("summary", SUMMARY_KINDS, default="moments")
    if summary == "residual-moments" and kind != "classification":
        top.fail("summary", "is for classification: its residuals are taken about class means; use moments")
    csv = _build_csv(top.table("csv", required=False))
    label = _build_label(top.table("label"), kind, csv)
    privacy = _build_privacy(top.table("privacy"), label, csv)
    columns = _build_columns(top, label, privacy, csv)
    encoder = _build_encoder(top.table("encoder"), columns)
    class_moments = _build_class_moments(top, label) if summary == "class-moments" else None
    histograms = _build_histograms(top, label, columns, encoder) if summary == "histograms" else None
    model = _build_model(top, label) if summary == "model" else None
    top.done()
    task = Task(name, kind, summary, label, privacy, csv, columns, encoder, class_moments, model, histograms)
    if histograms is not None and dimension(task) > MAX_DIMENSION:
        top.fail(
            "histograms", f"have {dimension(task) - 1} cells, over the {MAX_DIMENSION - 1} allowed; lower the bins"
        )
    if class_moments is not None:
        _check_class_moments(top, task)
    if dimension(task) > MAX_DIMENSION:
        top.fail(
            "columns",
            f"are encoded in {dimension(task)} dimensions, over the {MAX_DIMENSION} allowed; name fewer",
        )
    if model is not None:
        _check_training(top.table("model", required=False), task, model)
    return task


def _build_class_moments(top: _Table, label: Label) -> ClassMomentsSettings:
    if not label.classes:
        top.fail("summary", '"class-moments" are moments of classes; choose "moments" for a regression')
    table = top.table("class-moments", required=False)
    settings = ClassMomentsSettings(table.choice("covariance", COVARIANCES, default="full"))
    table.done()
    return settings


def _build_histograms(
    top: _Table, label: Label, columns: tuple[Column, ...], encoder: EncoderSettings
) -> HistogramSettings:
    if not isinstance(encoder, TabularEncoder) or encoder.lift is not None:
        top.fail("summary", '"histograms" count cells of columns; choose the encoder "tabular" without a lift')
    table = top.table("histograms", required=False)
    settings = HistogramSettings(
        bins=_whole_number(table, "bins", 2, MAX_BINS, DEFAULT_CELL_BINS),
        pairs=table.boolean("pairs", default=False),
    )
    table.done()
    most = MAX_CELL_FEATURES // max(len(label.classes), 1)
    if len(columns) > (min(most, MAX_PAIRED_COLUMNS) if settings.pairs else most):
        top.fail("columns", f'are too many for "histograms" of these classes (at most {most}) or pairs; name fewer')
    return settings


def _check_class_moments(top: _Table, task: Task) -> None:
    d, classes = dimension(task), len(task.label.classes)
    if d > MAX_CLASS_DIMENSION:
        top.fail(
            "summary",
            f'"class-moments" takes rows of at most {MAX_CLASS_DIMENSION} dimensions, and these have {d}; choose '
            '"moments", or name fewer columns, bins or categories',
        )
    if d * classes > MAX_CLASS_WIDTH:
        top.fail("summary", f'"class-moments" takes at most {MAX_CLASS_WIDTH // d} classes of {d} dimensions')


def _build_model(top: _Table, label: Label) -> ModelSettings:
    """The table `model`, which a task of summary kind `model` may leave out."""
    if not label.classes:
        top.fail("summary", '"model" learns classes; choose "moments" for a regression')
    table, default = top.table("model", required=False), ModelSettings()
    settings = ModelSettings(
        hidden=_hidden(table, "hidden") if table.has("hidden") else (),
        teacher_hidden=_hidden(table, "teacher_hidden") if table.has("teacher_hidden") else None,
        steps=_whole_number(table, "steps", 1, MAX_TRAINING_STEPS, default=default.steps),
        clip_norm=_positive(table, "clip_norm", default.clip_norm, 1e-3, 1e3),
        learning_rate=_positive(table, "learning_rate", default.learning_rate, 1e-6, 1e6),
        mean_share=_positive(table, "mean_share", default.mean_share, 0.01, 0.99),
        expected_rows=_whole_number(table, "expected_rows", 1, 2**30, default=default.expected_rows),
        seed=_whole_number(table, "seed", 0, MAX_SEED, default=default.seed),
        initial=_base64(table, "initial") if table.has("initial") else "",
        initial_model=table.text("initial_model") if table.has("initial") else "",
    )
    if settings.initial and not re.fullmatch("[0-9a-f]{64}", settings.initial_model):
        table.fail("initial_model", "must be the digest of the model that the weights come from, 64 hexadecimal digits")
    table.done()
    return settings


def _hidden(table: _Table, key: str) -> tuple[int, ...]:
    value = table.value(key)
    if not isinstance(value, list) or len(value) > 1:
        table.fail(key, "must be a list of at most one number, the units of the hidden layer: [] or [32]")
    for units in value:
        if isinstance(units, bool) or not isinstance(units, int) or not 1 <= units <= MAX_HIDDEN:
            table.fail(key, f"must hold a whole number between 1 and {MAX_HIDDEN}")
    return tuple(value)


def _positive(table: _Table, key: str, default: float, least: float, most: float) -> float:
    value = table.number(key, default=default)
    if not least <= value <= most:
        table.fail(key, f"must be between {least:g} and {most:g}")
    return value


def _base64(table: _Table, key: str) -> str:
    value = table.value(key)
    if not isinstance(value, str) or len(value) > MAX_TASK_BYTES or not re.fullmatch("[A-Za-z0-9+/]+=?=?", value):
        table.fail(key, "must be weights as base64; name a model file by initial_file instead")
    return value


def _check_training(table: _Table, task: Task, model: ModelSettings) -> None:
    """That the sizes fit each other, and that noise for all steps is within what is proved."""
    from fusion.shapes import initial_weights, trained_shapes

    entries = model.steps * sum(rows * columns for rows, columns in trained_shapes(task))
    if entries > MAX_TRAINING_ENTRIES:
        table.fail("steps", f"times weights are {entries:,}, over the {MAX_TRAINING_ENTRIES:,} allowed; lower either")
    if model.initial:
        try:
            initial_weights(task)
        except TaskError as error:
            table.fail("initial", str(error))


def _build_csv(table: _Table) -> CsvFormat:
    header = table.boolean("header", default=True)
    missing = table.texts("missing", MAX_MISSING, default=())
    delimiter = table.value("delimiter") if table.has("delimiter") else ","
    if delimiter not in (",", ";", "|", "\t"):
        table.fail("delimiter", 'must be one of ",", ";", "|" and a tab "\\t"')
    names: tuple[str, ...] = ()
    if header and table.has("names"):
        table.fail("names", "are for files without a header line; set header = false or remove them")
    if not header:
        names = table.texts("names", MAX_FILE_COLUMNS)
    quote = table.boolean("quote", default=True)
    table.done()
    return CsvFormat(header, missing, delimiter, names, quote)


def _build_label(table: _Table, kind: str, csv: CsvFormat) -> Label:
    column = table.text("column")
    if csv.names and column not in csv.names:
        table.fail("column", "is not among csv.names; name it there")
    if kind == "regression":
        lower, upper = _bounds(table)
        table.done()
        return Label(column, (), lower, upper)
    entries = table.tables("classes", MAX_CLASSES)
    if len(entries) < 2:
        table.fail("classes", "must name at least two classes")
    classes = tuple(_build_class(entry, csv) for entry in entries)
    table.done()
    if len({one.name for one in classes}) < len(classes):
        table.fail("classes", "must not give two classes the same name")
    _refuse_shared_spellings(table, "classes", [one.values for one in classes])
    return Label(column, classes)


def _build_class(table: _Table, csv: CsvFormat) -> LabelClass:
    name = table.text("name")
    values = _values(table, csv, "label cell that means this class")
    table.done()
    return LabelClass(name, values)


def _build_privacy(table: _Table, label: Label, csv: CsvFormat) -> Privacy:
    max_epsilon = table.number("max_epsilon")
    if not 0 < max_epsilon <= MAX_EPSILON:
        table.fail("max_epsilon", f"must be over 0 and at most {MAX_EPSILON:g}")
    delta = table.number("delta", default=DEFAULT_DELTA)
    if not MIN_DELTA <= delta <= MAX_DELTA:
        table.fail("delta", f"must be between {MIN_DELTA:g} and {MAX_DELTA:g}")
    unit = table.value("unit") if table.has("unit") else UNIT_RECORD
    if unit != UNIT_RECORD and not isinstance(unit, dict):
        table.fail("unit", 'must be "record", or name the column of persons: { column = "patient", max_rows = 4 }')
    person = _build_person(table.table("unit"), label, csv) if isinstance(unit, dict) else None
    table.done()
    return Privacy(max_epsilon, delta, person)


def _build_person(table: _Table, label: Label, csv: CsvFormat) -> PersonUnit:
    column = table.text("column")
    if column == label.column:
        table.fail("column", "is the label column; name the column that says whose row it is")
    if csv.names and column not in csv.names:
        table.fail("column", "is not among csv.names; name it there")
    max_rows = _whole_number(table, "max_rows", 1, MAX_PERSON_ROWS)
    table.done()
    return PersonUnit(column, max_rows)


def _build_columns(top: _Table, label: Label, privacy: Privacy, csv: CsvFormat) -> tuple[Column, ...]:
    tables = top.tables("columns", MAX_COLUMNS)
    columns: list[Column] = []
    names: set[str] = set()
    categories = 0
    for table in tables:
        column = _build_column(table, csv)
        if column.name == label.column:
            table.fail("name", "is the label column; a column that is predicted from cannot be the one predicted")
        if privacy.person is not None and column.name == privacy.person.column:
            table.fail("name", "is the column of persons; an id cannot be a feature")
        if column.name in names:
            table.fail("name", "is used by an earlier column; name every column once")
        if csv.names and column.name not in csv.names:
            table.fail("name", "is not among csv.names; name it there")
        names.add(column.name)
        columns.append(column)
        categories += len(column.values) if isinstance(column, CategoryColumn) else 0
        if categories > MAX_CATEGORIES:
            table.fail("values", f"bring the task over {MAX_CATEGORIES} categories in all; list fewer")
    return tuple(columns)


def _build_column(table: _Table, csv: CsvFormat) -> Column:
    name = table.text("name")
    kind = table.choice("type", ("number", "category", "image", "text"))
    if kind == "image":
        return _build_image(table, name)
    if kind == "text":
        table.done()
        return TextColumn(name)
    if kind == "category":
        values = _values(table, csv, "category the column may hold")
        if len(values) < 2:
            table.fail("values", "must list at least two categories")
        _refuse_shared_spellings(table, "values", [(value,) for value in values])
        table.done()
        return CategoryColumn(name, values)
    lower, upper = _bounds(table)
    bins = _whole_number(table, "bins", 2, MAX_BINS) if table.has("bins") else None
    table.done()
    return NumberColumn(name, lower, upper, bins)


def _build_image(table: _Table, name: str) -> ImageColumn:
    height = _whole_number(table, "height", 1, MAX_IMAGE_SIDE)
    width = _whole_number(table, "width", 1, MAX_IMAGE_SIDE)
    channels = _whole_number(table, "channels", 1, 3) if table.has("channels") else 1
    if channels == 2:
        table.fail("channels", "must be 1 (grey) or 3 (red, green, blue)")
    table.done()
    image = ImageColumn(name, height, width, channels)
    if image.pixels > MAX_IMAGE_BYTES:
        table.fail("width", f"makes pictures of over {MAX_IMAGE_BYTES} bytes; make them smaller")
    return image


def _whole_number(table: _Table, key: str, least: int, most: int, default: int | None = None) -> int:
    if default is not None and not table.has(key):
        return default
    value = table.value(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        table.fail(key, f"must be a whole number between {least} and {most}")
    return int(value)


def _build_encoder(table: _Table, columns: tuple[Column, ...]) -> EncoderSettings:
    kind = table.choice("kind", tuple(_ENCODERS))
    bias = table.number("bias", default=DEFAULT_BIAS)
    if not 0.05 <= bias <= 0.95:
        table.fail("bias", "must be between 0.05 and 0.95")
    settings = _ENCODERS[kind](table, bias, columns)
    table.done()
    return settings


def _build_tabular(table: _Table, bias: float, columns: tuple[Column, ...]) -> TabularEncoder:
    for column in columns:
        if not isinstance(column, NumberColumn | CategoryColumn):
            table.fail("kind", f'does not take pictures or texts, and "{column.name}" is one; choose another encoder')
    lift = _build_lift(table.table("lift"), columns) if table.has("lift") else None
    return TabularEncoder("tabular", bias, lift)


def _build_lift(table: _Table, columns: tuple[Column, ...]) -> Lift:
    features = _whole_number(table, "features", 2, MAX_DIMENSION - 1, default=DEFAULT_FEATURES)
    if features % 2:
        table.fail("features", "must be even: half of them are cosines, half are sines")
    if features // 2 * columns_width(columns) > MAX_DIRECTIONS:
        table.fail("features", f"are too many for columns of {columns_width(columns)} coordinates; ask for fewer")
    gamma = table.number("gamma", default=DEFAULT_GAMMA)
    if not 0 < gamma <= MAX_GAMMA:
        table.fail("gamma", f"must be over 0 and at most {MAX_GAMMA:g}")
    seed = _whole_number(table, "seed", 0, MAX_SEED, default=1)
    table.done()
    return Lift(features, gamma, seed)


def _build_text(table: _Table, bias: float, columns: tuple[Column, ...]) -> TextEncoder:
    if len(columns) != 1 or not isinstance(columns[0], TextColumn):
        table.fail(
            "kind", "takes one column of texts and no other; join texts into one column, or choose another encoder"
        )
    lens = table.choice("lens", TEXT_LENSES, default=TEXT_LENSES[0])
    for key, known in (("weights", TEXT_WEIGHTS_SHA256), ("constants", TEXT_CONSTANTS_SHA256)):
        if table.text(key, default=known) != known:
            table.fail(key, "is not the file that this version uses; leave the field out, or update the older node")
    return TextEncoder("text", bias, lens)


def _build_onnx(table: _Table, bias: float, columns: tuple[Column, ...]) -> OnnxEncoder:
    sha256 = table.text("sha256")
    if not _SHA256.fullmatch(sha256):
        table.fail("sha256", "must be the SHA-256 of the backbone's file: 64 digits 0-9 and a-f")
    size = _whole_number(table, "bytes", 1, MAX_BACKBONE_BYTES)
    features = _whole_number(table, "features", 1, MAX_DIMENSION - 1)
    output = table.text("output", default="")
    picture = None
    if any(isinstance(column, ImageColumn) for column in columns):
        picture = _build_picture(table.table("picture", required=False), columns)
    elif not all(isinstance(column, NumberColumn) for column in columns):
        table.fail("kind", "takes one picture or numbers alone; remove the other columns, or choose another encoder")
    return OnnxEncoder("onnx", bias, sha256, size, features, output, picture)


def _build_picture(table: _Table, columns: tuple[Column, ...]) -> PictureInput:
    column = columns[0]
    if len(columns) > 1 or not isinstance(column, ImageColumn):
        table.fail("layout", "is for a task whose only column is one picture; remove the other columns")
    layout = table.choice("layout", ("NCHW", "NHWC"), default="NCHW")
    height = _whole_number(table, "height", 1, MAX_IMAGE_SIDE) if table.has("height") else column.height
    width = _whole_number(table, "width", 1, MAX_IMAGE_SIDE) if table.has("width") else column.width
    if height < column.height or width < column.width:
        table.fail("height", "and width must not be smaller than the picture's; shrink the pictures beforehand")
    channels = _whole_number(table, "channels", 1, 3) if table.has("channels") else column.channels
    if channels not in (column.channels, 3):
        table.fail("channels", "must be those of the column, or 3 for a grey picture that is repeated in each")
    mean, std = table.numbers("mean", channels, 0.0), table.numbers("std", channels, 1.0)
    if not all(one >= MIN_PIXEL_STD for one in std):
        table.fail("std", f"must be at least {MIN_PIXEL_STD:g} in every channel")
    table.done()
    return PictureInput(layout, height, width, channels, mean, std)


def _build_image_encoder(table: _Table, bias: float, columns: tuple[Column, ...]) -> ImageEncoder:
    if len(columns) != 1 or not isinstance(columns[0], ImageColumn):
        table.fail("kind", "takes one picture and nothing else; name one image column, or choose another encoder")
    features = _whole_number(table, "features", 1, MAX_IMAGE_FEATURES, default=DEFAULT_IMAGE_FEATURES)
    return ImageEncoder("image", bias, features)


_ENCODERS: dict[str, Callable[[_Table, float, tuple[Column, ...]], EncoderSettings]] = {
    "tabular": _build_tabular,
    "image": _build_image_encoder,
    "text": _build_text,
    "onnx": _build_onnx,
}


def _bounds(table: _Table) -> tuple[float, float]:
    lower, upper = table.number("lower"), table.number("upper")
    if not lower < upper:
        table.fail("upper", "must be larger than lower")
    if upper - lower < MIN_RELATIVE_WIDTH * max(abs(lower), abs(upper), 1 / MAX_BOUND):
        table.fail("upper", "is too close to lower to be told apart in single precision; widen the bounds")
    return lower, upper


def _values(table: _Table, csv: CsvFormat, what: str) -> tuple[str, ...]:
    values = table.texts("values", MAX_CATEGORIES)
    if not values:
        table.fail("values", f"must not be empty; list every {what}")
    if set(values) & set(csv.missing):
        table.fail("values", "must not hold an entry of csv.missing, which already means a missing cell")
    return values


def _refuse_shared_spellings(table: _Table, key: str, groups: Sequence[Sequence[str]]) -> None:
    owner: dict[str, int] = {}
    for index, values in enumerate(groups):
        for value in values:
            for text in spellings_of(value):
                if owner.setdefault(text, index) != index:
                    table.fail(key, f'"{value}" is listed twice ("1" and "1.0" are the same); list it once')


# --- where in the file: lines and names for error messages --------------------------------------------------

_SECTION = re.compile(r"^\s*(\[\[|\[)\s*([A-Za-z0-9_.\"'-]+)\s*\]{1,2}\s*(#.*)?$")
_KEY = re.compile(r"^\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*(?:\.|=)")


def _line_of(text: str, path: FieldPath) -> int:
    """The line of the key at `path`, or of the closest table around it that the text shows."""
    best_line, best_depth = 1, -1
    for line, here in _keys_of(text):
        depth = _shared_depth(here, path)
        if depth == len(here) and depth > best_depth:
            best_line, best_depth = line, depth
    return best_line


def _keys_of(text: str) -> list[tuple[int, FieldPath]]:
    """(line, path) of every section and key that starts a line: a small scan, enough to point at a line."""
    found: list[tuple[int, FieldPath]] = []
    section: FieldPath = ()
    counts: dict[str, int] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        header = _SECTION.match(content)
        key = _KEY.match(content)
        if header:
            name = header[2].strip("\"'")
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                section = (name, counts[name])
            else:
                section = tuple(name.split("."))
            found.append((line, section))
        elif key:
            found.append((line, (*section, key[1])))
    return found


def _shared_depth(a: FieldPath, b: FieldPath) -> int:
    depth = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        depth += 1
    return depth


def _field_name(raw: object, path: FieldPath) -> str:
    """`columns[2] "cp": values ` for ("columns", 2, "values"): the field as a person would look for it."""
    if not path:
        return ""
    if len(path) >= 2 and isinstance(path[1], int):
        entry = f"{path[0]}[{path[1]}]"
        name = _entry_name(raw, path[:2])
        entry += f' "{name}"' if name else ""
        return f"{entry}: " + (_dotted(path[2:]) + " " if path[2:] else "")
    return f"{_dotted(path)} "


def _dotted(path: FieldPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    shown = text.lstrip(".")
    return shown if shown.isprintable() and len(shown) <= MAX_NAME_CHARS else "a field"


def _entry_name(raw: object, path: FieldPath) -> str:
    value: Any = raw
    for part in path:
        value = value[part]
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= MAX_NAME_CHARS else ""


def _toml_syntax_message(source: str, detail: str) -> str:
    """tomllib says `Expected '=' after a key (at line 3, column 5)`: put the line first."""
    match = re.search(r"^(.*) \(at line (\d+), column \d+\)$", detail)
    if match:
        return f"{source} line {match[2]}: this is not valid TOML: {match[1]}"
    return f"{source}: this is not valid TOML: {detail}"
