"""Tasks: canonical JSON from a peer, and TOML files of people."""

from __future__ import annotations

import json
from typing import Any

from fusion.task import MAX_TASK_BYTES, Task
from tests.door_mutators import compact
from tests.doors import REGRESSION, SUMMARY_KINDS, TABULAR, task_of
from tests.vector_cases import Cases

PERSONS = TABULAR.replace("delta = 1e-5", 'delta = 1e-5\nunit = { column = "patient", max_rows = 4 }')
PICTURES = (TABULAR % "moments")[
    : (TABULAR % "moments").index("[[columns]]")
] + '[[columns]]\nname = "p"\ntype = "image"\nheight = 8\nwidth = 6\n'
ONNX = f'[encoder]\nkind = "onnx"\nsha256 = "{"0" * 64}"\nbytes = 1\nfeatures = 3\n'
NUMBERS = PICTURES[: PICTURES.index("[[columns]]")] + '[[columns]]\nname = "n"\ntype = "number"\nlower = 0\nupper = 1\n'
TEXT = PICTURES[: PICTURES.index("[[columns]]")] + '[[columns]]\nname = "t"\ntype = "text"\n'
LIFT = TABULAR % "moments" + "[encoder.lift]\nfeatures = 8\n"


def _task(text: str) -> Any:
    return json.loads(Task.from_toml(text, "task.toml").canonical())


BASES: dict[str, Any] = {
    **{kind: _task(TABULAR % kind) for kind in SUMMARY_KINDS},
    "regression": _task(REGRESSION % "moments"),
    "persons": _task(PERSONS % "moments"),
    "image": _task(PICTURES + '[encoder]\nkind = "image"\n'),
    "onnx-picture": _task(PICTURES + ONNX),
    "onnx-numbers": _task(NUMBERS + ONNX),
    "text": _task(TEXT + '[encoder]\nkind = "text"\n'),
    "lift": _task(LIFT),
    "no-header": _task(
        TABULAR.replace("[[columns]]", '[csv]\nheader = false\nnames = ["age", "arrival", "outcome"]\n[[columns]]', 1)
        % "moments"
    ),
}

Path = tuple[str | int, ...]

