"""The checks every task passes, whether it comes from a person's TOML file or from a peer.

An error says which file, line and field is wrong, and what to write instead. Refused: unknown and missing
fields, lists beyond their limits, bounds that are not finite, a cell that would mean two things, names that
would garble a terminal.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fusion.errors import TaskError
from fusion.outside import parse_json
from fusion.task import (
    CANONICAL_VERSION,
    DEFAULT_DELTA,
    KINDS,
    MAX_BINS,
    MAX_BOUND,
    MAX_CATEGORIES,
    MAX_CLASSES,
    MAX_COLUMNS,
    MAX_DELTA,
    MAX_DIMENSION,
    MAX_EPSILON,
    MAX_FILE_COLUMNS,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_SIDE,
    MAX_MISSING,
    MAX_PERSON_ROWS,
    MAX_ROWS,
    MAX_TASK_BYTES,
    MIN_DELTA,
    MIN_RELATIVE_WIDTH,
    SUMMARY_KINDS,
    UNIT_RECORD,
    CategoryColumn,
    Column,
    CsvFormat,
    ImageColumn,
    Label,
    LabelClass,
    NumberColumn,
    PersonUnit,
    Privacy,
    Task,
    TextColumn,
    dimension,
    spellings_of,
)
from fusion.task_encoders import build_encoder
from fusion.task_kinds import build_class_moments, build_histograms, build_model, check_class_moments, check_training
from fusion.task_tables import Fail, FieldPath, Table, field_name, line_of, syntax_message, whole_number

MAX_TASK_VALUES = 1_000_000  # as commas and brackets: 100,000 categories and 10,000 columns are 200,000
MAX_TASK_DEPTH = 16

_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def task_from_toml(text: str, source: str, folder: Path | None = None) -> Task:
    """See `Task.from_toml`."""
    if len(text) > MAX_TASK_BYTES:
        raise TaskError(f"{source}: a task file of over {MAX_TASK_BYTES} bytes is refused; shorten its lists")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TaskError(syntax_message(source, str(error))) from None
    except (ValueError, RecursionError):
        raise TaskError(f"{source}: this TOML file cannot be read; check its numbers and brackets") from None

    def fail(path: FieldPath, message: str) -> NoReturn:
        raise TaskError(f"{source} line {line_of(text, path)}: {field_name(raw, path)}{message}")

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
        raw = parse_json(data.decode("utf-8"), values=MAX_TASK_VALUES, depth=MAX_TASK_DEPTH)
    except (ValueError, RecursionError):
        raise TaskError("a task arrived that is not canonical JSON; ask its author to send it again") from None
    if not isinstance(raw, dict) or raw.pop("version", None) != CANONICAL_VERSION:
        raise TaskError("a task arrived in a version that is not known here; update the older of the two nodes")

    def fail(path: FieldPath, message: str) -> NoReturn:
        raise TaskError(f"task from a peer: {field_name(raw, path)}{message}")

    task = _build(raw, fail)
    if task.canonical() != data:
        raise TaskError("a task arrived that is not in canonical form; ask its author to send it again")
    return task


def _build(raw: object, fail: Fail) -> Task:
    """The task in parsed TOML or JSON: one check after the other, from the top of the file to its end."""
    top = Table(raw, (), fail)
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
    encoder = build_encoder(top.table("encoder"), columns)
    class_moments = build_class_moments(top, label) if summary == "class-moments" else None
    histograms = build_histograms(top, label, columns, encoder) if summary == "histograms" else None
    model = build_model(top, label) if summary == "model" else None
    max_rows = whole_number(top, "max_rows", 1, MAX_ROWS, MAX_ROWS)
    top.done()
    task = Task(name, kind, summary, label, privacy, csv, columns, encoder, class_moments, model, histograms, max_rows)
    if histograms is not None and dimension(task) > MAX_DIMENSION:
        top.fail(
            "histograms", f"have {dimension(task) - 1} cells, over the {MAX_DIMENSION - 1} allowed; lower the bins"
        )
    if class_moments is not None:
        check_class_moments(top, task)
    if dimension(task) > MAX_DIMENSION:
        top.fail(
            "columns",
            f"are encoded in {dimension(task)} dimensions, over the {MAX_DIMENSION} allowed; name fewer",
        )
    if model is not None:
        check_training(top.table("model", required=False), task, model)
    return task


def _build_csv(table: Table) -> CsvFormat:
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


def _build_label(table: Table, kind: str, csv: CsvFormat) -> Label:
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


def _build_class(table: Table, csv: CsvFormat) -> LabelClass:
    name = table.text("name")
    values = _values(table, csv, "label cell that means this class")
    table.done()
    return LabelClass(name, values)


def _build_privacy(table: Table, label: Label, csv: CsvFormat) -> Privacy:
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


def _build_person(table: Table, label: Label, csv: CsvFormat) -> PersonUnit:
    column = table.text("column")
    if column == label.column:
        table.fail("column", "is the label column; name the column that says whose row it is")
    if csv.names and column not in csv.names:
        table.fail("column", "is not among csv.names; name it there")
    max_rows = whole_number(table, "max_rows", 1, MAX_PERSON_ROWS)
    table.done()
    return PersonUnit(column, max_rows)


def _build_columns(top: Table, label: Label, privacy: Privacy, csv: CsvFormat) -> tuple[Column, ...]:
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


def _build_column(table: Table, csv: CsvFormat) -> Column:
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
    bins = whole_number(table, "bins", 2, MAX_BINS) if table.has("bins") else None
    table.done()
    return NumberColumn(name, lower, upper, bins)


def _build_image(table: Table, name: str) -> ImageColumn:
    height = whole_number(table, "height", 1, MAX_IMAGE_SIDE)
    width = whole_number(table, "width", 1, MAX_IMAGE_SIDE)
    channels = whole_number(table, "channels", 1, 3) if table.has("channels") else 1
    if channels == 2:
        table.fail("channels", "must be 1 (grey) or 3 (red, green, blue)")
    table.done()
    image = ImageColumn(name, height, width, channels)
    if image.pixels > MAX_IMAGE_BYTES:
        table.fail("width", f"makes pictures of over {MAX_IMAGE_BYTES} bytes; make them smaller")
    return image


def _bounds(table: Table) -> tuple[float, float]:
    lower, upper = table.number("lower"), table.number("upper")
    if not lower < upper:
        table.fail("upper", "must be larger than lower")
    if upper - lower < MIN_RELATIVE_WIDTH * max(abs(lower), abs(upper), 1 / MAX_BOUND):
        table.fail("upper", "is too close to lower to be told apart in single precision; widen the bounds")
    return lower, upper


def _values(table: Table, csv: CsvFormat, what: str) -> tuple[str, ...]:
    values = table.texts("values", MAX_CATEGORIES)
    if not values:
        table.fail("values", f"must not be empty; list every {what}")
    if set(values) & set(csv.missing):
        table.fail("values", "must not hold an entry of csv.missing, which already means a missing cell")
    return values


def _refuse_shared_spellings(table: Table, key: str, groups: Sequence[Sequence[str]]) -> None:
    owner: dict[str, int] = {}
    for index, values in enumerate(groups):
        for value in values:
            for text in spellings_of(value):
                if owner.setdefault(text, index) != index:
                    table.fail(key, f'"{value}" is listed twice ("1" and "1.0" are the same); list it once')
