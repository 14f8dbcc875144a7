"""Summaries: one of each kind from a fixed noise-free release, and each way in which one may lie."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import zstandard

from fusion.summary import MAX_SUMMARY_BYTES, Summary, claim_of, limits_of, plan, step_for
from fusion.task import Task
from tests.door_mutators import compact
from tests.doors import SUMMARY_KINDS, summary_of, summary_parts, task_of
from tests.vector_cases import Cases


def _good(task: Task) -> bytes:
    """A summary as a release would have it, its sums counted up from -3."""
    planned = plan(task, 1.0)
    blocks = {one.name: np.arange(-3, one.entries - 3, dtype=np.int64) for one in planned.sent}
    steps = {one.name: step_for(one, planned.sigmas[one.name]) for one in planned.sent}
    sigmas = {one.name: planned.sigmas[one.name] for one in planned.sent}
    claim = claim_of(planned, 1)
    return Summary(task.id, planned.kind, claim, blocks, steps, sigmas, limits_of(planned.layout)).to_bytes()


def _cases() -> Cases:
    goods = {kind: _good(task_of(kind)) for kind in SUMMARY_KINDS} | {"regression": _good(task_of(regression=True))}
    cases: Cases = {f"good-{name}": (data, "") for name, data in goods.items()}
    good = goods["moments"]
    header, planes = summary_parts(good)
    return cases | _forms(good, header, planes) | _claims(header, planes) | _bodies(header, planes)


def _forms(good: bytes, header: Any, planes: bytes) -> Cases:
    not_one, cut, form = "not a summary of this version", "cut off or too long", "canonical"
    raw = compact(header)
    start = len(b"tidings-summary-1\n")
    spaced = json.dumps(header, sort_keys=True).encode()
    return {
        "nothing": (b"", not_one),
        "another-version": (good.replace(b"summary-1", b"summary-2", 1), not_one),
        "too-large": (good.ljust(MAX_SUMMARY_BYTES + 1, b"\0"), not_one),
        "a-header-cut-off": (good[: start + 4 + 20], cut),
        "a-header-too-long": (good[:start] + (4_097).to_bytes(4, "big") + bytes(5_000), cut),
        "a-header-of-four-gigabytes": (good[:start] + b"\xff" * 4 + good[start + 4 :], cut),
        "a-header-that-is-no-json": (summary_of(b"{", planes), "not canonical JSON"),
        "a-header-beyond-ascii": (summary_of(b'{"\xff":1}', planes), "not canonical JSON"),
        "a-header-nested-deeply": (summary_of(b"[" * 4_000, planes), "not canonical JSON"),
        "a-header-with-nan": (summary_of(raw.replace(b"1.0", b"NaN"), planes), "not canonical JSON"),
        "a-header-with-spaces": (summary_of(spaced, planes), form),
        "a-header-that-is-a-list": (summary_of(b"[]", planes), form),
        "a-header-with-more": (summary_of(header | {"more": 1}, planes), form),
        "a-header-with-a-field-twice": (summary_of(raw[:-1] + b',"task":"x"}', planes), form),
        "another-task": (summary_of(header | {"task": "00" * 32}, planes), "belongs to another task"),
        "another-kind": (summary_of(header | {"kind": "histograms"}, planes), "belongs to another task"),
    }


def _claims(header: Any, planes: bytes) -> Cases:
    def claiming(**changes: Any) -> bytes:
        return summary_of(header | {"claim": header["claim"] | changes}, planes)

    not_that = "is not that of its task and mechanism"
    dropped = {key: value for key, value in header["claim"].items() if key != "unit"}
    blocks = header["blocks"]
    noise = "is not what its epsilon calls for"

    def block(sigma: Any, step: Any) -> bytes:
        return summary_of(header | {"blocks": [[sigma, step], *blocks[1:]]}, planes)

    return {
        "no-claim": (summary_of(header | {"claim": None}, planes), "claim of the summary is incomplete"),
        "a-claim-without-a-unit": (summary_of(header | {"claim": dropped}, planes), "is incomplete"),
        "a-whole-epsilon": (claiming(epsilon=1), "is incomplete"),
        "an-epsilon-of-a-million": (claiming(epsilon=1e6), "claims an epsilon that its task does not allow"),
        "an-epsilon-of-nothing": (claiming(epsilon=0.0), "claims an epsilon that its task does not allow"),
        "a-tiny-epsilon": (claiming(epsilon=1e-9), "claims an epsilon that its task does not allow"),
        "another-delta": (claiming(delta=1e-7), not_that),
        "another-mechanism": (claiming(mechanism="none"), not_that),
        "another-sensitivity": (claiming(sensitivity=0.001), not_that),
        "another-adjacency": (claiming(adjacency="replace-one"), not_that),
        "another-unit": (claiming(unit="person:x"), not_that),
        "ledger-position-0": (claiming(ledger_position=0), "ledger position that cannot be"),
        "a-ledger-position-beyond-2-53": (claiming(ledger_position=2**53 + 1), "ledger position that cannot be"),
        "no-blocks": (summary_of(header | {"blocks": []}, planes), "other blocks than its task"),
        "a-block-too-many": (summary_of(header | {"blocks": [*blocks, [1, 1]]}, planes), "other blocks than its task"),
        "a-block-of-three": (summary_of(header | {"blocks": [[1, 2, 3], *blocks[1:]]}, planes), "is malformed"),
        "a-block-of-halves": (block(1.5, 1), "is malformed"),
        "less-noise": (block(blocks[0][0] // 2, blocks[0][1]), noise),
        "more-noise": (block(blocks[0][0] * 2, blocks[0][1] * 2), noise),
        "another-step": (block(blocks[0][0], 1), noise),
        "a-step-of-zero": (block(blocks[0][0], 0), noise),
    }


def _bodies(header: Any, planes: bytes) -> Cases:
    damaged = "body of the summary is damaged"
    raw = compact(header)
    start = b"tidings-summary-1\n" + len(raw).to_bytes(4, "big") + raw
    frame = zstandard.ZstdCompressor(level=1).compress(planes)
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(planes)
    return {
        "no-body": (start, damaged),
        "a-body-cut-off": (start + frame[:-1], damaged),
        "a-body-with-more-behind-it": (start + frame + b"x", damaged),
        "two-bodies": (start + frame * 2, damaged),
        "a-body-without-its-size": (start + unsized, damaged),
        "a-body-a-byte-short": (summary_of(header, planes[:-1]), damaged),
        "a-body-a-byte-long": (summary_of(header, planes + b"\0"), damaged),
        "a-body-that-unpacks-to-a-gigabyte": (start + _bomb(), damaged),
        "a-body-that-lies-about-its-size": (start + _lying(len(planes)), damaged),
        "sums-that-no-release-can-reach": (
            summary_of(header, b"\xff" * len(planes)),
            "a sum that no release can reach",
        ),
    }


def _bomb() -> bytes:
    out = zstandard.ZstdCompressor(level=3).compressobj(size=2**30)
    return b"".join(out.compress(bytes(2**20)) for _ in range(2**10)) + out.flush()


def _lying(size: int) -> bytes:
    """A frame that states `size`, and holds a hundred megabytes of zeros: its blocks say so (RFC 8878, 3.1.1)."""
    header = b"\x28\xb5\x2f\xfd" + b"\xa0" + size.to_bytes(4, "little")
    block = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"  # RLE of 128 KiB
    return header + block * 800 + (1).to_bytes(3, "little")


CASES: dict[str, Cases] = {"summary": _cases()}