WRONG: tuple[tuple[str, str, Path, Any, str], ...] = (
    # name, base, where, what stands there ("DROP" for nothing), words of the sentence
    ("an-empty-name", "moments", ("name",), "", "must have 1 to 200 characters"),
    ("a-long-name", "moments", ("name",), "n" * 201, "must have 1 to 200 characters"),
    ("a-name-with-a-space", "moments", ("name",), "a b", "must consist of letters"),
    ("a-name-that-is-a-number", "moments", ("name",), 5, "must be a text in quotes"),
    ("a-name-that-garbles-a-terminal", "moments", ("name",), "a\x1b[2J", "must be printable"),
    ("no-name", "moments", ("name",), "DROP", 'the field "name" is missing'),
    ("an-unknown-field", "moments", ("extra",), 1, "is not a field known here"),
    ("an-unknown-kind", "moments", ("kind",), "clustering", "must be one of: classification"),
    ("an-unknown-summary", "moments", ("summary",), "raw-rows", "must be one of: moments"),
    ("residuals-of-numbers", "regression", ("summary",), "residual-moments", "is for classification"),
    ("class-moments-of-numbers", "regression", ("summary",), "class-moments", "are moments of classes"),
    ("a-model-of-numbers", "regression", ("summary",), "model", "learns classes"),
    ("a-label-that-is-a-list", "moments", ("label",), [], "must be a table of named fields"),
    ("one-class", "moments", ("label", "classes"), [{"name": "a", "values": ["0"]}], "at least two classes"),
    ("no-classes", "moments", ("label", "classes"), [], "a list with at least one entry"),
    ("a-class-too-many", "moments", ("label", "classes"), [{}] * 1_001, "must not hold more than 1000 entries"),
    ("two-classes-of-one-name", "moments", ("label", "classes", 1, "name"), "home", "two classes the same name"),
    ("a-cell-that-means-two-classes", "moments", ("label", "classes", 1, "values"), ["0.0"], "is listed twice"),
    ("a-class-without-cells", "moments", ("label", "classes", 1, "values"), [], "must not be empty"),
    ("cells-that-are-a-text", "moments", ("label", "classes", 1, "values"), "1", "must be a list of texts in quotes"),
    ("a-cell-twice", "moments", ("label", "classes", 1, "values"), ["1", "1"], "must not name the same value twice"),
    ("an-epsilon-of-nothing", "moments", ("privacy", "max_epsilon"), 0.0, "must be over 0 and at most 20"),
    ("an-endless-epsilon", "moments", ("privacy", "max_epsilon"), 1e29, "must be over 0 and at most 20"),
    ("an-epsilon-beyond-all-numbers", "moments", ("privacy", "max_epsilon"), 1e31, "must be finite and at most"),
    ("an-epsilon-that-is-true", "moments", ("privacy", "max_epsilon"), True, "must be a number"),
    ("a-large-delta", "moments", ("privacy", "delta"), 0.1, "must be between 1e-10 and 1e-05"),
    ("another-unit", "moments", ("privacy", "unit"), "row", 'must be "record", or name the column'),
    ("the-label-for-persons", "persons", ("privacy", "unit", "column"), "outcome", "is the label column; name"),
    ("persons-of-no-rows", "persons", ("privacy", "unit", "max_rows"), 0, "must be a whole number between 1 and 1000"),
    ("persons-for-a-feature", "persons", ("privacy", "unit", "column"), "age", "an id cannot be a feature"),
    ("persons-not-in-the-file", "no-header", ("privacy", "unit"), {"column": "p", "max_rows": 1}, "among csv.names"),
    ("no-columns", "moments", ("columns",), [], "a list with at least one entry"),
    ("columns-that-are-a-table", "moments", ("columns",), {}, "a list with at least one entry"),
    ("a-column-too-many", "moments", ("columns",), [{}] * 10_001, "must not hold more than 10000 entries"),
    ("a-column-that-is-the-label", "moments", ("columns", 0, "name"), "outcome", "is the label column; a column"),
    ("a-column-twice", "moments", ("columns", 1, "name"), "age", "is used by an earlier column"),
    ("a-column-not-in-the-file", "no-header", ("columns", 0, "name"), "size", "is not among csv.names"),
    ("a-column-of-an-unknown-type", "moments", ("columns", 0, "type"), "date", "must be one of: number"),
    ("bounds-that-are-equal", "moments", ("columns", 0, "upper"), 0.0, "must be larger than lower"),
    ("bounds-that-are-close", "moments", ("columns", 0, "lower"), 99.99999, "is too close to lower"),
    ("a-bin", "moments", ("columns", 0, "bins"), 1, "must be a whole number between 2 and 64"),
    ("half-a-bin", "moments", ("columns", 0, "bins"), 2.5, "must be a whole number between 2 and 64"),
    ("one-category", "moments", ("columns", 1, "values"), ["walk"], "at least two categories"),
    ("a-category-too-many", "moments", ("columns", 1, "values"), ["x"] * 100_001, "not hold more than 100000 entries"),
    ("categories-too-many-in-all", "moments", ("columns",), "MANY", "over 100000 categories in all"),
    ("a-missing-category", "moments", ("csv", "missing"), ["walk"], "already means a missing cell"),
    ("a-delimiter-of-two", "moments", ("csv", "delimiter"), ";;", "csv.delimiter"),
    ("names-beside-a-header", "moments", ("csv", "names"), ["age"], "csv.names"),
    ("a-header-that-is-a-word", "moments", ("csv", "header"), "yes", "must be true or false"),
    ("no-names-without-a-header", "no-header", ("csv", "names"), "DROP", "names"),
    ("a-label-not-in-the-file", "no-header", ("label", "column"), "y", "names"),
    ("a-picture-of-no-height", "image", ("columns", 0, "height"), 0, "must be a whole number between 1 and 1024"),
    ("a-picture-of-two-channels", "image", ("columns", 0, "channels"), 2, "must be 1 (grey) or 3"),
    ("a-picture-of-a-megapixel", "image", ("columns", 0), {"name": "p", "type": "image", "height": 1024, "width": 1024,
     "channels": 3}, "makes pictures of over"),
    ("an-unknown-encoder", "moments", ("encoder", "kind"), "magic", "must be one of: tabular"),
    ("a-bias-of-one", "moments", ("encoder", "bias"), 1.0, "must be between 0.05 and 0.95"),
    ("a-text-for-a-table", "text", ("encoder",), {"kind": "tabular", "bias": 0.4}, "does not take pictures or texts"),
    ("a-picture-encoder-for-a-table", "moments", ("encoder", "kind"), "image", "takes one picture and nothing else"),
    ("a-text-encoder-for-a-table", "moments", ("encoder", "kind"), "text", "takes one column of texts"),
    ("other-weights", "text", ("encoder", "weights"), "0" * 64, "is not the file that this version uses"),
    ("an-unknown-lens", "text", ("encoder", "lens"), "poetry", "must be one of: plain, opinion"),
    ("features-too-many", "image", ("encoder", "features"), 1_001, "must be a whole number between 1 and 1000"),
    ("a-short-hash", "onnx-numbers", ("encoder", "sha256"), "00", "64 digits 0-9 and a-f"),
    ("a-backbone-of-terabytes", "onnx-numbers", ("encoder", "bytes"), 2**40, "must be a whole number between 1 and"),
    ("a-backbone-of-categories", "moments", ("encoder",), BASES["onnx-numbers"]["encoder"], "one picture or numbers"),
    ("a-backbone-of-two-pictures", "onnx-picture", ("columns",), "TWO", "whose only column is one picture"),
    ("a-backbone-that-shrinks", "onnx-picture", ("encoder", "picture", "height"), 4, "must not be smaller than"),
    ("a-backbone-of-two-channels", "onnx-picture", ("encoder", "picture", "channels"), 2, "must be those of the"),
    ("another-layout", "onnx-picture", ("encoder", "picture", "layout"), "CHWN", "must be one of: NCHW, NHWC"),
    ("a-mean-too-many", "onnx-picture", ("encoder", "picture", "mean"), [0.0, 0.0], "must be a list of 1 numbers"),
    ("a-deviation-of-zero", "onnx-picture", ("encoder", "picture", "std"), [0.0], "must be at least 0.001"),
    ("an-odd-lift", "lift", ("encoder", "lift", "features"), 7, "must be even"),
    ("a-lift-beyond-memory", "lift", ("encoder", "lift", "features"), 2**40, "must be a whole number between 2 and"),
    ("a-lift-of-no-width", "lift", ("encoder", "lift", "gamma"), 0.0, "must be over 0 and at most 1000"),
    ("a-lift-with-a-negative-seed", "lift", ("encoder", "lift", "seed"), -1, "must be a whole number between 0 and"),
    ("a-lift-of-wide-rows", "lift", (), "WIDE LIFT", "are too many for columns of"),
    ("rows-too-wide", "moments", ("columns",), "WIDE", "are encoded in"),
    ("classes-too-wide", "class-moments", ("columns",), "WIDER", "takes rows of at most 64 dimensions"),
    ("classes-too-many", "class-moments", (), "CLASSES", "takes at most"),
    ("another-covariance", "class-moments", ("class-moments", "covariance"), "none", "must be one of: full, diagonal"),
    ("histograms-of-pictures", "image", ("summary",), "histograms", "count cells of columns"),
    ("histograms-of-one-bin", "histograms", ("histograms", "bins"), 1, "must be a whole number between 2 and 64"),
    ("histograms-of-many-columns", "histograms", ("columns",), "MANY NUMBERS", 'are too many for "histograms"'),
    ("histograms-of-many-cells", "histograms", (), "CELLS", "cells, over the 4095 allowed"),
    ("no-training-steps", "model", ("model", "steps"), 0, "must be a whole number between 1 and 1000"),
    ("training-without-end", "model", (), "TRAINING", "times weights are"),
    ("a-share-of-all", "model", ("model", "mean_share"), 1.0, "must be between 0.01 and 0.99"),
    ("two-hidden-layers", "model", ("model", "hidden"), [8, 8], "must be a list of at most one number"),
    ("a-hidden-layer-of-nothing", "model", ("model", "hidden"), [0], "must hold a whole number between 1 and 1024"),
    ("weights-that-are-no-base64", "model", ("model", "initial"), "§", "must be weights as base64"),
    ("weights-of-no-model", "model", ("model",), {"initial": "AAAA", "initial_model": "x"}, "must be the digest"),
    ("weights-too-few", "model", ("model",), {"initial": "AAAAAA==", "initial_model": "0" * 64}, "not as many as"),
    ("weights-cut-off", "model", ("model",), {"initial": "AAAA", "initial_model": "0" * 64}, "are not float32 values"),
    ("weights-that-are-not-finite", "model", (), "NAN WEIGHTS", "must be finite and at most 127"),
    ("weights-for-a-teacher", "model", ("model",), {"initial": "AAAAAA==", "initial_model": "0" * 64,
     "teacher_hidden": [4]}, "leave teacher_hidden out"),
)  # fmt: skip


