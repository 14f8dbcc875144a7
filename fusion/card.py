"""The model card: what a model is made from, what was left out and why, and who attests it.

    {"manifest": …, "left_out": [{"record", "origin", "reason"}, …],
     "attestation": {"node", "created", "digest", "signature"}}

The manifest is the model's own and under its digest. The rest is the word of the node that fused, which signs
`card_message`. This module knows no keys: `node` and `origin` are texts to it, checked for shape and length only.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from fusion.artifact import MAX_SUMMARIES, Model, canonical_json, checked_fields
from fusion.errors import ModelError

CARD_FIELDS = {"manifest": dict, "left_out": list, "attestation": dict}
LEFT_OUT_FIELDS = {"record": str, "origin": str, "reason": str}
ATTESTATION_FIELDS = {"node": str, "created": str, "digest": str, "signature": str}
LINE_CHARS = 100


def card(model: Model, left_out: Sequence[dict[str, str]], node: str, created: str) -> dict[str, Any]:
    """The card of `model`, not yet signed: its attestation.signature is empty.

    `left_out` names the summaries that were held but not used; `created` is a time in words (ISO 8601). ModelError for
    texts that no reader of the file would accept.
    """
    attestation = {"node": node, "created": created, "digest": model.digest.hex(), "signature": ""}
    content = {"manifest": model.manifest, "left_out": list(left_out), "attestation": attestation}
    return check_card(content, model)


def card_message(content: dict[str, Any]) -> bytes:
    """What the node signs: everything in the card but the signature."""
    attestation = {key: value for key, value in content["attestation"].items() if key != "signature"}
    return canonical_json(content | {"attestation": attestation})


def check_card(content: object, model: Model) -> dict[str, Any]:
    """`content` as the card of `model`; ModelError if it does not have its shape or speaks of another model."""
    checked = checked_fields(content, "the card", CARD_FIELDS)
    attestation = checked_fields(checked["attestation"], "the attestation", ATTESTATION_FIELDS)
    if len(checked["left_out"]) > MAX_SUMMARIES:
        raise ModelError("this model file lists more left-out summaries than there can be; ask for it again")
    for one in checked["left_out"]:
        checked_fields(one, "the list of what was left out", LEFT_OUT_FIELDS)
    if attestation["digest"] != model.digest.hex():
        raise ModelError("the content of this model file is not what its card attests; ask for it again")
    return checked


def key_prefix(raw: bytes) -> str:
    """The start of a key, where nobody has a name for it."""
    return f"key {raw.hex()[:16]}…"


def describe(content: dict[str, Any], name_of: Callable[[bytes], str] = key_prefix) -> str:
    """The card as a page of text: the task, who contributed at what privacy, how it was fused, how good it may be.

    `name_of` turns the 32-byte key of a contributor into what the reader calls it.
    """
    manifest = content["manifest"]
    sections = [
        ("task", _task_lines(manifest)),
        ("contributors", [_summary_line(one, name_of) for one in manifest["summaries"]]),
        ("left out", [f"{one['origin']}: {one['reason']}" for one in content["left_out"]] or ["nothing"]),
        ("method", _method_lines(manifest["method"])),
        ("quality", _quality_lines(manifest["quality"], manifest["method"]["summary"])),
        ("attested by", _attestation_lines(content["attestation"], manifest["software"])),
    ]
    return "\n".join(line for title, lines in sections for line in _section(title, lines))


def _section(title: str, lines: Sequence[str]) -> list[str]:
    indent = " " * 14
    wrapped = [
        textwrap.fill(line, LINE_CHARS, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
        for line in lines
    ]
    return [f"{title:<14}" + wrapped[0].removeprefix(indent), *wrapped[1:]]


def _task_lines(manifest: dict[str, Any]) -> list[str]:
    task = manifest["task"]
    label = task["label"]
    if "classes" in label:
        predicted = f"{label['column']}: " + ", ".join(one["name"] for one in label["classes"])
    else:
        predicted = f"{label['column']}, a number from {label['lower']:g} to {label['upper']:g}"
    return [f"{task['name']} ({manifest['task_id'][:16]}…)", f"predicts {predicted}"]


def _summary_line(summary: dict[str, Any], name_of: Callable[[bytes], str]) -> str:
    origin, record = name_of(bytes.fromhex(summary["origin"])), summary["record"][:16]
    if summary["epsilon"] is None:
        return f"{origin}: exact sums WITHOUT privacy, not for publication (record {record}…)"
    return f"{origin}: epsilon {summary['epsilon']:g}, delta {summary['delta']:g} (record {record}…)"


def _method_lines(method: dict[str, Any]) -> list[str]:
    shrinkage = "" if method["lambda"] is None else f" with lambda {method['lambda']:.3g}"
    lines = [
        f"{method['summary']}, {method['denoiser']} denoising, {method['head']} head{shrinkage} ({method['choice']})"
    ]
    if method["unseen_classes"]:
        lines.append("too few rows to tell from noise: " + ", ".join(method["unseen_classes"]))
    return lines


def _quality_lines(quality: dict[str, Any] | None, summary: str) -> list[str]:
    if quality is None and summary != "moments":
        return [f"no estimate: summaries of kind {summary} cannot score this model on rows that were left out"]
    if quality is None:
        return ["no estimate: it takes at least two summaries, of which each can be left out"]
    lines = []
    if quality["accuracy"] is not None:
        accuracy = f"{quality['accuracy']:.2f} ± {quality['accuracy_std']:.2f}"
        balanced = f"{quality['balanced_accuracy']:.2f} ± {quality['balanced_accuracy_std']:.2f}"
        lines.append(
            f"accuracy about {accuracy} on the rows of a partner that took no part; balanced over classes {balanced}"
        )
    lines.append(
        f"squared error {quality['relative_error']:.2f} ± {quality['relative_error_std']:.2f} of that of always "
        "predicting base rates"
    )
    return [*lines, quality["meaning"]]


def _attestation_lines(attestation: dict[str, str], software: str) -> list[str]:
    return [
        attestation["node"],
        f"{attestation['created']}, {software}",
        f"digest {attestation['digest']}",
    ]
