"""Running a model file on raw rows, and scoring it against their labels.

An .onnx file is run by ONNX Runtime from raw columns (from the output of its backbone, where its task has one), a
.safetensors file by the encoder and its layers in float64; they agree to the precision of float32. Rows are streamed;
scoring keeps one probability per row and class, which the area under the curve needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusion.artifact import Model, label_scale
from fusion.heads import forward
from fusion.model_files import is_onnx, read_model
from fusion.summaries.moments import BLOCK_ROWS, parts_of
from fusion.task import CategoryColumn, ImageColumn, NumberColumn, Task

if TYPE_CHECKING:
    from fusion.dataset import Batch

Floats = NDArray[np.float64]
Runner = Callable[["Batch"], Floats]

SMALLEST_PROBABILITY = 1e-7  # about the precision of float32: log loss stays finite


@dataclass(frozen=True)
class Predictions:
    """Predictions for a batch of rows: (n, C) class probabilities, or (n, 1) numbers in the label's own units."""

    class_names: tuple[str, ...]
    values: Floats

    @property
    def columns(self) -> tuple[str, ...]:
        """Names for the cells of `rows`."""
        return ("prediction", *self.class_names)

    def rows(self) -> Iterator[list[str]]:
        """The predicted class and the probability of each class, or the number, as texts."""
        for values in self.values:
            if self.class_names:
                yield [self.class_names[values.argmax()], *(f"{value:.6f}" for value in values)]
            else:
                yield [f"{values[0]:.7g}"]

    def __len__(self) -> int:
        return len(self.values)


def predict(data: bytes, paths: Sequence[Path]) -> Iterator[Predictions]:
    """Predictions for the rows of the files, in order. ModelError or DataError for what cannot be read."""
    from fusion.dataset import read_batches

    model, run = _open(data)
    for batch in read_batches(paths, model.task, need_label=False):
        yield Predictions(model.task.class_names, run(batch))


def evaluate(data: bytes, paths: Sequence[Path]) -> dict[str, Any]:
    """Scores over the labeled rows of the files.

    Classes: n, accuracy, balanced_accuracy (mean recall of the classes present), auc, log_loss, and per_class: name, n,
    recall and precision of each. Numbers: n, r2, rmse, mae, against labels clipped to the task's bounds. A score that
    the rows do not define (auc with one class only, r2 of a constant) is None.
    """
    from fusion.dataset import read_batches

    model, run = _open(data)
    predicted, labels = [], []
    for batch in read_batches(paths, model.task):
        predicted.append(run(batch).astype(np.float32))
        labels.append(np.asarray(batch.label))
    values, truth = np.concatenate(predicted).astype(np.float64), np.concatenate(labels)
    if model.task.label.classes:
        scores = class_scores(values, truth)
        named = zip(model.task.class_names, scores["per_class"], strict=True)
        return scores | {"per_class": [{"name": name} | one for name, one in named]}
    return number_scores(values[:, 0], _unscaled(model.task, truth))


def class_scores(probabilities: Floats, label: NDArray[np.int64]) -> dict[str, Any]:
    """Scores of (n, C) probabilities against class indices; see `evaluate`."""
    guess = probabilities.argmax(axis=1)
    right = guess == label
    present = np.unique(label)
    own = probabilities[np.arange(len(label)), label]
    return {
        "n": len(label),
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean([right[label == c].mean() for c in present])),
        "auc": _auc(probabilities, label),
        "log_loss": float(-np.log(np.maximum(own, SMALLEST_PROBABILITY)).mean()),
        "per_class": [_one_class(guess == c, label == c) for c in range(probabilities.shape[1])],
    }


def _one_class(guessed: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, Any]:
    """n rows of the class, the share of them recognized, and the share of guesses of the class that are right."""
    found = int((guessed & true).sum())
    return {
        "n": int(true.sum()),
        "recall": found / int(true.sum()) if true.any() else None,
        "precision": found / int(guessed.sum()) if guessed.any() else None,
    }


def number_scores(values: Floats, truth: Floats) -> dict[str, Any]:
    """Scores of predicted numbers; see `evaluate`."""
    error = values - truth
    spread = float(((truth - truth.mean()) ** 2).sum())
    return {
        "n": len(truth),
        "r2": 1.0 - float((error**2).sum()) / spread if spread > 0.0 else None,
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
    }


