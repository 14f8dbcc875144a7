"""Sources of pictures and texts: every format gives the same batches, and no header is believed."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusion.dataset import BATCH_PICTURE_BYTES, MAX_TEXT_CHARS, Batch, batch_rows, inspect, read_batches
from fusion.errors import DataError
from fusion.parts import Part
from fusion.sources.jsonl import MAX_LINE_BYTES
from fusion.task import CsvFormat, ImageColumn, Label, LabelClass, PersonUnit, Privacy, TabularEncoder, Task, TextColumn

HEIGHT, WIDTH = 3, 5
CLASSES = (LabelClass("cat", ("0", "cat")), LabelClass("dog", ("1", "dog")))
IN_TMP_PATH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


def task_of(*columns: Any, csv: CsvFormat | None = None, person: PersonUnit | None = None) -> Task:
    """A task as the readers see it; its encoder is never asked."""
    privacy = Privacy(1.0, person=person)
    label = Label("label", CLASSES)
    return Task("t", "classification", "moments", label, privacy, csv or CsvFormat(), columns, TabularEncoder())


def pictures_task(channels: int = 1, **more: Any) -> Task:
    return task_of(ImageColumn("picture", HEIGHT, WIDTH, channels), **more)


TEXTS = task_of(TextColumn("text"))
UCI = task_of(TextColumn("text"), csv=CsvFormat(header=False, delimiter="\t", names=("text", "label"), quote=False))


def pictures(count: int, channels: int = 1) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, HEIGHT, WIDTH, channels), np.uint8)


def read(paths: Path | list[Path], task: Task, need_label: bool = True, part: Part | None = None) -> Batch:
    batches = list(read_batches([paths] if isinstance(paths, Path) else paths, task, need_label, part=part))
    return Batch(
        {},
        {},
        np.concatenate([batch.label for batch in batches if batch.label is not None]) if need_label else None,
        sum(len(batch) for batch in batches),
        None,
        {name: np.concatenate([batch.images[name] for batch in batches]) for name in batches[0].images},
        {name: np.concatenate([batch.texts[name] for batch in batches]) for name in batches[0].texts},
    )


def save_idx(path: Path, array: Any, promised: tuple[int, ...] | None = None) -> Path:
    sizes = promised or array.shape
    data = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + array.tobytes()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def save_picture(path: Path, pixels: Any) -> Path:
    image = pytest.importorskip("PIL.Image", reason="needs the extra [image]")
    path.parent.mkdir(exist_ok=True, parents=True)
    image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)
    return path


def png(pixels: Any) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="needs the extra [image]")
    out = io.BytesIO()
    image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def save_arrow(path: Path, column: pa.Array, label: list[int]) -> Path:
    pa.parquet.write_table(pa.table({"picture": column, "label": label}), path)
    return path


# --- every format gives the same pictures ---------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_every_format_read_alike(tmp_path: Path, channels: int) -> None:
    task, expected, label = pictures_task(channels), pictures(7, channels), np.array([0, 1, 1, 0, 1, 0, 0])
    raw = [one.tobytes() for one in expected]
    lists = [list(one) for one in raw]
    np.savez(tmp_path / "plain.npz", picture=expected, label=label)
    np.savez_compressed(tmp_path / "names.npz", picture=expected, label=np.array(["cat", "dog"])[label], other=[{}])
    arrays = {
        "fixed": pa.array(raw, pa.binary(HEIGHT * WIDTH * channels)),
        "binary": pa.array(raw, pa.large_binary()),
        "encoded": pa.array([png(one) for one in expected], pa.binary()),
        "struct": pa.array([{"bytes": png(one), "path": "x"} for one in expected]),
        "list": pa.array(lists, pa.list_(pa.uint8())),
        "wide list": pa.array(lists, pa.large_list(pa.int64())),
        "nested": pa.array(expected.tolist()),
        "sized list": pa.array(lists, pa.list_(pa.uint8(), HEIGHT * WIDTH * channels)),
    }
    files = [save_arrow(tmp_path / f"{name}.parquet", array, label.tolist()) for name, array in arrays.items()]
    for path in [tmp_path / "plain.npz", tmp_path / "names.npz", *files]:
        batch = read(path, task)
        np.testing.assert_array_equal(batch.images["picture"], expected, err_msg=path.name)
        np.testing.assert_array_equal(batch.label, label)
        np.testing.assert_array_equal(read(path, task, need_label=False).images["picture"], expected)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_find_the_labels_beside_them_or_take_those_named(tmp_path: Path, suffix: str) -> None:
    expected, label = pictures(6), np.array([0, 1, 1, 0, 1, 9], np.uint8)
    images = save_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", expected[..., 0])
    with pytest.raises(DataError, match="has no file of labels beside it; name that file as well"):
        read(images, pictures_task())
    np.testing.assert_array_equal(read(images, pictures_task(), need_label=False).images["picture"], expected)
    elsewhere = save_idx(tmp_path / f"answers.ubyte{suffix}", label)
    beside = save_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", label)
    for paths in ([images], [images, elsewhere], [beside, images]):
        batch = read(paths, pictures_task())
        np.testing.assert_array_equal(batch.images["picture"], expected[:5])
        np.testing.assert_array_equal(batch.label, label[:5])
    assert inspect([images], pictures_task()).labels_outside == 1


def test_idx_files_of_colour_have_four_dimensions(tmp_path: Path) -> None:
    expected = pictures(4, 3)
    path = save_idx(tmp_path / "images-idx4-ubyte", expected)
    save_idx(tmp_path / "labels-idx1-ubyte", np.zeros(4, np.uint8))
    np.testing.assert_array_equal(read(path, pictures_task(3)).images["picture"], expected)


def test_a_folder_is_read_in_the_order_of_names_with_subfolders_as_classes(tmp_path: Path) -> None:
    expected = pictures(5)
    names = ["cat/b.png", "cat/10.pgm", "cat/9.png", "dog/a.pgm", "dog/.hidden.png"]
    for name, pixels in zip(names, expected, strict=True):
        save_picture(tmp_path / "set" / name, pixels)
    (tmp_path / "set" / "dog" / "Thumbs.db").write_bytes(b"x")
    batch = read(tmp_path / "set", pictures_task())
    np.testing.assert_array_equal(batch.images["picture"], expected[[1, 2, 0, 3]])
    assert batch.label is not None
    assert batch.label.tolist() == [0, 0, 0, 1]
    assert len(read(tmp_path / "set" / "cat", pictures_task(), need_label=False)) == 3
    assert len(read(tmp_path / "set", pictures_task(), need_label=False)) == 4


def test_a_jpeg_is_read_and_colour_becomes_grey_where_the_task_is_grey(tmp_path: Path) -> None:
    colour = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
    save_picture(tmp_path / "set" / "cat" / "a.jpg", colour)
    pixels = read(tmp_path / "set", pictures_task()).images["picture"].astype(float)
    assert pixels.shape == (1, HEIGHT, WIDTH, 1)
    np.testing.assert_allclose(pixels, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=4)


# --- what is dropped and counted --------------------------------------------------------------------------------


def test_a_row_whose_picture_is_missing_or_broken_is_dropped_and_counted(tmp_path: Path) -> None:
    expected = pictures(4)
    whole = png(expected[1])
    cells = [expected[0].tobytes(), None, whole, whole[:40]]
    path = save_arrow(tmp_path / "d.parquet", pa.array(cells, pa.binary()), [0, 1, 1, 0])
    np.testing.assert_array_equal(read(path, pictures_task()).images["picture"], expected[:2])
    report = inspect([path], pictures_task())
    assert (report.rows_read, report.rows_used, report.pictures_unusable) == (4, 2, 2)
    save_picture(tmp_path / "set" / "cat" / "a.png", expected[0])
    (tmp_path / "set" / "cat" / "b.png").write_bytes(b"not a picture")
    (tmp_path / "set" / "bird").mkdir()
    save_picture(tmp_path / "set" / "bird" / "a.png", expected[0])
    report = inspect([tmp_path / "set"], pictures_task())
    assert (report.rows_read, report.rows_used, report.pictures_unusable, report.labels_outside) == (3, 1, 1, 1)


def test_nulls_among_fixed_cells_and_lists_are_dropped_too(tmp_path: Path) -> None:
    raw = [one.tobytes() for one in pictures(3)]
    for kind, cells in (
        (pa.binary(15), [raw[0], None, raw[2]]),
        (pa.list_(pa.uint8()), [list(raw[0]), None, list(raw[2])]),
    ):
        path = save_arrow(tmp_path / "d.parquet", pa.array(cells, kind), [0, 0, 1])
        batch = read(path, pictures_task())
        np.testing.assert_array_equal(batch.images["picture"], pictures(3)[[0, 2]])
        np.testing.assert_array_equal(batch.label, [0, 1])


def test_persons_and_parts_work_with_the_arrays_of_an_archive(tmp_path: Path) -> None:
    task = pictures_task(person=PersonUnit("patient", 2))
    expected = pictures(6)
    patient, site = np.array([7, 7, 7, 8, 9, 9]), np.array(["a", "a", "b", "a", "b", "b"])
    np.savez(tmp_path / "d.npz", picture=expected, label=np.zeros(6, int), patient=patient, site=site)
    from fusion.dataset import release_batches

    (batch,) = release_batches([tmp_path / "d.npz"], task)
    np.testing.assert_array_equal(batch.images["picture"], expected[[0, 1, 3, 4, 5]])
    assert batch.person_rows is not None
    assert batch.person_rows.tolist() == [2, 2, 1, 2, 2]
    part = read(tmp_path / "d.npz", pictures_task(), part=Part.parse("site=b"))
    np.testing.assert_array_equal(part.images["picture"], expected[[2, 4, 5]])


# --- texts --------------------------------------------------------------------------------------------------------


def test_texts_of_every_format_read_alike(tmp_path: Path) -> None:
    texts = ['so "good", really', "", "naïve — fin\u2028é", "x"]
    label = ["1", "0", "dog", "0"]
    rows = [{"text": text or None, "label": value} for text, value in zip(texts, label, strict=True)]
    (tmp_path / "d.jsonl").write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    np.savez(tmp_path / "d.npz", text=np.array(texts), label=np.array(label))
    pa.parquet.write_table(pa.table({"text": texts, "label": label}), tmp_path / "d.parquet")
    quoted = "".join('"' + text.replace('"', '""') + f'",{value}\n' for text, value in zip(texts, label, strict=True))
    (tmp_path / "d.csv").write_text("text,label\n" + quoted, encoding="utf-8")
    for name in ("d.jsonl", "d.npz", "d.parquet", "d.csv"):
        batch = read(tmp_path / name, TEXTS)
        assert batch.texts["text"].tolist() == texts, name
        np.testing.assert_array_equal(batch.label, [1, 0, 1, 0])
        assert inspect([tmp_path / name], TEXTS).missing["text"] == 1


def test_quotation_marks_are_ordinary_characters_where_the_task_says_so(tmp_path: Path) -> None:
    path = tmp_path / "site.txt"
    path.write_text('"Never again\t0\nHe said "go", so go!  \t1\n"all" quoted"\t1\n', encoding="utf-8")
    batch = read(path, UCI)
    assert batch.texts["text"].tolist() == ['"Never again', 'He said "go", so go!', '"all" quoted"']
    assert Task.from_canonical(task_text().canonical()) == task_text()
    assert b'"quote"' not in Task.from_toml(PLAIN_TOML, "x").canonical()


PLAIN_TOML = """
name = "t"
kind = "classification"
[label]
column = "y"
classes = [{ name = "a", values = ["0"] }, { name = "b", values = ["1"] }]
[privacy]
max_epsilon = 1
[csv]
quote = true
[[columns]]
name = "x"
type = "number"
lower = 0
upper = 1
[encoder]
kind = "tabular"
"""


def task_text() -> Task:
    return Task.from_toml(PLAIN_TOML.replace("quote = true", "quote = false"), "x")


def test_the_sentiment_files_are_read_whole() -> None:
    data = Path(os.environ.get("TIDINGS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (data / "sentiment_sentences").is_dir():
        pytest.skip("needs the folder sentiment_sentences of the shared data (TIDINGS_DATA)")
    for site in ("amazon_cells", "imdb", "yelp"):
        report = inspect([data / "sentiment_sentences" / f"{site}_labelled.txt"], UCI)
        assert (report.rows_read, report.rows_used, report.labels_outside) == (1000, 1000, 0)


def test_a_long_text_is_cut_and_counted(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "é" * (MAX_TEXT_CHARS + 1), "label": 1}) + "\n")
    (text,) = read(tmp_path / "d.jsonl", TEXTS).texts["text"]
    assert len(text) == MAX_TEXT_CHARS
    assert inspect([tmp_path / "d.jsonl"], TEXTS).clipped["text"] == 1


def test_a_field_left_out_of_a_later_line_is_a_missing_cell(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": 1, "more": [1]}\n{"label": 0}\n{"text": "no label"}\n')
    batch = read(tmp_path / "d.jsonl", TEXTS)
    assert batch.texts["text"].tolist() == ["a", ""]


@IN_TMP_PATH
@given(
    rows=st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from(["0", "1"])),
        min_size=1,
        max_size=20,
    )
)
def test_any_text_comes_back_from_json_lines(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (tmp_path / "d.jsonl").write_text("\n".join(lines), encoding="utf-8")
    table = pa.table({"text": [text for text, _label in rows], "label": [label for _text, label in rows]})
    pa.parquet.write_table(table, tmp_path / "d.parquet")
    assert (
        read(tmp_path / "d.jsonl", TEXTS).texts["text"].tolist()
        == read(tmp_path / "d.parquet", TEXTS).texts["text"].tolist()
    )


@IN_TMP_PATH
@given(pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.just(HEIGHT), st.just(WIDTH))), data=st.data())
def test_any_pixels_come_back_from_archives_and_idx(tmp_path: Path, pixels: Any, data: st.DataObject) -> None:
    label = np.array(data.draw(st.lists(st.sampled_from([0, 1]), min_size=len(pixels), max_size=len(pixels))), np.uint8)
    np.savez_compressed(tmp_path / "d.npz", picture=pixels, label=label)
    images = save_idx(tmp_path / "images-idx3-ubyte.gz", pixels)
    save_idx(tmp_path / "labels-idx1-ubyte.gz", label)
    for path in (tmp_path / "d.npz", images):
        batch = read(path, pictures_task())
        np.testing.assert_array_equal(batch.images["picture"][..., 0], pixels)
        np.testing.assert_array_equal(batch.label, label)


# --- files that are broken, or lie --------------------------------------------------------------------------------


def save_member(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + version + size + header.encode() + data


def npz_with(path: Path, content: bytes) -> Path:
    np.savez(path, label=np.zeros(2, int))
    return save_member(path, "picture.npy", content)


GOOD_HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 5), }\n"
LYING = {
    "ends early": (npy(GOOD_HEADER, bytes(29)), "ends before the rows that its headers promise"),
    "goes on": (npy(GOOD_HEADER, bytes(31)), "has more data than its headers say"),
    "claims a petabyte": (npy(GOOD_HEADER.replace("(2,", "(2000000000000,")), "arrays of different lengths"),
    "objects": (npy(GOOD_HEADER.replace("|u1", "|O"), bytes(240)), "holds Python objects, which are never loaded"),
    "other numbers": (npy(GOOD_HEADER.replace("|u1", "<f8"), bytes(240)), "is not uint8 of n x h x w"),
    "other size": (npy(GOOD_HEADER.replace("5)", "4)"), bytes(24)), "pictures of 3 x 4 where the task expects 3 x 5"),
    "negative": (npy(GOOD_HEADER.replace("(2,", "(-2,")), "arrays of different lengths"),
    "column order": (npy(GOOD_HEADER.replace("False", "True"), bytes(30)), "is not in row order"),
    "header of 4 GB": (npy(GOOD_HEADER, b"", b"\x02\x00", 2**32 - 1), "has no header that is known here"),
    "header of code": (npy("__import__('os').system('true')" + "\n"), "has no header that is known here"),
    "no header": (b"PK", "has no header that is known here"),
}


@pytest.mark.parametrize(("content", "sentence"), LYING.values(), ids=LYING)
def test_an_archive_is_read_only_as_far_as_it_is_true(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        read(npz_with(tmp_path / "d.npz", content), pictures_task())


def test_an_archive_of_rows_that_are_not_there_ends_without_memory_for_them(tmp_path: Path) -> None:
    header = GOOD_HEADER.replace("(2,", "(2000000000000,")
    save_member(tmp_path / "d.npz", "picture.npy", npy(header, bytes(30)))
    with pytest.raises(DataError, match="ends before the rows"):
        read(tmp_path / "d.npz", pictures_task(), need_label=False)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, picture=pictures(9), label=np.zeros(9, int))
    whole = bytearray(path.read_bytes())
    whole[200] ^= 1  # a pixel: the checksum no longer fits
    for content in (bytes(whole), bytes(whole[:100]), b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"d\.npz is not a NumPy archive that can be read"):
            read(path, pictures_task())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label": np.zeros((2, 2))}, '"label" has 2 dimensions where a column has one'),
        ({"label": np.zeros(2, "M8[s]")}, '"label" holds neither numbers, booleans nor texts'),
        ({"label": np.zeros(3, int)}, "arrays of different lengths"),
        ({"label": np.array(["x" * 70_000] * 2)}, '"label" has texts of no or over'),
        ({"label": np.array([b"\xff", b"a"])}, "texts that are not whole characters"),
        ({}, 'has no column "label"'),
    ],
)
def test_an_array_that_is_no_column_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    np.savez(tmp_path / "d.npz", picture=pictures(2), **change)
    with pytest.raises(DataError, match=re.escape(sentence)):
        read(tmp_path / "d.npz", pictures_task())


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("promised", "sentence"),
    [
        ((7, HEIGHT, WIDTH), "ends before the entries that its header promises"),
        ((5, HEIGHT, WIDTH), "has more data than its header says"),
        ((2**32 - 1, HEIGHT, WIDTH), "ends before the entries that its header promises"),
        ((6, WIDTH, HEIGHT), "pictures of 5 x 3 where the task expects 3 x 5"),
        ((6, 15), "is not an IDX file of pictures or labels in bytes"),
    ],
)
def test_an_idx_file_that_lies_is_found(tmp_path: Path, suffix: str, promised: tuple[int, ...], sentence: str) -> None:
    path = save_idx(tmp_path / f"images-idx3-ubyte{suffix}", pictures(6)[..., 0], promised)
    with pytest.raises(DataError, match=sentence):
        read(path, pictures_task(), need_label=False)


def test_damaged_or_foreign_idx_files_are_named(tmp_path: Path) -> None:
    path = save_idx(tmp_path / "images-idx3-ubyte.gz", pictures(6)[..., 0])
    whole = path.read_bytes()
    for content in (whole[:-9], whole[:5], b"plain", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"images-idx3-ubyte\.gz (is damaged|ends before)"):
            read(path, pictures_task(), need_label=False)
    path.write_bytes(whole)
    save_idx(tmp_path / "labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(DataError, match="does not hold one label for each picture"):
        read(path, pictures_task())
    with pytest.raises(DataError, match="holds labels; name the file of their pictures"):
        read(tmp_path / "labels-idx1-ubyte.gz", pictures_task())


BAD_LINES = {
    "no object": ("[1]", "line 2 is no JSON object"),
    "a name twice": ('{"text": "a", "text": "b", "label": 1}', "line 2 is no JSON object with distinct names"),
    "half a line": ('{"text": "a", ', "line 2 is no JSON object"),
    "a deep one": ("[" * 100_000, "line 2 is no JSON object"),
    "a long one": ('{"text": "' + "a" * MAX_LINE_BYTES + '"}', "line 2 is longer than"),
    "a list": ('{"text": ["a"], "label": 1}', 'line 2: "text" holds a list or an object'),
    "half a character": ('{"text": "\\ud800", "label": 1}', 'line 2: "text" is not a text of whole characters'),
    "no UTF-8": (b'{"text": "\xff", "label": 1}', "line 2 is not a UTF-8 text"),
}


@pytest.mark.parametrize(("line", "sentence"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_broken_line_of_json_is_named(tmp_path: Path, line: str | bytes, sentence: str) -> None:
    content = b'{"text": "fine", "label": 1}\n' + (line.encode() if isinstance(line, str) else line) + b"\n"
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(sentence)):
        read(tmp_path / "d.jsonl", TEXTS)


def test_a_misspelt_field_is_found_in_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"Text": "a", "label": 1}\n')
    with pytest.raises(DataError, match=r'd\.jsonl has no column "text"'):
        read(tmp_path / "d.jsonl", TEXTS)


def test_a_picture_of_another_size_is_named_and_never_scaled(tmp_path: Path) -> None:
    file = save_picture(tmp_path / "set" / "cat" / "large.png", np.zeros((400, 300, 1), np.uint8))
    with pytest.raises(DataError, match=r"large\.png has pictures of 400 x 300 x 1 where the task expects 3 x 5"):
        read(tmp_path / "set", pictures_task())
    for column in (pa.array([file.read_bytes()]), pa.array([bytes(14)]), pa.array([bytes(14)], pa.binary(14))):
        with pytest.raises(DataError, match=r"d\.parquet .*(400 x 300|picture of 14 bytes)"):
            read(save_arrow(tmp_path / "d.parquet", column, [0]), pictures_task())


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    for side in (10_000, 60_000):  # the second lies beyond Pillow's own limit
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(100)))
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
        with pytest.raises(DataError, match=r"bomb\.png (has pictures of|is a picture far larger)"):
            read(tmp_path, pictures_task())


def test_what_is_no_picture_in_a_folder_is_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "cat" / "a.png", pictures(1)[0])
    (tmp_path / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt is not a picture that is read here"):
        read(tmp_path, pictures_task())
    (tmp_path / "cat" / "notes.txt").unlink()
    save_picture(tmp_path / "stray.png", pictures(1)[0])
    with pytest.raises(DataError, match=r"stray\.png is not in a subfolder named like its class"):
        read(tmp_path, pictures_task())


def test_a_deep_picture_is_refused_and_not_cut_to_white(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra [image]")
    (tmp_path / "cat").mkdir()
    image.fromarray(np.full((HEIGHT, WIDTH), 40_000, np.uint16)).save(tmp_path / "cat" / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has over 8 bits a pixel"):
        read(tmp_path, pictures_task())


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array([[1] * 15, [1] * 14]), "has pictures of different sizes"),
        (pa.array([[1] * 14, [1] * 14]), "has a picture of 14 bytes where 3 x 5 x 1 = 15 are expected"),
        (pa.array([[256] * 15] * 2), "pixels that are no whole numbers from 0 to 255"),
        (pa.array([[0.5] * 15] * 2), "pixels that are no whole numbers from 0 to 255"),
        (pa.array([[None] * 15] * 2, pa.list_(pa.uint8())), "pixels that are no whole numbers from 0 to 255"),
        (pa.array(["a", "b"]), "has type string; write its pictures as binary"),
    ],
)
def test_a_column_that_holds_no_pictures_is_named(tmp_path: Path, column: pa.Array, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        read(save_arrow(tmp_path / "d.parquet", column, [0, 1]), pictures_task())


def test_sources_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("picture,label\nx,1\n")
    (tmp_path / "d.jsonl").write_text('{"picture": "x", "label": 1}\n')
    for name in ("d.csv", "d.jsonl"):
        with pytest.raises(DataError, match='cannot hold the pictures of column "picture"; use a folder'):
            read(tmp_path / name, pictures_task())
    images = save_idx(tmp_path / "images-idx3-ubyte", pictures(2)[..., 0])
    save_idx(tmp_path / "labels-idx1-ubyte", np.zeros(2, np.uint8))
    with pytest.raises(DataError, match="holds pictures, and this task has no columns of them"):
        read(images, TEXTS)
    with pytest.raises(DataError, match='holds pictures and labels alone, and the column "site" is wanted as well'):
        read(images, pictures_task(), part=Part.parse("site=a"))


def test_large_pictures_come_in_small_batches(tmp_path: Path) -> None:
    task = task_of(ImageColumn("picture", 512, 512, 3))
    assert batch_rows(task) * 512 * 512 * 3 <= BATCH_PICTURE_BYTES
    assert batch_rows(TEXTS) == 16_384
    count = batch_rows(task) + 1
    np.savez_compressed(tmp_path / "d.npz", picture=np.zeros((count, 512, 512, 3), np.uint8), label=np.zeros(count))
    assert [len(batch) for batch in read_batches([tmp_path / "d.npz"], task)] == [count - 1, 1]


MEMORY_PROBE = """
import re, sys
from pathlib import Path
from fusion.dataset import read_batches
from fusion.task import Task
task = Task.from_toml(Path(sys.argv[2]).read_text(), "task.toml")
rows = sum(len(batch) for batch in read_batches([Path(sys.argv[1])], task))
print(rows, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
LARGE_TOML = """
name = "t"
kind = "classification"
[label]
column = "label"
classes = [{ name = "a", values = ["0"] }, { name = "b", values = ["1"] }]
[privacy]
max_epsilon = 1
[[columns]]
name = "picture"
type = "image"
height = 64
width = 64
[encoder]
kind = "onnx"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
bytes = 1
features = 2
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["d.npz", "images-idx3-ubyte.gz"])
def test_memory_stays_flat_however_many_pictures(tmp_path: Path, name: str) -> None:
    (tmp_path / "task.toml").write_text(LARGE_TOML)
    peaks = []
    for count in (10_000, 30_000):  # 40 and 120 MB of pixels
        blank = np.zeros((count, 64, 64), np.uint8)
        folder = tmp_path / str(count)
        folder.mkdir()
        if name == "d.npz":
            np.savez_compressed(folder / name, picture=blank, label=np.zeros(count, np.uint8))
        else:
            save_idx(folder / name, blank)
            save_idx(folder / "labels-idx1-ubyte.gz", np.zeros(count, np.uint8))
        command = [sys.executable, "-c", MEMORY_PROBE, folder / name, tmp_path / "task.toml"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
        rows, peak_kib = map(int, result.stdout.split())
        assert rows == count
        peaks.append(peak_kib * 1024)
    assert peaks[1] - peaks[0] < 40 * 2**20
