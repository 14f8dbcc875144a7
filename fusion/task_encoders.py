"""The encoder of a task: its settings, and whether it takes the task's columns."""

from __future__ import annotations

import re
from collections.abc import Callable

from fusion.task import (
    DEFAULT_BIAS,
    DEFAULT_FEATURES,
    DEFAULT_GAMMA,
    DEFAULT_IMAGE_FEATURES,
    MAX_BACKBONE_BYTES,
    MAX_DIMENSION,
    MAX_DIRECTIONS,
    MAX_GAMMA,
    MAX_IMAGE_FEATURES,
    MAX_IMAGE_SIDE,
    MAX_SEED,
    TEXT_CONSTANTS_SHA256,
    TEXT_LENSES,
    TEXT_WEIGHTS_SHA256,
    CategoryColumn,
    Column,
    EncoderSettings,
    ImageColumn,
    ImageEncoder,
    Lift,
    NumberColumn,
    OnnxEncoder,
    PictureInput,
    TabularEncoder,
    TextColumn,
    TextEncoder,
    columns_width,
)
from fusion.task_tables import Table, whole_number

MIN_PIXEL_STD = 1e-3  # of pixels in [0, 1], whose steps are 1/255

_SHA256 = re.compile(r"[0-9a-f]{64}")


def build_encoder(table: Table, columns: tuple[Column, ...]) -> EncoderSettings:
    """The table `encoder`: its kind, what all encoders have, and what that kind adds."""
    kind = table.choice("kind", tuple(_ENCODERS))
    bias = table.number("bias", default=DEFAULT_BIAS)
    if not 0.05 <= bias <= 0.95:
        table.fail("bias", "must be between 0.05 and 0.95")
    settings = _ENCODERS[kind](table, bias, columns)
    table.done()
    return settings


def _build_tabular(table: Table, bias: float, columns: tuple[Column, ...]) -> TabularEncoder:
    for column in columns:
        if not isinstance(column, NumberColumn | CategoryColumn):
            table.fail("kind", f'does not take pictures or texts, and "{column.name}" is one; choose another encoder')
    lift = _build_lift(table.table("lift"), columns) if table.has("lift") else None
    return TabularEncoder("tabular", bias, lift)


def _build_lift(table: Table, columns: tuple[Column, ...]) -> Lift:
    features = whole_number(table, "features", 2, MAX_DIMENSION - 1, default=DEFAULT_FEATURES)
    if features % 2:
        table.fail("features", "must be even: half of them are cosines, half are sines")
    if features // 2 * columns_width(columns) > MAX_DIRECTIONS:
        table.fail("features", f"are too many for columns of {columns_width(columns)} coordinates; ask for fewer")
    gamma = table.number("gamma", default=DEFAULT_GAMMA)
    if not 0 < gamma <= MAX_GAMMA:
        table.fail("gamma", f"must be over 0 and at most {MAX_GAMMA:g}")
    seed = whole_number(table, "seed", 0, MAX_SEED, default=1)
    table.done()
    return Lift(features, gamma, seed)


def _build_text(table: Table, bias: float, columns: tuple[Column, ...]) -> TextEncoder:
    if len(columns) != 1 or not isinstance(columns[0], TextColumn):
        table.fail(
            "kind", "takes one column of texts and no other; join texts into one column, or choose another encoder"
        )
    lens = table.choice("lens", TEXT_LENSES, default=TEXT_LENSES[0])
    for key, known in (("weights", TEXT_WEIGHTS_SHA256), ("constants", TEXT_CONSTANTS_SHA256)):
        if table.text(key, default=known) != known:
            table.fail(key, "is not the file that this version uses; leave the field out, or update the older node")
    return TextEncoder("text", bias, lens)


def _build_onnx(table: Table, bias: float, columns: tuple[Column, ...]) -> OnnxEncoder:
    sha256 = table.text("sha256")
    if not _SHA256.fullmatch(sha256):
        table.fail("sha256", "must be the SHA-256 of the backbone's file: 64 digits 0-9 and a-f")
    size = whole_number(table, "bytes", 1, MAX_BACKBONE_BYTES)
    features = whole_number(table, "features", 1, MAX_DIMENSION - 1)
    output = table.text("output", default="")
    picture = None
    if any(isinstance(column, ImageColumn) for column in columns):
        picture = _build_picture(table.table("picture", required=False), columns)
    elif not all(isinstance(column, NumberColumn) for column in columns):
        table.fail("kind", "takes one picture or numbers alone; remove the other columns, or choose another encoder")
    return OnnxEncoder("onnx", bias, sha256, size, features, output, picture)


def _build_picture(table: Table, columns: tuple[Column, ...]) -> PictureInput:
    column = columns[0]
    if len(columns) > 1 or not isinstance(column, ImageColumn):
        table.fail("layout", "is for a task whose only column is one picture; remove the other columns")
    layout = table.choice("layout", ("NCHW", "NHWC"), default="NCHW")
    height = whole_number(table, "height", 1, MAX_IMAGE_SIDE) if table.has("height") else column.height
    width = whole_number(table, "width", 1, MAX_IMAGE_SIDE) if table.has("width") else column.width
    if height < column.height or width < column.width:
        table.fail("height", "and width must not be smaller than the picture's; shrink the pictures beforehand")
    channels = whole_number(table, "channels", 1, 3) if table.has("channels") else column.channels
    if channels not in (column.channels, 3):
        table.fail("channels", "must be those of the column, or 3 for a grey picture that is repeated in each")
    mean, std = table.numbers("mean", channels, 0.0), table.numbers("std", channels, 1.0)
    if not all(one >= MIN_PIXEL_STD for one in std):
        table.fail("std", f"must be at least {MIN_PIXEL_STD:g} in every channel")
    table.done()
    return PictureInput(layout, height, width, channels, mean, std)


def _build_image_encoder(table: Table, bias: float, columns: tuple[Column, ...]) -> ImageEncoder:
    if len(columns) != 1 or not isinstance(columns[0], ImageColumn):
        table.fail("kind", "takes one picture and nothing else; name one image column, or choose another encoder")
    features = whole_number(table, "features", 1, MAX_IMAGE_FEATURES, default=DEFAULT_IMAGE_FEATURES)
    return ImageEncoder("image", bias, features)


_ENCODERS: dict[str, Callable[[Table, float, tuple[Column, ...]], EncoderSettings]] = {
    "tabular": _build_tabular,
    "image": _build_image_encoder,
    "text": _build_text,
    "onnx": _build_onnx,
}
