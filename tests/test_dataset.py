"""Reading data: every format alike, every oddity counted, every defect named without quoting a cell."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fusion.dataset import BATCH_ROWS, Batch, inspect, read_batches
from fusion.errors import DataError
from fusion.sources.tables import CSV_BLOCK_BYTES
from fusion.task import Task

TOML = """
name = "t"
kind = "classification"
[label]
column = "y"
classes = [ { name = "low", values = ["0"] }, { name = "high", values = ["1", "2"] } ]
[privacy]
max_epsilon = 1
[csv]
missing = ["?"]
[[columns]]
name = "size"
type = "number"
lower = 0
upper = 10
[[columns]]
name = "code"
type = "category"
values = ["1", "2", "x"]
[encoder]
kind = "tabular"
"""
TASK = Task.from_toml(TOML, "task.toml")
HEADERLESS = Task.from_toml(
    TOML.replace('missing = ["?"]', 'header = false\nmissing = ["?"]\nnames = ["size", "code", "y"]'), "task.toml"
)
REGRESSION = Task.from_toml(
    TOML.replace('"classification"', '"regression"').replace(
        'classes = [ { name = "low", values = ["0"] }, { name = "high", values = ["1", "2"] } ]',
        "lower = -1\nupper = 3",
    ),
    "task.toml",
)
GOOD = "size,code,y\n1,1,0\n2.5,x,1\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(paths: list[Path], task: Task = TASK, need_label: bool = True) -> Batch:
    batches = list(read_batches(paths, task, need_label))
    return Batch(
        {name: np.concatenate([batch.numbers[name] for batch in batches]) for name in batches[0].numbers},
        {name: np.concatenate([batch.categories[name] for batch in batches]) for name in batches[0].categories},
        np.concatenate([batch.label for batch in batches if batch.label is not None]) if need_label else None,
        sum(len(batch) for batch in batches),
    )


def test_every_oddity_becomes_missing_or_clipped_and_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.csv",
        "ignored,size,code,y\n"
        "a, 1 ,1.0,0\n"  # spaces and a decimal point
        "b,?,?,1\n"  # csv.missing
        "c,,,2.0\n"  # empty
        "d,soon,zebra,0\n"  # unreadable, unknown
        "e,11,2,0\n"  # clipped
        "f,-1e9,x,0\n"  # clipped
        "g,1e999,x,0\n"  # not finite: unreadable
        "h,nan,x,0\n"  # likewise
        "i,.5,x,0\n"
        "j,1,1,7\n"  # label outside
        "k,99,nope,\n",  # label missing: its other cells are not counted
    )
    batch = read([path])
    np.testing.assert_array_equal(batch.numbers["size"], [1, np.nan, np.nan, np.nan, 10, 0, np.nan, np.nan, 0.5])
    assert batch.categories["code"].tolist() == [0, -1, -1, -1, 1, 2, 2, 2, 2]
    assert batch.label is not None
    assert batch.label.tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0]
    report = inspect([path], TASK)
    assert (report.rows_read, report.rows_used, report.labels_outside) == (11, 9, 2)
    assert report.clipped == {"size": 2}
    assert report.missing == {"size": 2, "code": 2}
    assert report.unreadable == {"size": 3}
    assert report.unknown == {"code": 1}


def test_without_labels_no_row_is_dropped_and_no_label_column_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "size,code\n1,1\n2,zebra\n")
    batch = read([path], need_label=False)
    assert batch.label is None
    assert batch.numbers["size"].tolist() == [1, 2]
    assert inspect([path], TASK, need_label=False).rows_used == 2


def test_a_regression_label_is_scaled_clipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "size,code,y\n1,1,-1\n1,1,1\n1,1,3\n1,1,1e6\n1,1,?\n1,1,many\n")
    batch = read([path], REGRESSION)
    assert batch.label is not None
    assert batch.label.tolist() == [-1.0, 0.0, 1.0, 1.0]
    report = inspect([path], REGRESSION)
    assert (report.labels_outside, report.clipped["y"]) == (2, 1)


def same(one: Batch, other: Batch) -> None:
    for name, values in one.numbers.items():
        np.testing.assert_array_equal(values, other.numbers[name])
    for name, indices in one.categories.items():
        np.testing.assert_array_equal(indices, other.categories[name])
    np.testing.assert_array_equal(one.label, other.label)


TEXTS = ["1", "2", None, "x", "zebra"]
COLUMN_TYPES = {
    "float": (pa.array([1.0, None, 3.0, float("nan"), 12.0]), pa.array(TEXTS), pa.array([0, 1, 2, 0, 1])),
    "int": (pa.array([1, None, 3, None, 12], pa.int16()), pa.array(TEXTS), pa.array(["0", "1", "2", "0", "1"])),
    "text": (
        pa.array(["1", "?", " 3", "", "12"]),
        pa.array(["1.0", "2", "?", "x", "zebra"], pa.large_string()),
        pa.array([0.0, 1.0, 2.0, 0.0, 1.0]),
    ),
    "dictionary": (
        pa.array([1, None, 3, None, 12], pa.float32()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(["0", "1", "2", "0", "1"]).dictionary_encode(),
    ),
}


@pytest.mark.parametrize("columns", COLUMN_TYPES.values(), ids=COLUMN_TYPES)
def test_csv_parquet_and_arrow_files_of_any_type_read_alike(tmp_path: Path, columns: tuple[pa.Array, ...]) -> None:
    csv = write(tmp_path / "d.csv", "size,code,y\n1,1,0\n,2,1\n3,,2\n,x,0\n12,zebra,1\n")
    size, code, label = columns
    table = pa.table({"other": [None] * 5, "y": label, "code": code, "size": size})
    pa.parquet.write_table(table, tmp_path / "d.parquet")
    with pa.ipc.new_file(tmp_path / "d.arrow", table.schema) as file:
        file.write_table(table)
    with pa.ipc.new_stream(tmp_path / "d.ipc", table.schema) as stream:
        stream.write_table(table)
    for name in ("d.parquet", "d.arrow", "d.ipc"):
        same(read([csv]), read([tmp_path / name]))
        assert inspect([csv], TASK) == inspect([tmp_path / name], TASK)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (pa.array([1, 2, 3]), [0, 1, -1]),
        (pa.array([1.0, 2.0, 2.5]), [0, 1, -1]),
        (pa.array([True, False, None]), [2, -1, -1]),
    ],
)
def test_whole_numbers_and_booleans_match_categories(tmp_path: Path, code: pa.Array, expected: list[int]) -> None:
    task = Task.from_toml(TOML.replace('["1", "2", "x"]', '["1", "2", "true"]'), "x")
    pa.parquet.write_table(pa.table({"size": [1, 2, 3], "code": code, "y": [0, 0, 0]}), tmp_path / "d.parquet")
    assert read([tmp_path / "d.parquet"], task).categories["code"].tolist() == expected


def test_the_example_task_reads_its_four_hospitals() -> None:
    heart = Path(__file__).parents[1] / "examples" / "heart"
    task = Task.from_toml((heart / "task.toml").read_text(encoding="utf-8"), "task.toml")
    rows = {}
    for hospital in ("cleveland", "hungarian", "switzerland", "va"):
        report = inspect([heart / f"{hospital}.csv"], task)
        rows[hospital] = report.rows_used
        assert report.labels_outside == sum(report.unreadable.values()) == sum(report.unknown.values()) == 0
    assert rows == {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}


def test_files_follow_one_another(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", GOOD)
    second = write(tmp_path / "b.csv", "y,code,size\n2,2,9\n")
    assert read([first, second]).numbers["size"].tolist() == [1, 2.5, 9]
    assert inspect([first, second], TASK).rows_read == 3


def test_a_file_without_header_is_read_by_the_names_of_the_task(tmp_path: Path) -> None:
    path = write(tmp_path / "d.data", "1,1,0\n\n2.5,x,1\n")
    assert read([path], HEADERLESS).numbers["size"].tolist() == [1, 2.5]


def test_quotes_line_ends_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", b'\xef\xbb\xbf"size", code ,y,"a ""b"""\r\n"1","1",0,"two\r\nlines, one cell"\r\n')
    batch = read([path])
    assert batch.numbers["size"].tolist() == [1]
    assert batch.categories["code"].tolist() == [0]