def _numbers(count: int, bins: int | None = None) -> list[dict[str, Any]]:
    column = {"type": "number", "lower": 0.0, "upper": 1.0} | ({} if bins is None else {"bins": bins})
    return [{"name": f"c{index}"} | column for index in range(count)]


def _special(what: Any, content: Any) -> Any:
    """Content that is too long to write down."""
    fields = [f"v{index}" for index in range(50_001)]
    match what:
        case "MANY":
            content["columns"] = [{"name": name, "type": "category", "values": fields} for name in ("a", "b")]
        case "MANY NUMBERS":
            content["columns"] = _numbers(1_025)
        case "TWO":
            content["columns"].append(content["columns"][0] | {"name": "q"})
        case "WIDE":
            content["columns"] = _numbers(65, 64)
        case "WIDER":
            content["columns"] = _numbers(2, 64)
        case "WIDE LIFT":
            content["columns"] = _numbers(100, 64)
            content["encoder"]["lift"]["features"] = 4_000
        case "CLASSES":
            content["columns"] = _numbers(1, 62)
            content["label"]["classes"] = [{"name": f"c{n}", "values": [str(n)]} for n in range(1_000)]
        case "CELLS":
            content["columns"], content["histograms"] = _numbers(100), {"bins": 64, "pairs": False}
        case "TRAINING":
            content["columns"], content["model"]["steps"] = _numbers(60, 64), 1_000
            content["model"]["hidden"] = [64]
        case "NAN WEIGHTS":
            from base64 import b64encode

            from fusion.shapes import head_shapes

            count = sum(rows * columns for rows, columns in head_shapes(task_of("model")))
            initial = b64encode(b"\0\0\xc0\x7f" * count).decode()
            content["model"] |= {"initial": initial, "initial_model": "0" * 64}
        case _:
            return False
    return True


