"""The image encoder: the same bits in any batch, unit length for any picture, and the exported graph agrees."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusion.dataset import Batch
from fusion.encoders import encoder_for, image
from fusion.encoders.image import Constants, ImageRows, area_sampling, constants, grey, resized, scattering
from fusion.errors import TaskError
from fusion.heads import forward
from fusion.model import build_model, card, read_model, write_onnx
from fusion.release import measure, noisy_summary
from fusion.scoring import onnx_inputs, softmax
from fusion.task import Task
from tests.partners import contribution

TASK = """
name = "shapes"
kind = "classification"
[label]
column = "label"
classes = [ { name = "disc", values = ["0"] }, { name = "bar", values = ["1"] }, { name = "cross", values = ["2"] } ]
[privacy]
max_epsilon = 8.0
delta = 1e-5
[[columns]]
name = "picture"
type = "image"
height = %d
width = %d
channels = %d
[encoder]
kind = "image"
features = %d
bias = 0.2
"""


def task_of(height: int = 28, width: int = 28, channels: int = 1, features: int = 30) -> Task:
    return Task.from_toml(TASK % (height, width, channels, features), "shapes.toml")


SIZES = {"28 x 28 grey": (28, 28, 1), "40 x 33 grey": (40, 33, 1), "9 x 64 color": (9, 64, 3), "1 x 1 color": (1, 1, 3)}


def batch_of(pictures: NDArray[np.uint8], label: NDArray[np.int64] | None = None) -> Batch:
    return Batch({}, {}, label, len(pictures), images={"picture": pictures})


def noise_pictures(count: int, shape: tuple[int, int, int], seed: int) -> NDArray[np.uint8]:
    """Anything at all: dark, bright, and uniformly random pixels."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (count, *shape), np.uint8)
    pictures[rng.random(count) < 0.2] = 0
    pictures[rng.random(count) < 0.2] = 255
    return pictures


def shapes(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Discs, bars and crosses of any place, size and brightness."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count)
    y, x = np.mgrid[:28, :28][:, None]
    size, bright = rng.uniform(4, 9, (count, 1, 1)), rng.uniform(90, 255, (count, 1, 1))
    away_y, away_x = np.abs(y - rng.uniform(10, 17, (count, 1, 1))), np.abs(x - rng.uniform(10, 17, (count, 1, 1)))
    disc = away_y**2 + away_x**2 < size**2
    bar = (away_y < 2) & (away_x < size)
    cross = bar | ((away_x < 2) & (away_y < size))
    inside = np.select([label[:, None, None] == 0, label[:, None, None] == 1], [disc, bar], cross)
    return (inside * bright).astype(np.uint8)[..., None], label


# --- bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES.keys())
@given(rows=st.integers(1, 150), at=st.integers(0, 149), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
def test_a_row_is_the_same_bits_in_any_batch_and_of_length_one(
    shape: tuple[int, int, int], rows: int, at: int, seed: int
) -> None:
    encoder = encoder_for(task_of(*shape))
    pictures = noise_pictures(rows, shape, seed)
    x = encoder.encode(batch_of(pictures))
    at %= rows
    assert x[at].tobytes() == encoder.encode(batch_of(pictures[at : at + 1]))[0].tobytes()
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=0, atol=1e-12)
    assert (x[:, -1] == 0.2).all()


def test_the_encoding_is_what_it_was() -> None:
    """Golden vectors: a change of any of these bits makes summaries of before and after add up to nonsense."""
    pictures, _label = shapes(16, 1)
    x = encoder_for(task_of(features=1_000)).encode(batch_of(pictures))
    assert hashlib.sha256(x.astype("<f8").tobytes()).hexdigest() == GOLDEN
    assert [round(float(value), 12) for value in x[0, :4]] == GOLDEN_START


GOLDEN = "aa670ba9918d6e59e13eba796070bef7fc8d7e65c8927a6f663874079581adce"
GOLDEN_START = [0.141189285244, 0.022437612734, 0.010288296725, 0.215244764077]


def test_scattering_is_whole_numbers_in_whatever_order_they_are_summed() -> None:
    pictures = noise_pictures(5, (28, 28, 1), 3)[..., 0]
    maps = scattering(pictures, constants())
    assert (maps == np.rint(maps)).all()
    turned = dataclasses.replace(
        constants(),
        low_half=np.asfortranarray(constants().low_half),
        low_halving=np.asfortranarray(constants().low_halving),
        cosines=np.asfortranarray(constants().cosines),
    )
    assert (scattering(pictures, turned) == maps).all()


@pytest.mark.parametrize("picture", [0, 255, "checks", "stripes"])
def test_sums_stay_exact_for_the_pictures_with_the_largest_waves(picture: int | str) -> None:
    """The float32 products equal those of Python's whole numbers."""
    pattern = np.full((1, 28, 28), picture if isinstance(picture, int) else 0, np.uint8)
    if picture == "checks":
        pattern[0] = np.add.outer(np.arange(28), np.arange(28)) % 2 * 255
    if picture == "stripes":
        pattern[0, :, ::3] = 255
    for taps, window in ((constants().fine, image.FINE), (constants().coarse, image.COARSE)):
        padded = np.pad(pattern, ((0, 0), (window.border,) * 2, (window.border,) * 2)).astype(np.int64)
        views = np.lib.stride_tricks.sliding_window_view(padded, (window.size,) * 2, axis=(1, 2))
        flat = views[:, :: window.stride, :: window.stride].reshape(-1, window.size**2)
        assert (flat.astype(np.float32) @ taps == flat @ taps.astype(np.int64)).all()


# --- constants --------------------------------------------------------------------------------------------------


def test_constants_that_would_make_sums_inexact_are_refused() -> None:
    for name in ("fine", "coarse"):
        with pytest.raises(ValueError, match="too large"):
            dataclasses.replace(constants(), **{name: getattr(constants(), name) * np.float32(64)}).check()
    with pytest.raises(ValueError, match="too large"):
        dataclasses.replace(constants(), mean=constants().mean + 2.0**50).check()


def test_a_changed_file_of_constants_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "CONSTANTS_SHA256", "0" * 64)
    constants.cache_clear()
    with pytest.raises(ValueError, match="damaged"):
        constants()
    constants.cache_clear()