def test_another_delimiter_is_understood(tmp_path: Path) -> None:
    task = Task.from_toml(TOML.replace('missing = ["?"]', 'delimiter = ";"'), "x")
    assert read([write(tmp_path / "d.csv", GOOD.replace(",", ";"))], task).numbers["size"].tolist() == [1, 2.5]


CELL = "CONFIDENTIAL"  # stands for the contents of a cell
BROKEN = [
    ("d.csv", f"size,code,y\n1,1,0\n{CELL},1\n", r"d.csv row 3 has 2 fields where 3 are expected; fix or remove"),
    ("d.csv", f"size,code,y\n1,1,0,{CELL}\n", r"d.csv row 2 has 4 fields where 3 are expected; fix or remove"),
    ("d.csv", "size,y\n1,0\n", r'd.csv has no column "code", which the task names'),
    ("d.csv", "size,code,code,y\n1,1,1,0\n", r'd.csv has 2 columns named "code"; keep one'),
    ("d.csv", "", r"d.csv is empty"),
    ("d.csv", "size,code,y\n", r"d.csv holds no rows"),
    ("d.csv", b"size,code,y\n\xff\xfe,1,0\n", r"d.csv is not a UTF-8 text"),
    ("d.csv", b"size,c\xff\xfeode,y\n1,1,0\n", r"d.csv is not a UTF-8 text"),
    ("d.csv", 'size,code,y\n1,1,0\n"' + f"{CELL},1,0\n" * 9, r"d.csv row 3 has 1 fields where 3 are expected"),
    ("d.csv", f"size,code,y\n{CELL * 200_000},1,0\n", r"d.csv has a row of over 1048576 bytes"),
    ("d.xlsx", GOOD, r"d.xlsx has an unknown kind of name; data files end in one of .csv"),
    ("d.parquet", CELL * 10, r"d.parquet is not a Parquet file that can be read"),
    ("d.parquet", "", r"d.parquet is not a Parquet file that can be read"),
    ("d.arrow", CELL * 10, r"d.arrow is not an Arrow file that can be read"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BROKEN)
def test_a_broken_file_is_named_without_quoting_it(
    tmp_path: Path, name: str, content: str | bytes, sentence: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=sentence) as caught:
        inspect([path], TASK)
    assert CELL not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_row_deep_in_a_file_is_found_by_its_number(tmp_path: Path) -> None:
    rows = ["1,1,0"] * 300_000
    rows[250_000] = "1,1"
    path = write(tmp_path / "d.csv", "size,code,y\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"row 250002 has 2 fields where 3 are expected"):
        inspect([path], TASK)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there or is not a file"):
        inspect([tmp_path / "absent.csv"], TASK)
    with pytest.raises(DataError, match="holds pictures, and this task has no columns of them"):
        inspect([tmp_path], TASK)
    with pytest.raises(DataError, match="no data file is named"):
        inspect([], TASK)


def test_an_empty_second_file_is_found(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.csv", GOOD), write(tmp_path / "b.csv", "size,code,y\n")]
    with pytest.raises(DataError, match=r"b\.csv holds no rows"):
        inspect(paths, TASK)


def test_a_column_of_an_unsupported_type_is_named(tmp_path: Path) -> None:
    table = pa.table({"size": pa.array([1], pa.timestamp("s")), "code": ["1"], "y": [0]})
    pa.parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r'column "size" has type timestamp\[.*\]; write it as numbers'):
        inspect([tmp_path / "d.parquet"], TASK)


def test_progress_tells_the_rows_done(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "size,code,y\n" + "1,1,0\n" * (2 * BATCH_ROWS + 5))
    told: list[int] = []
    report = inspect([path], TASK, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == report.rows_read == 2 * BATCH_ROWS + 5
    assert max(len(batch) for batch in read_batches([path], TASK)) <= BATCH_ROWS


def test_a_large_arrow_batch_is_taken_in_parts(tmp_path: Path) -> None:
    count = 3 * BATCH_ROWS + 1
    table = pa.table({"size": np.arange(count), "code": ["1"] * count, "y": [0] * count})
    with pa.ipc.new_file(tmp_path / "d.arrow", table.schema) as file:
        file.write_table(table)
    assert [len(batch) for batch in read_batches([tmp_path / "d.arrow"], TASK)] == [BATCH_ROWS] * 3 + [1]


MEMORY_PROBE = """
import re, sys
from pathlib import Path
from fusion.dataset import read_batches
from fusion.task import Task
task = Task.from_toml(Path(sys.argv[2]).read_text(), "task.toml")
rows = sum(len(batch) for batch in read_batches([Path(sys.argv[1])], task))
print(rows, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_memory_stays_flat_however_long_the_file(tmp_path: Path, suffix: str) -> None:
    peaks = []
    write(tmp_path / "task.toml", TOML)
    for count in (900_000, 3_000_000):  # CSV files of 31 and 105 MB: pyarrow reads some blocks ahead
        path = tmp_path / f"d{count}{suffix}"
        if suffix == ".csv":
            write(path, "size,code,y,note\n" + "1.25,x,1,some text that nobody reads\n" * count)
        else:
            size = np.random.default_rng(0).random(count)
            table = pa.table({"size": size, "code": ["x"] * count, "y": [1] * count})
            pa.parquet.write_table(table, path, row_group_size=50_000)
        probe = [sys.executable, "-c", MEMORY_PROBE, str(path), str(tmp_path / "task.toml")]
        # The allocator of the system gives memory back, so that its peak says what was needed at once.
        environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
        done = subprocess.run(probe, capture_output=True, text=True, check=True, env=environment)
        rows, peak_kib = done.stdout.split()
        assert int(rows) == count
        peaks.append(int(peak_kib) * 1024)
    assert peaks[1] - peaks[0] < 40 * CSV_BLOCK_BYTES
