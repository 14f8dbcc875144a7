"""Class moments: a covariance for each class, as far as noise lets classes differ; quadratic models in every file."""

import dataclasses

import numpy as np
import onnxruntime
import pytest

from fusion.artifact import Model, layer_names, to_tensors
from fusion.class_gaussians import MLP, QDA, ClassGaussians, pooled_statistics
from fusion.dataset import Batch
from fusion.errors import ModelError, TaskError
from fusion.fuse import Sums, fuse
from fusion.heads import RELU, SQUARE, Layer, forward
from fusion.model import build_model, card, read_model, write_onnx, write_safetensors
from fusion.onnx_graph import onnx_model
from fusion.scoring import onnx_inputs, softmax
from fusion.statistics import statistics_of
from fusion.summaries import kind_of
from fusion.task import Task
from tests.partners import CLASSES_TOML, NUMBER_TOML, WARD, contribution, exact, noisy, ward_rows

TASK = Task.from_toml('summary = "class-moments"\n' + CLASSES_TOML, "ward.toml")
VARIANCES = Task.from_toml(
    TASK_TEXT := f'summary = "class-moments"\n{CLASSES_TOML}[class-moments]\ncovariance = "diagonal"\n', "w"
)
PARTNERS = [noisy(TASK, ward_rows(2_000, seed), 5.0, f"{seed}") for seed in range(3)]

RINGS = Task.from_toml(
    """
name = "rings"
kind = "classification"
summary = "class-moments"
[label]
column = "y"
classes = [ { name = "inside", values = ["0"] }, { name = "outside", values = ["1"] } ]
[privacy]
max_epsilon = 10.0
[[columns]]
name = "a"
type = "number"
lower = -3
upper = 3
[[columns]]
name = "b"
type = "number"
lower = -3
upper = 3
[encoder]
kind = "tabular"
""",
    "rings.toml",
)