def test_the_script_makes_the_filters_and_averages_that_are_committed() -> None:
    """The formulas; the directions take minutes, and their last bits depend on the machine."""
    from benchmarks.image_constants import filters, samplings

    data = Path(image.__file__).with_name(image.CONSTANTS_FILE).read_bytes()
    assert hashlib.sha256(data).hexdigest() == image.CONSTANTS_SHA256
    with np.load(Path(image.__file__).with_name(image.CONSTANTS_FILE), allow_pickle=False) as arrays:
        for name, values in (filters() | samplings()).items():
            assert (arrays[name] == values).all()
    assert Constants.from_bytes(data).features >= 1_000


# --- pictures ---------------------------------------------------------------------------------------------------


def test_pictures_of_other_sizes_become_means_of_areas() -> None:
    assert (area_sampling(28) == 4_096 * np.eye(28)).all()
    doubled = np.kron(noise_pictures(3, (28, 28, 1), 1)[..., 0], np.ones((1, 2, 2), np.uint8))
    assert (resized(doubled) == doubled[:, ::2, ::2]).all()
    for size in (1, 3, 27, 29, 200, 1_024):
        assert (resized(np.full((1, size, 50), 200, np.uint8)) >= 199).all()
        assert (area_sampling(size).sum(axis=1) <= 4_096).all()


def test_grey_of_grey_is_itself() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (grey(np.repeat(levels, 3, axis=3)) == grey(levels)).all()


# --- models -----------------------------------------------------------------------------------------------------


def partners_of(task: Task) -> list[NDArray[np.uint8]]:
    return [shapes(300, seed)[0] for seed in range(3)]


@pytest.mark.parametrize("shape", [(28, 28, 1), (40, 33, 1), (9, 64, 3)])
def test_the_exported_graph_runs_alone_and_agrees(shape: tuple[int, int, int]) -> None:
    task = task_of(*shape, features=60)
    rng = np.random.default_rng(2)
    rows = batch_of(noise_pictures(90, shape, 5), rng.integers(0, 3, 90))
    model = build_model(task, [contribution("one", noisy_summary(task, measure(task, [rows]), 8.0))])
    data = write_onnx(model, card(model, [], "node", "now"))
    session = onnxruntime.InferenceSession(data)
    test = batch_of(noise_pictures(40, shape, 6))
    found = session.run(None, onnx_inputs(test, task))[-1]
    np.testing.assert_allclose(found, softmax(forward(model.layers, model.encoder.encode(test))), atol=1e-5)
    alone = [session.run(None, {"picture": test.images["picture"][i : i + 1]})[-1] for i in range(5)]
    np.testing.assert_allclose(np.concatenate(alone), found[:5], atol=1e-6)
    assert read_model(data)[0].digest == model.digest


@pytest.mark.parametrize("kind", ["moments", "residual-moments", "mean-embedding"])
def test_partners_with_one_class_each_learn_to_tell_all_apart(kind: str) -> None:
    text = f'summary = "{kind}"\n' + TASK % (28, 28, 1, 60)
    task = Task.from_toml(text, "shapes.toml")
    pictures, label = shapes(2_400, 1)
    held = [
        contribution(
            f"{c}",
            noisy_summary(task, measure(task, [batch_of(pictures[label == c], label[label == c])]), 3.0),
        )
        for c in range(3)
    ]
    model = build_model(task, held)
    test, truth = shapes(600, 2)
    outputs = forward(model.layers, model.encoder.encode(batch_of(test)))
    assert (outputs.argmax(axis=1) == truth).mean() > 0.85


# --- tasks ------------------------------------------------------------------------------------------------------


def test_a_task_of_pictures_round_trips_and_says_its_dimension() -> None:
    task = task_of(features=77)
    assert Task.from_canonical(task.canonical()) == task
    encoder = encoder_for(task)
    assert isinstance(encoder, ImageRows)
    assert encoder.dimension == 78


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("features = 30", "features = 0", "whole number"),
        ("features = 30", "features = 1001", "whole number"),
        (
            'type = "image"\nheight = 28\nwidth = 28\nchannels = 1',
            'type = "number"\nlower = 0\nupper = 1',
            "one picture",
        ),
        ("[encoder]", '[[columns]]\nname = "n"\ntype = "number"\nlower = 0\nupper = 1\n[encoder]', "one picture"),
    ],
)
def test_tasks_that_the_encoder_cannot_take_are_refused(old: str, new: str, sentence: str) -> None:
    text = TASK % (28, 28, 1, 30)
    assert old in text
    with pytest.raises(TaskError, match=sentence):
        Task.from_toml(text.replace(old, new), "shapes.toml")
