"""The task file: what is accepted, what is refused and where the error points, and its one canonical form."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import TaskError
from fusion.task import (
    CategoryColumn,
    NumberColumn,
    PersonUnit,
    Task,
    dimension,
    label_spellings,
    spellings,
)

TOML = """\
name = "heart-disease"
kind = "classification"

[label]
column = "num"
classes = [
    { name = "healthy", values = ["0"] },
    { name = "disease", values = ["1", "2"] },
]

[privacy]
max_epsilon = 3.0

[csv]
missing = ["?"]

[[columns]]
name = "age"
type = "number"
lower = 25
upper = 80

[[columns]]
name = "pain"
type = "category"
values = ["1", "2", "none"]

[encoder]
kind = "tabular"
"""

REGRESSION = """\
name = "house"
kind = "regression"
[label]
column = "value"
lower = 0
upper = 500_000
[privacy]
max_epsilon = 1
delta = 1e-5
[csv]
header = false
delimiter = ";"
names = ["value", "rooms", "other"]
[[columns]]
name = "rooms"
type = "number"
lower = -0.0
upper = 10
bins = 4
[encoder]
kind = "tabular"
bias = 0.3
"""

CANONICAL = (
    b'{"columns":[{"lower":25.0,"name":"age","type":"number","upper":80.0},'
    b'{"name":"pain","type":"category","values":["1","2","none"]}],'
    b'"csv":{"delimiter":",","header":true,"missing":["?"]},'
    b'"encoder":{"bias":0.4,"kind":"tabular"},"kind":"classification",'
    b'"label":{"classes":[{"name":"healthy","values":["0"]},{"name":"disease","values":["1","2"]}],"column":"num"},'
    b'"name":"heart-disease","privacy":{"delta":1e-06,"max_epsilon":3.0,"unit":"record"},'
    b'"summary":"moments","version":1}'
)
TASK_ID = "74ff79bc3223504bce194f9a265811f731f5e19cd375e09fab7b014b2b2bd795"


def task() -> Task:
    return Task.from_toml(TOML, "task.toml")


def test_the_canonical_form_and_the_id_are_those_of_the_golden_vector() -> None:
    assert task().canonical() == CANONICAL
    assert task().id.hex() == TASK_ID


def test_a_task_file_becomes_typed_columns_with_defaults() -> None:
    read = task()
    assert read.columns == (NumberColumn("age", 25.0, 80.0), CategoryColumn("pain", ("1", "2", "none")))
    assert read.privacy.delta == 1e-6
    assert read.privacy.unit == "record"
    assert read.csv.header
    assert read.class_names == ("healthy", "disease")
    assert dimension(read) == 2 + 3 + 1


def test_a_regression_task_has_bounds_instead_of_classes() -> None:
    read = Task.from_toml(REGRESSION, "task.toml")
    assert read.class_names == ()
    assert (read.label.lower, read.label.upper) == (0.0, 500_000.0)
    assert read.csv.names == ("value", "rooms", "other")
    assert dimension(read) == 4 + 1
    assert b"-0.0" not in read.canonical()


PERSONS = TOML.replace("max_epsilon = 3.0", 'max_epsilon = 3.0\nunit = { column = "patient", max_rows = 4 }')


def test_a_task_may_protect_persons_instead_of_rows() -> None:
    read = Task.from_toml(PERSONS, "task.toml")
    assert read.privacy.person == PersonUnit("patient", 4)
    assert read.privacy.unit == "person:patient"
    assert b'"unit":{"column":"patient","max_rows":4}' in read.canonical()
    assert read.id != task().id


def test_the_column_of_persons_must_be_in_a_file_without_a_header() -> None:
    text = PERSONS.replace('missing = ["?"]', 'header = false\nnames = ["age", "pain", "num"]')
    with pytest.raises(TaskError, match=r"privacy\.unit\.column is not among csv.names"):
        Task.from_toml(text, "task.toml")


@pytest.mark.parametrize("text", [TOML, REGRESSION, PERSONS])
def test_a_task_survives_the_trip_to_a_peer(text: str) -> None:
    read = Task.from_toml(text, "task.toml")
    assert Task.from_canonical(read.canonical()) == read


def test_comments_order_and_number_spelling_do_not_change_the_id() -> None:
    other = TOML.replace("lower = 25\nupper = 80", "upper = 80.0  # years\nlower = 2.5e1")
    assert Task.from_toml(other, "x").id == task().id


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("upper = 80", "upper = 81"),
        ("max_epsilon = 3.0", "max_epsilon = 2.0"),
        ('values = ["1", "2", "none"]', 'values = ["2", "1", "none"]'),
        ('missing = ["?"]', 'missing = ["-"]'),
    ],
)
def test_any_change_of_meaning_changes_the_id(old: str, new: str) -> None:
    assert Task.from_toml(TOML.replace(old, new), "x").id != task().id


def unit(fields: str) -> str:
    return f"max_epsilon = 1\nunit = {{ {fields} }}"


REFUSED = [
    # what is replaced, by what, and the sentence that results
    ("", "x = [", r"task.toml line 1: this is not valid TOML"),
    ('name = "heart-disease"', "", r'task.toml line 1: the field "name" is missing; add it'),
    ('"heart-disease"', '"../etc/passwd"', r"line 1: name must consist of letters"),
    ('"heart-disease"', f'"{"n" * 201}"', r"line 1: name must have 1 to 200 characters"),
    ('"classification"', '"ranking"', r"line 2: kind must be one of: classification, regression"),
    ("[label]\n", 'summary = "ranking"\n[label]\n', r"line 4: summary must be one of: moments"),
    ("[label]\n", "colour = 1\n[label]\n", r"line 4: colour is not a field known here"),
    ('column = "num"', "column = 7", r"line 5: label.column must be a text in quotes"),
    ('["1", "2"] }', '["0", "2"] }', r'line 6: label.classes "0" is listed twice'),
    ('["1", "2"] }', '["0.0", "2"] }', r'line 6: label.classes "0.0" is listed twice'),
    ('name = "disease"', 'name = "healthy"', r"line 6: label.classes must not give two classes the same name"),
    ('    { name = "disease", values = ["1", "2"] },\n', "", r"label.classes must name at least two classes"),
    ("max_epsilon = 3.0", "max_epsilon = 0", r"line 12: privacy.max_epsilon must be over 0 and at most 20"),
    ("max_epsilon = 3.0", "max_epsilon = nan", r"line 12: privacy.max_epsilon must be finite"),
    ("max_epsilon = 3.0", "max_epsilon = 20.1", r"line 12: privacy.max_epsilon must be over 0 and at most 20"),
    ("max_epsilon = 3.0", "max_epsilon = true", r"line 12: privacy.max_epsilon must be a number"),
    ("max_epsilon = 3.0", "max_epsilon = 1\ndelta = 2e-5", r"line 13: privacy.delta must be between"),
    ("max_epsilon = 3.0", "max_epsilon = 1\ndelta = 0", r"line 13: privacy.delta must be between"),
    ("max_epsilon = 3.0", 'max_epsilon = 1\nunit = "person"', r'line 13: privacy.unit must be "record", or name the'),
    ("max_epsilon = 3.0", unit("max_rows = 4"), r'line 13: privacy.unit the field "column" is missing'),
    ("max_epsilon = 3.0", unit('column = "id"'), r'line 13: privacy.unit the field "max_rows" is missing'),
    (
        "max_epsilon = 3.0",
        unit('column = "id", max_rows = 0'),
        r"privacy.unit.max_rows must be a whole number between 1",
    ),
    ("max_epsilon = 3.0", unit('column = "id", max_rows = 1001'), r"privacy.unit.max_rows must be .* 1 and 1000"),
    ("max_epsilon = 3.0", unit('column = "id", max_rows = 2.0'), r"privacy.unit.max_rows must be a whole number"),
    ("max_epsilon = 3.0", unit('column = "id", max_rows = true'), r"privacy.unit.max_rows must be a whole number"),
    ("max_epsilon = 3.0", unit('column = "num", max_rows = 4'), r"line 13: privacy.unit.column is the label column"),
    ("max_epsilon = 3.0", unit('column = "id", max_rows = 4, x = 1'), r"privacy.unit.x is not a field known here"),
    ("max_epsilon = 3.0", unit('column = "age", max_rows = 4'), r'columns\[0\] "age": name is the column of persons'),
    ('missing = ["?"]', 'names = ["age"]', r"line 15: csv.names are for files without a header"),
    ('missing = ["?"]', "header = false", r'line 14: csv the field "names" is missing'),
    ('missing = ["?"]', 'header = false\nnames = ["age", "num"]', r'columns\[1\] "pain": name is not among csv.names'),
    ('missing = ["?"]', 'delimiter = ",,"', r"line 15: csv.delimiter must be one of"),
    ('missing = ["?"]', 'missing = ["none"]', r'columns\[1\] "pain": values must not hold an entry of csv.missing'),
    ('name = "age"', 'name = "num"', r'line 18: columns\[0\] "num": name is the label column'),
    ('name = "pain"', 'name = "age"', r'line 24: columns\[1\] "age": name is used by an earlier column'),
    ('name = "pain"', 'name = "a\\u001b[31mb"', r"line 24: columns\[1\]: name must be printable"),
    ('type = "number"', 'type = "date"', r'line 19: columns\[0\] "age": type must be one of: number, category'),
    ("upper = 80", "upper = 25", r'line 21: columns\[0\] "age": upper must be larger than lower'),
    ("upper = 80", "upper = inf", r'line 21: columns\[0\] "age": upper must be finite'),
    ("upper = 80", "upper = 1e31", r'line 21: columns\[0\] "age": upper must be finite and at most 1e\+30'),
    ("upper = 80", "upper = 25.00001", r'line 21: columns\[0\] "age": upper is too close to lower'),
    ("upper = 80", 'upper = "80"', r'line 21: columns\[0\] "age": upper must be a number'),
    ("upper = 80", "upper = 80\nbins = 1", r'line 22: columns\[0\] "age": bins must be a whole number between 2'),
    ("upper = 80", "upper = 80\nbins = 2.5", r'line 22: columns\[0\] "age": bins must be a whole number'),
    ("upper = 80\n", "", r'line 17: columns\[0\] "age": the field "upper" is missing'),
    (
        'values = ["1", "2", "none"]',
        "values = []",
        r'line 26: columns\[1\] "pain": values must not be empty; list every category the column may hold',
    ),
    ('values = ["1", "2", "none"]', 'values = ["1"]', r"line 26: .*values must list at least two categories"),
    ('values = ["1", "2", "none"]', "values = [1, 2]", r"line 26: .*values every entry must be a text in quotes"),
    ('values = ["1", "2", "none"]', 'values = ["1", "1"]', r"line 26: .*values must not name the same value twice"),
    ('values = ["1", "2", "none"]', 'values = ["1", "1.0"]', r'line 26: .*values "1.0" is listed twice'),
    ('values = ["1", "2", "none"]', 'values = ["1", " 2"]', r"line 26: .*printable, without spaces at its ends"),
    ('kind = "tabular"', 'kind = "tabulated"', r"line 29: encoder.kind must be one of: tabular"),
    ('kind = "tabular"', 'kind = "image"', r"line 29: encoder.kind takes one picture and nothing else"),
    ('kind = "tabular"', 'kind = "tabular"\nbias = 0.99', r"line 30: encoder.bias must be between"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), REFUSED, ids=[new or "nothing" for _, new, _ in REFUSED])
def test_a_wrong_field_is_refused_with_its_line(old: str, new: str, sentence: str) -> None:
    text = TOML.replace(old, new, 1)
    assert text != TOML
    with pytest.raises(TaskError, match=sentence) as caught:
        Task.from_toml(text, "task.toml")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def columns_toml(count: int, bins: int) -> str:
    column = '[[columns]]\nname = "c{}"\ntype = "number"\nlower = 0\nupper = 1\nbins = {}\n'
    columns = "".join(column.format(index, bins) for index in range(count))
    return TOML[: TOML.index("[[columns]]")] + columns + '[encoder]\nkind = "tabular"\n'


def test_an_encoding_of_too_many_dimensions_is_refused() -> None:
    assert dimension(Task.from_toml(columns_toml(63, 65 - 1), "x")) == 63 * 64 + 1
    with pytest.raises(TaskError, match="are encoded in 4097 dimensions, over the 4096 allowed"):
        Task.from_toml(columns_toml(64, 64), "x")


def test_too_many_columns_are_refused() -> None:
    with pytest.raises(TaskError, match="columns must not hold more than 10000 entries"):
        Task.from_toml(columns_toml(10_001, 2), "x")


def test_too_many_categories_are_refused() -> None:
    values = ", ".join(f'"v{index}"' for index in range(100_001))
    with pytest.raises(TaskError, match="values must not hold more than 100000 entries"):
        Task.from_toml(TOML.replace('"1", "2", "none"', values), "x")


def test_a_huge_file_is_refused_unread() -> None:
    with pytest.raises(TaskError, match="bytes is refused"):
        Task.from_toml("#" * (8 * 2**20 + 1), "x")
    with pytest.raises(TaskError, match="bytes arrived and was refused"):
        Task.from_canonical(b" " * (8 * 2**20 + 1))


def changed(**fields: object) -> bytes:
    content = json.loads(CANONICAL) | fields
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not canonical JSON"),
        (b"\xff\xfe", "not canonical JSON"),
        (b"[" * 100_000, "not canonical JSON"),
        (b"[1]", "version that is not known"),
        (changed(version=2), "version that is not known"),
        (CANONICAL + b" ", "not in canonical form"),
        (CANONICAL.replace(b"25.0", b"25"), "not in canonical form"),
        (CANONICAL.replace(b'"version":1', b'"version":true'), "not in canonical form"),
        (CANONICAL.replace(b'"kind":"classification"', b'"kind":"x","kind":"classification"'), "not in canonical"),
        (changed(name="a b"), "task from a peer: name must consist of letters"),
        (changed(extra=1), "task from a peer: extra is not a field known here"),
        (changed(privacy={"max_epsilon": 100.0, "delta": 1e-6, "unit": "record"}), "privacy.max_epsilon must be over"),
        (CANONICAL.replace(b"80.0", b"NaN"), 'columns\\[0\\] "age": upper must be finite'),
        (CANONICAL.replace(b"80.0", b"1" + b"0" * 400), 'columns\\[0\\] "age": upper must be finite'),
        (CANONICAL.replace(b'"none"', b'"\\ud800"'), "must be printable"),
    ],
)
def test_a_task_from_a_peer_passes_the_same_checks(data: bytes, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        Task.from_canonical(data)


@given(position=st.integers(0, len(CANONICAL) - 1), byte=st.integers(0, 255))
def test_one_changed_byte_is_refused_or_is_another_valid_task(position: int, byte: int) -> None:
    data = bytearray(CANONICAL)
    data[position] = byte
    try:
        other = Task.from_canonical(bytes(data))
    except TaskError:
        return
    assert other.canonical() == bytes(data)


@given(st.text(max_size=300))
def test_any_text_is_a_task_or_a_task_error(text: str) -> None:
    with pytest.raises(TaskError):
        Task.from_toml(text, "task.toml")


def test_a_whole_number_is_also_matched_with_a_decimal_point() -> None:
    column = CategoryColumn("c", ("1", "-2", "x", "1.5", "03"))
    assert spellings(column) == {"1": 0, "1.0": 0, "-2": 1, "-2.0": 1, "x": 2, "1.5": 3, "03": 4}
    assert label_spellings(task().label)["2.0"] == 1


def test_importing_a_task_loads_no_library() -> None:
    code = (
        "import sys, fusion.task, fusion.task_checks; print(sorted({'numpy', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