def _changed(base: str, path: Path, what: Any) -> bytes:
    content = json.loads(json.dumps(BASES[base]))
    if isinstance(what, str) and what.isupper() and _special(what, content):
        return compact(content)
    holder = content
    for part in path[:-1]:
        holder = holder[part]
    if what == "DROP":
        del holder[path[-1]]
    else:
        holder[path[-1]] = what
    return compact(content)


def _tasks() -> Cases:
    cases: Cases = {f"good-{name}": (compact(base), "") for name, base in BASES.items()}
    cases |= {name: (_changed(base, path, what), words) for name, base, path, what, words in WRONG}
    good = compact(BASES["moments"])
    version, form = "in a version that is not known", "not in canonical form"
    not_json = "not canonical JSON"
    return cases | {
        "not-json": (b"{", not_json),
        "not-utf-8": (b'{"a":"\xff"}', not_json),
        "a-number-of-many-digits": (b"1" * 5_000, not_json),
        "nested-deeply": (b"[" * 100_000, not_json),
        "a-million-values": (b"[" + b"[]," * 1_000_001 + b"[]]", not_json),
        "too-large": (b" " * (MAX_TASK_BYTES + 1), "arrived and was refused"),
        "a-list": (b"[]", version),
        "another-version": (good.replace(b'"version":1', b'"version":2'), version),
        "no-version": (good.replace(b',"version":1', b""), version),
        "a-space": (good.replace(b":", b": ", 1), form),
        "a-field-twice": (b'{"name":"x",' + good[1:], form),
        "fields-in-another-order": (_backwards(BASES["moments"]), form),
        "not-a-number": (good.replace(b"100.0", b"NaN"), "must be finite"),
        "a-whole-number-for-a-real-one": (good.replace(b"100.0", b"100"), form),
        "a-lone-surrogate": (good.replace(b'"walk"', b'"\\ud800"'), "must be printable"),
        "a-default-left-out": (good.replace(b',"kind":"tabular"', b',"kind":"tabular","lift":null'), "named fields"),
    }


