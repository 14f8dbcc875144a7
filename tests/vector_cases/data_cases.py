"""Files of rows: every format, and what each may claim that is not so."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tests.vector_cases import Cases

ROWS = "age,arrival,outcome\n30,walk,0\n,ambulance,1\n200,bus,0\nold,,1\n50,walk,2\n"
TABLE = pa.table({"age": [30.0, None, 200.0], "arrival": ["walk", None, "bus"], "outcome": ["0", "1", "0"]})


def _csv() -> Cases:
    return {
        "good": (ROWS.encode(), ""),
        "good-of-windows": (ROWS.replace("\n", "\r\n").encode("utf-8-sig"), ""),
        "good-with-quotes": (ROWS.replace("walk", '"walk"').encode(), ""),
        "nothing": (b"", "is empty"),
        "no-header-line": (b"\n" + ROWS.encode(), "has no header line"),
        "no-rows": (b"age,arrival,outcome\n", "holds no rows"),
        "a-column-missing": (ROWS.replace("arrival", "arrived").encode(), 'has no column "arrival"'),
        "a-column-twice": (ROWS.replace("age,", "age,age,", 1).encode(), 'has 2 columns named "age"'),
        "a-row-too-long": ((ROWS + "1,walk,0,9\n").encode(), "fields where 3 are expected"),
        "not-utf-8": (ROWS.encode() + b"30,w\xff,0\n", "is not a UTF-8 text"),
        "a-header-that-is-not-utf-8": (b"\xff" + ROWS.encode(), "is not a UTF-8 text"),
        "a-quotation-mark-without-end": (ROWS.encode() + b'"' + b"x" * 2**21, "unclosed quotation mark"),
        "a-header-of-a-megabyte": (b"x" * (2**20 + 1), "has a header line that cannot be read"),
        "a-zero-byte": (ROWS.replace("bus", "b\0s").encode(), ""),
    }


def _json_lines() -> Cases:
    good = b'{"age": 30, "arrival": "walk", "outcome": 0}\n{"age": null, "outcome": "1"}\n'
    line = b'{"age": %s, "arrival": "walk", "outcome": 0}\n'
    return {
        "good": (good, ""),
        "good-with-empty-lines": (b"\n" + good.replace(b"\n", b"\n\n"), ""),
        "good-with-numbers-of-all-forms": (b"".join(line % one for one in (b"1e999", b"-0", b"NaN", b"1" * 5_000)), ""),
        "nothing": (b"", "holds no rows"),
        "not-json": (b"{\n", "no JSON object with distinct names"),
        "a-list": (b"[]\n", "no JSON object with distinct names"),
        "a-field-twice": (b'{"age": 1, "age": 2}\n', "no JSON object with distinct names"),
        "nested-deeply": (b'{"age": ' + b"[" * 100_000 + b"\n", "no JSON object with distinct names"),
        "not-utf-8": (good + b'{"age": "\xff"}\n', "is not a UTF-8 text"),
        "a-line-of-two-megabytes": (good + b'{"age": "' + b"x" * 2**21 + b'"}\n', "is longer than"),
        "a-column-missing": (b'{"age": 1}\n', 'has no column "arrival"'),
        "a-list-for-a-cell": (line % b"[1]", "holds a list or an object"),
        "half-a-surrogate-pair": (line % b'"\\ud800"', "is not a text of whole characters"),
        "a-line-of-many-values": (
            b'{"arrival": 0, "outcome": 0, "age": [' + b"[]," * 300_000 + b"[]]}\n",
            "holds a list or an object",
        ),
    }


def _written(write: Any, table: Any = TABLE) -> bytes:
    out = io.BytesIO()
    write(table, out)
    return out.getvalue()


def _parquet() -> Cases:
    def write(table: Any, out: Any, **how: Any) -> None:
        pa.parquet.write_table(table, out, store_schema=False, **how)

    good = _written(write)
    unread = "is not a Parquet file that can be read"
    pages = _written(lambda table, out: write(table, out, compression="zstd", use_dictionary=False))
    return {
        "good": (good, ""),
        "good-compressed": (pages, ""),
        "nothing": (b"", unread),
        "another-file": (b"PK" + bytes(99), unread),
        "cut-off": (good[:-1], unread),
        "a-footer-of-gigabytes": (good[:-8] + b"\xff\xff\xff\x7f" + good[-4:], unread),
        "a-page-that-is-damaged": (pages[:8] + bytes(60) + pages[68:], unread),
        "a-column-missing": (_written(write, TABLE.drop_columns(["age"])), 'has no column "age"'),
        "no-rows": (_written(write, TABLE.slice(0, 0)), "holds no rows"),
        "a-label-of-dates": (
            _written(write, TABLE.set_column(2, "outcome", pa.array([1, 2, 3], pa.date32()))),
            "has type",
        ),
    }


def _arrow() -> Cases:
    def file(table: Any, out: Any) -> None:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)

    def stream(table: Any, out: Any) -> None:
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)

    good, streamed = _written(file), _written(stream)
    unread = "is not an Arrow file that can be read"
    types = "holds cells that are not of the type that it says"
    texts = b"walkbus"
    at = good.index(texts)
    offsets = good.rindex(struct.pack("<4i", 0, 4, 4, 7), 0, at)
    beyond = good[:offsets] + struct.pack("<4i", 0, 4, 4, 2**31 - 1) + good[offsets + 16 :]
    return {
        "good": (good, ""),
        "good-stream": (streamed, ""),
        "nothing": (b"", unread),
        "another-file": (b"PK" + bytes(99), unread),
        "cut-off": (good[: len(good) // 2], unread),
        "a-text-that-ends-beyond-the-file": (beyond, types),
        "a-text-that-is-not-utf-8": (good[:at] + b"\xff" * 7 + good[at + 7 :], types),
        "a-name-that-is-not-utf-8": (good.replace(b"age", b"\xffge"), unread),
        "a-column-missing": (good.replace(b"age", b"agf"), 'has no column "age"'),
        "no-rows": (_written(file, TABLE.slice(0, 0)), "holds no rows"),
    }


def _npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _npz() -> Cases:
    arrays = {
        "age.npy": _npy(np.array([30.0, np.nan, 200.0])),
        "arrival.npy": _npy(np.array(["walk", "", "bus"])),
        "outcome.npy": _npy(np.array([0, 1, 0])),
    }
    good, age = _zip(arrays), arrays["age.npy"]
    unread, header = "is not a NumPy archive that can be read", "has no header that is known here"

    def changed(**members: bytes) -> bytes:
        return _zip(arrays | {f"{name}.npy": data for name, data in members.items()})

    def saying(rows: bytes) -> bytes:
        """All arrays with another shape in their headers."""
        return _zip({name: _of_shape(data, rows) for name, data in arrays.items()})

    return {
        "good": (good, ""),
        "good-bytes": (changed(arrival=_npy(np.array([b"walk", b"", b"bus"]))), ""),
        "nothing": (b"", unread),
        "another-file": (ROWS.encode(), unread),
        "cut-off": (good[:-30], unread),
        "encrypted": (_encrypted(good), unread),
        "packed-in-an-unknown-way": (_packed_otherwise(good), unread),
        "a-damaged-member": (good.replace(zlib.compress(age, -1)[2:10], bytes(8)), unread),
        "a-wrong-checksum": (_with_a_checksum_of(good, 0), unread),
        "a-column-missing": (_zip({"age.npy": age}), 'has no column "arrival"'),
        "a-column-twice": (_zip(arrays | {"age": age}), 'has 2 columns named "age"'),
        "arrays-of-different-lengths": (changed(age=_npy(np.zeros(4))), "has arrays of different lengths"),
        "two-dimensions": (changed(age=_npy(np.zeros((3, 2)))), "has 2 dimensions where a column has one"),
        "objects": (changed(age=_npy(np.array([{}, {}, {}]))), "holds Python objects, which are never loaded"),
        "dates": (changed(age=_npy(np.zeros(3, "M8[s]"))), "holds neither numbers, booleans nor texts"),
        "texts-of-a-megabyte": (changed(arrival=_npy(np.array(["x" * 2**19] * 3))), "has texts of no or over"),
        "texts-that-are-not-utf-8": (changed(arrival=_npy(np.array([b"\xff"] * 3))), "that are not whole characters"),
        "texts-of-letters-that-are-none": (
            changed(arrival=_npy(np.array(["walk", "", "bus"])).replace(b"w\0\0\0", b"\0\xd8\0\0")),
            "that are not",
        ),
        "no-array": (changed(age=b"nothing of the kind"), header),
        "an-array-of-another-version": (changed(age=age[:6] + b"\x09" + age[7:]), header),
        "a-header-of-four-gigabytes": (changed(age=age[:6] + b"\2\0\xff\xff\xff\xff" + age[10:]), header),
        "a-header-that-is-code": (changed(age=age.replace(b"(3,), }", b"f(3), }")), header),
        "fewer-rows-than-it-says": (saying(b"(9,)"), "ends before the rows"),
        "more-rows-than-it-says": (saying(b"(2,)"), "has more data than its headers say"),
        "rows-of-a-negative-number": (saying(b"(-3,)"), "has more data than its headers say"),
        "rows-beyond-all-memory": (saying(b"(99999999999999,)"), "ends before the rows"),
        "a-text-of-zeros-of-a-gigabyte": (
            _zip({"age": _of_shape(age, b"(99999999,)") + bytes(2**22)}),
            "has no column",
        ),
    }


def _of_shape(array: bytes, shape: bytes) -> bytes:
    """The array file with another shape in its header, which keeps its length."""
    end = array.index(b"\n")
    header = array[:end].replace(b"(3,)", shape).rstrip(b" ")
    return header.ljust(end, b" ") + array[end:]


def _encrypted(archive: bytes) -> bytes:
    """The flag of encryption on every member."""
    out = bytearray(archive)
    for at in _all(archive, b"PK\1\2"):
        out[at + 8] |= 1
    for at in _all(archive, b"PK\3\4"):
        out[at + 6] |= 1
    return bytes(out)


def _packed_otherwise(archive: bytes) -> bytes:
    out = bytearray(archive)
    for at in _all(archive, b"PK\1\2"):
        out[at + 10] = 99
    for at in _all(archive, b"PK\3\4"):
        out[at + 8] = 99
    return bytes(out)


def _with_a_checksum_of(archive: bytes, checksum: int) -> bytes:
    out = bytearray(archive)
    for at in _all(archive, b"PK\1\2"):
        out[at + 16 : at + 20] = checksum.to_bytes(4, "little")
    for at in _all(archive, b"PK\3\4"):
        out[at + 14 : at + 18] = checksum.to_bytes(4, "little")
    return bytes(out)


def _all(data: bytes, mark: bytes) -> list[int]:
    return [at for at in range(len(data)) if data.startswith(mark, at)]


def _idx() -> Cases:
    pixels = bytes(range(12))
    good = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 2) + pixels
    packed = gzip.compress(good, 9, mtime=0)
    kind, ends = "is not an IDX file of pictures or labels in bytes", "ends before the entries that its header promises"
    return {
        "good": (good, ""),
        "good-in-colour-of-one": (struct.pack(">4B4I", 0, 0, 8, 4, 2, 3, 2, 1) + pixels, ""),
        "good-compressed": (packed, ""),
        "nothing": (b"", ends),
        "another-file": (b"PK\3\4" + bytes(30), kind),
        "of-floats": (struct.pack(">4B3I", 0, 0, 13, 3, 2, 3, 2) + pixels, kind),
        "of-two-dimensions": (struct.pack(">4B2I", 0, 0, 8, 2, 2, 6) + pixels, kind),
        "labels-alone": (struct.pack(">4BI", 0, 0, 8, 1, 2) + b"\0\1", "holds labels; name the file of their pictures"),
        "a-header-cut-off": (good[:9], ends),
        "pictures-of-another-size": (struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 3) + pixels, "has pictures of 2 x 3"),
        "fewer-than-it-says": (good[:-1], ends),
        "more-than-it-says": (good + b"x", "has more data than its header says"),
        "four-billion-pictures": (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 3, 2) + pixels, ends),
        "no-pictures": (struct.pack(">4B3I", 0, 0, 8, 3, 0, 3, 2), "holds no rows"),
        "compressed-and-cut-off": (packed[:-9], "is damaged and cannot be read"),
        "compressed-and-damaged": (packed[:15] + b"\xff\xff\xff" + packed[18:], "is damaged and cannot be read"),
        "compressed-with-a-wrong-checksum": (packed[:-8] + bytes(4) + packed[-4:], "is damaged and cannot be read"),
        "compressed-zeros-of-a-hundred-megabytes": (gzip.compress(good + bytes(10**8), 9, mtime=0), "has more data"),
    }


def _pictures() -> Cases:
    from PIL import Image

    def saved(mode: str = "L", size: tuple[int, int] = (2, 3), form: str = "PNG") -> bytes:
        out = io.BytesIO()
        Image.new(mode, size, 7).save(out, form)
        return out.getvalue()

    good = saved()
    other, absent = "has pictures of", ""
    return {
        "good-png": (good, ""),
        "good-pgm": (b"P5\n2 3\n255\n" + bytes(6), ""),
        "good-palette": (saved("P"), ""),
        "good-colour": (saved("RGB"), ""),
        "good-jpeg": (saved(form="JPEG"), ""),
        "nothing-is-no-picture": (b"", absent),
        "another-file-is-no-picture": (b"GIF89a" + bytes(40), absent),
        "a-damaged-one-is-no-picture": (good[:-20], absent),
        "a-wrong-checksum-is-no-picture": (good[:29] + bytes(4) + good[33:], absent),
        "another-size": (saved(size=(3, 2)), other),
        "a-size-of-gigapixels": (png_of_size(good, 100_000, 100_000), "far larger than the task expects"),
        "sixteen-bits": (saved("I;16"), "has over 8 bits a pixel"),
        "too-large-a-file": (good + bytes(2**24), "has over 16777216 bytes"),
    }


def _labels() -> Cases:
    def of(count: int, labels: bytes) -> bytes:
        return struct.pack(">4BI", 0, 0, 8, 1, count) + labels

    return {
        "good": (of(2, b"\0\1"), ""),
        "good-of-unknown-classes": (of(2, b"\xff\1"), ""),
        "one-too-few": (of(1, b"\0"), "does not hold one label for each picture"),
        "fewer-than-it-says": (of(2, b"\0"), "ends before the entries"),
        "more-than-it-says": (of(2, b"\0\1\1"), "has more data than its header says"),
        "pictures-for-labels": (
            struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 2) + bytes(12),
            "has no file of labels beside it",
        ),
        "pictures-of-no-labels": (b"", "ends before the entries"),
    }


def _picture_arrays() -> Cases:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    label = _npy(np.array([0, 1]))

    def of(array: Any) -> bytes:
        return _zip({"picture.npy": _npy(array), "outcome.npy": label})

    good = of(pixels)
    kind = "is not uint8 of n x h x w"
    return {
        "good": (good, ""),
        "good-with-a-channel": (of(pixels[..., None]), ""),
        "of-floats": (of(pixels.astype(float)), kind),
        "of-two-dimensions": (of(pixels.reshape(2, 6)), kind),
        "of-another-size": (of(pixels.reshape(2, 2, 3)), "has pictures of 2 x 3"),
        "in-column-order": (of(np.asfortranarray(pixels)), "is not in row order"),
        "a-label-too-few": (of(np.zeros((3, 3, 2), np.uint8)), "has arrays of different lengths"),
    }


def _picture_table() -> Cases:
    rows = [bytes(range(6)), bytes(range(6, 12))]

    def of(cells: Any) -> bytes:
        table = pa.table({"picture": cells, "outcome": ["0", "1"]})
        return _written(lambda one, out: pa.parquet.write_table(one, out, store_schema=True), table)

    lists = [list(row) for row in rows]
    png_ = next(data for name, (data, _) in _pictures().items() if name == "good-png")
    return {
        "good": (of(pa.array(rows, pa.binary(6))), ""),
        "good-of-any-size": (of(pa.array(rows, pa.binary())), ""),
        "good-lists": (of(pa.array(lists, pa.list_(pa.uint8()))), ""),
        "good-nested-lists": (of(pa.array([[[1, 2], [3, 4], [5, 6]]] * 2)), ""),
        "good-encoded": (of(pa.array([png_, None], pa.binary())), ""),
        "good-structs": (of(pa.array([{"bytes": png_, "path": "x"}, None])), ""),
        "a-column-of-texts": (of(pa.array(["a", "b"])), "write its pictures as binary or lists of bytes"),
        "of-another-size": (of(pa.array([b"12345", rows[1]], pa.binary())), "has a picture of 5 bytes"),
        "of-another-fixed-size": (of(pa.array([b"12345", b"12345"], pa.binary(5))), "has a picture of 5 bytes"),
        "lists-of-different-sizes": (of(pa.array([[1], [1, 2]])), "has pictures of different sizes"),
        "lists-of-another-size": (of(pa.array([[1, 2], [1, 2]])), "has a picture of 2 bytes"),
        "pixels-beyond-255": (of(pa.array([[256] * 6] * 2)), "no whole numbers from 0 to 255"),
        "pixels-that-are-missing": (
            of(pa.array([[None] * 6] * 2, pa.list_(pa.int64()))),
            "no whole numbers from 0 to 255",
        ),
        "an-encoded-one-of-gigapixels": (
            of(pa.array([png_of_size(png_, 10**5, 10**5), None], pa.binary())),
            "far larger",
        ),
    }


def png_of_size(data: bytes, width: int, height: int) -> bytes:
    """A PNG that says it has another size, with a checksum that agrees."""
    header = b"IHDR" + struct.pack(">2I", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


CASES: dict[str, Cases] = {
    "csv": _csv(),
    "json-lines": _json_lines(),
    "parquet": _parquet(),
    "arrow": _arrow(),
    "npz": _npz(),
    "idx": _idx(),
    "idx-labels": _labels(),
    "picture-arrays": _picture_arrays(),
    "picture-table": _picture_table(),
    "picture": _pictures(),
}