def rings(count: int, seed: int) -> Batch:
    """Two Gaussians about one center: no line tells them apart, an ellipse does."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, count)
    points = rng.normal(0.0, np.where(label, 1.5, 0.3)[:, None], (count, 2))
    return Batch({"a": points[:, 0], "b": points[:, 1]}, {}, label, count)


def accuracy(model: Model, batch: Batch) -> float:
    return float((forward(model.layers, model.encoder.encode(batch)).argmax(axis=1) == batch.label).mean())


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_classes_that_differ_in_scatter_alone_are_told_apart(covariance: str, epsilon: float) -> None:
    task = dataclasses.replace(RINGS, class_moments=type(RINGS.class_moments)(covariance))
    held = [noisy(task, rings(2_000, seed), epsilon, f"{seed}") for seed in range(3)]
    test = rings(4_000, 9)
    assert accuracy(build_model(task, held, QDA), test) > 0.8
    assert accuracy(build_model(task, held, MLP), test) > 0.75
    if covariance == "full":
        assert accuracy(build_model(task, held, "lda"), test) < 0.7


def test_the_sum_over_classes_is_the_moments() -> None:
    rows = ward_rows(700, 3)
    ours = kind_of(TASK).statistics(TASK, Sums.of(exact(TASK, rows, "one").summary))
    theirs = statistics_of(WARD, Sums.of(exact(WARD, rows, "one").summary))
    for field in dataclasses.fields(ours):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))


def test_pooling_the_classes_costs_the_square_root_of_their_number() -> None:
    sums = Sums.of(PARTNERS[0].summary)
    pooled = pooled_statistics(TASK, sums)
    assert pooled.gram_sigma == pytest.approx(np.sqrt(3) * sums.sigma("class_gram_diagonal"))
    assert pooled.cross_sigma == pytest.approx(sums.sigma("class_cross"))


def test_noise_pools_the_covariances_and_data_keep_them_apart() -> None:
    """A class whose covariance is lost in noise gets that of all; one of many rows its own."""
    clear = fuse(RINGS, [noisy(RINGS, rings(20_000, 1), 8.0, "clear")])
    lost = fuse(RINGS, [noisy(RINGS, rings(60, 1), 0.2, "lost")])
    assert (ClassGaussians.of(RINGS, clear.sums).pooling < 0.1).all()
    assert (ClassGaussians.of(RINGS, lost.sums).pooling > 0.5).all()


def test_without_noise_the_covariances_are_those_of_the_rows() -> None:
    rows = rings(30_000, 4)
    x = build_model(RINGS, [exact(RINGS, rows, "one")]).encoder.encode(rows)[:, :-1]
    found = ClassGaussians.of(RINGS, fuse(RINGS, [exact(RINGS, rows, "one")]).sums)
    for c in range(2):
        expected = np.cov(x[rows.label == c].T, bias=True)
        np.testing.assert_allclose(found.covariances[c].matrix, expected, atol=2e-3)
        np.testing.assert_allclose(found.means[c], x[rows.label == c].mean(axis=0), atol=1e-4)


def test_the_layers_are_the_discriminants_of_the_gaussians() -> None:
    sums = fuse(TASK, PARTNERS).sums
    gaussians = ClassGaussians.of(TASK, sums)
    model = build_model(TASK, PARTNERS, QDA)
    x = model.encoder.encode(ward_rows(40, 6))
    expected = np.empty((40, 3))
    for c, (mean, one) in enumerate(zip(gaussians.means, gaussians.covariances, strict=True)):
        away = x[:, :-1] - mean
        distances = (away * np.linalg.solve(one.matrix, away.T).T).sum(axis=1)
        expected[:, c] = np.log(gaussians.priors[c]) - np.linalg.slogdet(one.matrix)[1] / 2 - distances / 2
    np.testing.assert_allclose(forward(gaussians.layers(), x), gaussians.slope * expected, rtol=1e-9, atol=1e-9)
    assert 0.0 < gaussians.slope < 1.0


@pytest.mark.parametrize("task", [TASK, VARIANCES], ids=["full", "diagonal"])
def test_a_quadratic_model_round_trips_and_its_graph_agrees_on_missing_and_unknown_cells(task: Task) -> None:
    held = [noisy(task, ward_rows(2_000, seed), 5.0, f"{seed}") for seed in range(3)]
    model = build_model(task, held, QDA)
    assert layer_names(model.tensors) == ["layer0.square", "layer1"]
    assert [layer.activation for layer in model.layers] == [SQUARE, RELU]
    content = card(model, [], "node", "now")
    for data in (write_onnx(model, content), write_safetensors(model, content)):
        assert read_model(data)[0].digest == model.digest
    batch = ward_rows(300, 8)
    inputs = onnx_inputs(batch, task)
    batch.numbers.update({name: values.astype(np.float32).astype(np.float64) for name, values in batch.numbers.items()})
    (found,) = onnxruntime.InferenceSession(onnx_model(model, {}).SerializeToString()).run(["probabilities"], inputs)
    expected = softmax(forward(model.layers, model.encoder.encode(batch)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tensors_that_are_no_chain_of_layers_are_refused() -> None:
    model = build_model(TASK, PARTNERS, QDA)
    weight, bias = model.tensors["layer0.square.weight"], model.tensors["layer0.square.bias"]
    d = model.encoder.dimension
    last_squared = to_tensors((Layer(np.zeros((d, 3)), np.zeros(3), SQUARE),))
    both = {**model.tensors, "layer0.weight": weight, "layer0.bias": bias}
    odd = {("layer1.cube.weight" if name == "layer1.weight" else name): one for name, one in model.tensors.items()}
    for tensors in (last_squared, both, odd):
        lying = Model(model.manifest, tensors)
        with pytest.raises(ModelError, match="damaged"):
            read_model(write_safetensors(lying, card(lying, [], "node", "now")))


def test_variances_alone_have_no_head_of_moments_and_say_so() -> None:
    held = [noisy(VARIANCES, ward_rows(500, 1), 5.0, "one")]
    with pytest.raises(ModelError, match='no head "lda" for this task; choose one of: qda'):
        build_model(VARIANCES, held, "lda")
    with pytest.raises(ModelError, match="hold no covariances"):
        fuse(VARIANCES, held).statistics  # noqa: B018 - a property that raises


def test_an_unseen_class_is_named_and_predicted_for_nobody() -> None:
    models = []
    for _ in range(7):
        rows = [ward_rows(3_000, s, classes=(0, 1)) for s in range(2)]
        held = [contribution(str(s), noisy(TASK, one, 5.0, "x").summary) for s, one in enumerate(rows)]
        models.append(build_model(TASK, held, QDA))
    naming = [model for model in models if model.manifest["method"]["unseen_classes"] == ["icu"]]
    assert len(naming) > 3, "noise alone passes for rows one time in 44: two deviations"
    predicted = forward(naming[0].layers, naming[0].encoder.encode(ward_rows(500, 5))).argmax(axis=1)
    assert (predicted == 2).mean() < 0.05


def test_what_the_kind_cannot_take_is_refused_when_the_task_is_read() -> None:
    wide = ", ".join(f'"{value}"' for value in range(70))
    column = f'[[columns]]\nname = "code"\ntype = "category"\nvalues = [{wide}]\n[encoder]\n'
    with pytest.raises(TaskError, match=r'at most 64 dimensions, and these have 79; choose "moments"'):
        Task.from_toml('summary = "class-moments"\n' + CLASSES_TOML.replace("[encoder]\n", column), "t")
    with pytest.raises(TaskError, match='choose "moments" for a regression'):
        Task.from_toml('summary = "class-moments"\n' + NUMBER_TOML, "t")
    with pytest.raises(TaskError, match="must be one of: full, diagonal"):
        Task.from_toml(TASK_TEXT.replace('"diagonal"', '"round"'), "t")
    with pytest.raises(TaskError, match="is not a field known here"):
        Task.from_toml(CLASSES_TOML + '[class-moments]\ncovariance = "full"\n', "t")


def test_the_option_is_part_of_the_task_of_that_kind_alone() -> None:
    assert b'"class-moments":{"covariance":"full"}' in TASK.canonical()
    assert b"class-moments" not in WARD.canonical()
    for task in (TASK, VARIANCES):
        assert Task.from_canonical(task.canonical()) == task
    assert TASK.id != VARIANCES.id