def _auc(probabilities: Floats, label: NDArray[np.int64]) -> float | None:
    """Two classes: of the second. More: the mean over the classes present of each against the rest."""
    classes = [1] if probabilities.shape[1] == 2 else np.unique(label).tolist()
    areas = [area for c in classes if (area := area_under_curve(probabilities[:, c], label == c)) is not None]
    return float(np.mean(areas)) if areas else None


def area_under_curve(score: Floats, positive: NDArray[np.bool_]) -> float | None:
    """The share of (positive, negative) pairs that the score ranks rightly, ties counting half."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return None
    _values, place, count = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2.0
    ranks = float(mean_rank[place][positive].sum())
    return (ranks - positives * (positives + 1) / 2.0) / (positives * negatives)


# --- running ----------------------------------------------------------------------------------------------------


def _open(data: bytes) -> tuple[Model, Runner]:
    model, _card = read_model(data)
    return model, _in_blocks(_onnx_runner(data, model) if is_onnx(data) else _layers_runner(model))


def _in_blocks(run: Runner) -> Runner:
    """The same, BLOCK_ROWS rows at a time: an encoded row of thousands of cells or pixels is larger than the row."""

    def in_blocks(batch: Batch) -> Floats:
        if len(batch) <= BLOCK_ROWS:
            return run(batch)
        return np.concatenate([run(batch.slice(part)) for part in parts_of(len(batch))])

    return in_blocks


def _layers_runner(model: Model) -> Runner:
    def run(batch: Batch) -> Floats:
        outputs = forward(model.layers, model.encoder.encode(batch))
        return softmax(outputs) if model.task.label.classes else _unscaled(model.task, np.clip(outputs, -1.0, 1.0))

    return run


def _onnx_runner(data: bytes, model: Model) -> Runner:
    """`data` must have passed `read_model`: only a graph that we would write ourselves reaches the runtime."""
    from fusion import onnx_runtime
    from fusion.onnx_graph import output_names

    onnxruntime = onnx_runtime.load()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    wanted = [output_names(model.task)[-1]]
    inputs = _inputs_of(model)

    def run(batch: Batch) -> Floats:
        (values,) = session.run(wanted, inputs(batch))
        return np.asarray(values, dtype=np.float64)

    return run


def _inputs_of(model: Model) -> Callable[[Batch], dict[str, NDArray[Any]]]:
    """What makes the graph's inputs of a batch: its columns, or what the task's backbone says of them."""
    if model.task.encoder.kind == "onnx":
        from fusion.encoders.backbone import BackboneRows
        from fusion.encoders.backbone_graph import INPUT

        backbone = BackboneRows.of(model.task)
        return lambda batch: {INPUT: backbone.outputs(batch)}
    if model.task.encoder.kind == "text":
        from fusion.encoders.text import TextRows
        from fusion.encoders.text_graph import INPUT as SENTENCE

        rows = TextRows.of(model.task)
        return lambda batch: {SENTENCE: rows.vectors(batch)}
    return lambda batch: onnx_inputs(batch, model.task)


def onnx_inputs(batch: Batch, task: Task) -> dict[str, NDArray[Any]]:
    """The columns of a batch as the graph takes them: float32 with NaN, and texts, empty for missing, all [N, 1]; bytes
    of pictures [N, height, width, channels]."""
    inputs: dict[str, NDArray[Any]] = {}
    for column in task.columns:
        if isinstance(column, CategoryColumn):
            texts = np.array([*column.values, ""], dtype=object)
            inputs[column.name] = texts[batch.categories[column.name]][:, None]
        elif isinstance(column, NumberColumn):
            inputs[column.name] = batch.numbers[column.name].astype(np.float32)[:, None]
        elif isinstance(column, ImageColumn):
            inputs[column.name] = batch.images[column.name]
    return inputs


def softmax(logits: Floats) -> Floats:
    """Probabilities of each row of logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _unscaled(task: Task, scaled: Floats) -> Floats:
    """From [-1, 1] to the units of the label."""
    middle, half = label_scale(task)
    return middle + half * scaled
