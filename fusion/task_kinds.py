"""The tables of a task that belong to one kind of summary: `class-moments`, `histograms`, `model`."""

from __future__ import annotations

import re

from fusion.errors import TaskError
from fusion.task import (
    COVARIANCES,
    DEFAULT_CELL_BINS,
    MAX_BINS,
    MAX_CELL_FEATURES,
    MAX_CLASS_DIMENSION,
    MAX_CLASS_WIDTH,
    MAX_HIDDEN,
    MAX_PAIRED_COLUMNS,
    MAX_SEED,
    MAX_TASK_BYTES,
    MAX_TRAINING_ENTRIES,
    MAX_TRAINING_STEPS,
    ClassMomentsSettings,
    Column,
    EncoderSettings,
    HistogramSettings,
    Label,
    ModelSettings,
    TabularEncoder,
    Task,
    dimension,
)
from fusion.task_tables import Table, number_between, whole_number


def build_class_moments(top: Table, label: Label) -> ClassMomentsSettings:
    """The table `class-moments`, which may be left out."""
    if not label.classes:
        top.fail("summary", '"class-moments" are moments of classes; choose "moments" for a regression')
    table = top.table("class-moments", required=False)
    settings = ClassMomentsSettings(table.choice("covariance", COVARIANCES, default="full"))
    table.done()
    return settings


def build_histograms(
    top: Table, label: Label, columns: tuple[Column, ...], encoder: EncoderSettings
) -> HistogramSettings:
    """The table `histograms`, which may be left out."""
    if not isinstance(encoder, TabularEncoder) or encoder.lift is not None:
        top.fail("summary", '"histograms" count cells of columns; choose the encoder "tabular" without a lift')
    table = top.table("histograms", required=False)
    settings = HistogramSettings(
        bins=whole_number(table, "bins", 2, MAX_BINS, DEFAULT_CELL_BINS),
        pairs=table.boolean("pairs", default=False),
    )
    table.done()
    most = MAX_CELL_FEATURES // max(len(label.classes), 1)
    if len(columns) > (min(most, MAX_PAIRED_COLUMNS) if settings.pairs else most):
        top.fail("columns", f'are too many for "histograms" of these classes (at most {most}) or pairs; name fewer')
    return settings


def check_class_moments(top: Table, task: Task) -> None:
    """That rows and classes are few enough for a covariance each."""
    d, classes = dimension(task), len(task.label.classes)
    if d > MAX_CLASS_DIMENSION:
        top.fail(
            "summary",
            f'"class-moments" takes rows of at most {MAX_CLASS_DIMENSION} dimensions, and these have {d}; choose '
            '"moments", or name fewer columns, bins or categories',
        )
    if d * classes > MAX_CLASS_WIDTH:
        top.fail("summary", f'"class-moments" takes at most {MAX_CLASS_WIDTH // d} classes of {d} dimensions')


def build_model(top: Table, label: Label) -> ModelSettings:
    """The table `model`, which a task of summary kind `model` may leave out."""
    if not label.classes:
        top.fail("summary", '"model" learns classes; choose "moments" for a regression')
    table, default = top.table("model", required=False), ModelSettings()
    settings = ModelSettings(
        hidden=_hidden(table, "hidden") if table.has("hidden") else (),
        teacher_hidden=_hidden(table, "teacher_hidden") if table.has("teacher_hidden") else None,
        steps=whole_number(table, "steps", 1, MAX_TRAINING_STEPS, default=default.steps),
        clip_norm=number_between(table, "clip_norm", default.clip_norm, 1e-3, 1e3),
        learning_rate=number_between(table, "learning_rate", default.learning_rate, 1e-6, 1e6),
        mean_share=number_between(table, "mean_share", default.mean_share, 0.01, 0.99),
        expected_rows=whole_number(table, "expected_rows", 1, 2**30, default=default.expected_rows),
        seed=whole_number(table, "seed", 0, MAX_SEED, default=default.seed),
        initial=_base64(table, "initial") if table.has("initial") else "",
        initial_model=table.text("initial_model") if table.has("initial") else "",
    )
    if settings.initial and not re.fullmatch("[0-9a-f]{64}", settings.initial_model):
        table.fail("initial_model", "must be the digest of the model that the weights come from, 64 hexadecimal digits")
    table.done()
    return settings


def _hidden(table: Table, key: str) -> tuple[int, ...]:
    value = table.value(key)
    if not isinstance(value, list) or len(value) > 1:
        table.fail(key, "must be a list of at most one number, the units of the hidden layer: [] or [32]")
    for units in value:
        if isinstance(units, bool) or not isinstance(units, int) or not 1 <= units <= MAX_HIDDEN:
            table.fail(key, f"must hold a whole number between 1 and {MAX_HIDDEN}")
    return tuple(value)


def _base64(table: Table, key: str) -> str:
    value = table.value(key)
    if not isinstance(value, str) or len(value) > MAX_TASK_BYTES or not re.fullmatch("[A-Za-z0-9+/]+=?=?", value):
        table.fail(key, "must be weights as base64; name a model file by initial_file instead")
    return value


def check_training(table: Table, task: Task, model: ModelSettings) -> None:
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
