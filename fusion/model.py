"""From summaries to a model: sum, denoise, choose, fit, describe.

The same set of summaries gives the same bytes, whatever their order: they are sorted by record id, added as integers,
and everything after that runs on one thread with seeds taken from the record ids. On other processors the last bits of
linear algebra differ, and with them the digest: it is comparable on one platform and release.

This module is the front door to models; files, cards and scoring live in modules of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from fusion.artifact import FORMAT, Model, to_tensors
from fusion.card import card, card_message, describe
from fusion.errors import ModelError
from fusion.fitting import rounded
from fusion.fuse import Contribution, Fused, fuse
from fusion.model_files import MAX_MODEL_BYTES, read_model, write_onnx, write_safetensors
from fusion.profiles import ENDS
from fusion.scoring import Predictions, evaluate, predict
from fusion.selection import Quality
from fusion.summaries import kind_of
from fusion.sums import FULL_WEIGHT
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.robust import Screened

__all__ = [
    "MAX_MODEL_BYTES",
    "Model",
    "Predictions",
    "build_model",
    "card",
    "card_message",
    "describe",
    "evaluate",
    "predict",
    "read_model",
    "rebuild",
    "records_of",
    "write_onnx",
    "write_safetensors",
]

SOFTWARE = "tidings 0.1.0"

_SEED_PERSON = b"tidings-seed-v1"


def build_model(task: Task, contributions: Iterable[Contribution], head: str | None = None, liars: int = 0) -> Model:
    """The model of `task` fused from these summaries, with `head` or the one that does best on left-out summaries,
    withstanding so many `liars` as `fusion.robust` can.

    The caller passes at most one live summary per origin and part of its data. Implausible ones are left out and
    named in `quarantined`. NothingToFuse when none is left; ModelError for a head that the task cannot have.
    """
    kind = kind_of(task)
    check_head(task, head)
    with threadpool_limits(limits=1):
        fused = fuse(task, contributions, liars)
        seed = seed_of(fused)
        fitted = kind.fit(fused, head, seed)
    method = {"summary": task.summary, **fitted.method, "asked": head, "seed": seed.hex()}
    if fused.screened is not None:
        method["robust"] = _robust_entry(task, fused.screened)
    left_out = () if fused.screened is None else fused.screened.left_out
    unused = (*fused.quarantined, *left_out)
    return Model(_manifest(fused, method, fitted.quality), to_tensors(fitted.layers), unused)


def check_head(task: Task, head: str | None) -> None:
    """ModelError for a head that a model of the task cannot have."""
    known = kind_of(task).heads(task)
    if head is not None and head not in known:
        raise ModelError(f'there is no head "{head}" for this task; choose one of: {", ".join(known)}')


def rebuild(task: Task, contributions: Iterable[Contribution], model: Model) -> Model:
    """The model that these summaries give when asked as `model` was; equal digests confirm it."""
    method = model.manifest["method"]
    return build_model(task, contributions, method["asked"], method["robust"]["liars"] if "robust" in method else 0)


def records_of(model: Model) -> set[bytes]:
    """The ids of the summaries that `rebuild` takes: those used, and those that the robust option left out."""
    left_out = model.manifest["method"].get("robust", {}).get("left_out", [])
    return {bytes.fromhex(one["record"]) for one in (*model.manifest["summaries"], *left_out)}


def seed_of(fused: Fused) -> bytes:
    """32 bytes from the set of record ids."""
    hasher = hashlib.blake2b(digest_size=32, person=_SEED_PERSON)
    for one in fused.used:
        hasher.update(one.record_id)
    return hasher.digest()


def _manifest(fused: Fused, method: dict[str, Any], quality: Quality | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "software": SOFTWARE,
        "task": json.loads(fused.task.canonical()),
        "task_id": fused.task.id.hex(),
        "summaries": [_summary_entry(one) for one in fused.used],
        "method": method,
        "quality": None if quality is None else _quality_entry(quality),
    }


def _summary_entry(contribution: Contribution) -> dict[str, Any]:
    claim = contribution.summary.claim
    return {
        "record": contribution.record_id.hex(),
        "origin": contribution.origin.hex(),
        "epsilon": claim.epsilon if math.isfinite(claim.epsilon) else None,
        "delta": claim.delta,
        "mechanism": claim.mechanism,
    }


def _robust_entry(task: Task, screened: Screened) -> dict[str, Any]:
    """What `fusion.robust` did; the weight of a partner, where it is not 1, stands once for each of its summaries."""
    names = task.class_names or ENDS
    return {
        "liars": screened.liars,
        "most_rows": rounded(screened.most_rows),
        "left_out": [
            {"record": one.record_id.hex(), "origin": one.origin.hex(), "reason": reason}
            for one, reason in screened.left_out
        ],
        "weights": [
            {"record": one.record_id.hex(), "weight": one.weight / FULL_WEIGHT}
            for one in screened.kept
            if one.weight < FULL_WEIGHT
        ],
        "unjudged": [names[c] for c in screened.unjudged],
    }


def _quality_entry(quality: Quality) -> dict[str, Any]:
    numbers = {name: None if value is None else rounded(value) for name, value in asdict(quality).items()}
    return numbers | {
        "groups": quality.groups,
        "meaning": (
            f"estimated from the noisy sums alone, for the rows of partners left out of the fit, in {quality.groups} "
            "groups; accuracies suppose scores with the tails of a t-distribution; ± is what privacy noise and the "
            "number of rows leave open"
        ),
    }