def _backwards(content: dict[str, Any]) -> bytes:
    return json.dumps(dict(reversed(content.items())), separators=(",", ":")).encode()


def _task_files() -> Cases:
    good = (TABULAR % "moments").encode()
    return {
        "good": (good, ""),
        "good-regression": ((REGRESSION % "moments").encode(), ""),
        "good-with-persons": ((PERSONS % "moments").encode(), ""),
        "not-toml": (b"name = ", "this is not valid TOML"),
        "not-utf-8": (b'name = "\xff"', "is not UTF-8 text"),
        "too-large": (b"#" * (MAX_TASK_BYTES + 1), "is larger than"),
        "nested-deeply": (b"a = " + b"[" * 5_000, "cannot be read; check its numbers and brackets"),
        "a-number-of-many-digits": (b"a = " + b"1" * 5_000, "cannot be read; check its numbers and brackets"),
        "no-name": (good.replace(b'name = "ward"\n', b"", 1), 'the field "name" is missing'),
        "a-wrong-bound": (good.replace(b"upper = 100", b"upper = -1"), "must be larger than lower"),
        "an-unknown-field": (good + b"oops = 1\n", "is not a field known here"),
        "good-with-an-initial-file": (
            (TABULAR % "model").encode() + b'[model]\ninitial_file = "model.safetensors"\n',
            "",
        ),
        "an-initial-file-of-another-task": (
            (TABULAR % "model").encode().replace(b"upper = 100", b"upper = 99")
            + b'[model]\ninitial_file = "model.safetensors"\n',
            "is a model of other columns, classes or another encoder",
        ),
        "an-initial-file-that-is-not-there": (
            (TABULAR % "model").encode() + b'[model]\ninitial_file = "none.safetensors"\n',
            "cannot be used",
        ),
        "an-initial-file-with-a-zero-byte": (
            (TABULAR % "model").encode() + b'[model]\ninitial_file = "a\\u0000b"\n',
            "cannot be used",
        ),
        "an-initial-file-that-is-a-number": (
            (TABULAR % "model").encode() + b"[model]\ninitial_file = 5\n",
            "must be the name of a model file",
        ),
    }


CASES: dict[str, Cases] = {"task": _tasks(), "task-file": _task_files()}
