"""The model card: what a model is made from, what was left out and why, and who attests it.

    {"manifest": …, "left_out": [{"record", "origin", "reason"}, …],
     "attestation": {"node", "created", "digest", "signature"}}

The manifest is the model's own and under its digest. The rest is the word of the node that fused, which signs
`card_message`. This module knows no keys: `node` and `origin` are texts to it, checked for shape and length only.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fusion.artifact import LEFT_OUT_FIELDS, MAX_SUMMARIES, Model, canonical_json, checked_fields
from fusion.errors import ModelError

CARD_FIELDS = {"manifest": dict, "left_out": list, "attestation": dict}
ATTESTATION_FIELDS = {"node": str, "created": str, "digest": str, "signature": str}
LINE_CHARS = 100
MAX_LISTED = 12  # summaries with a line each; more are told together


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
        ("contributors", _contributor_lines(manifest["summaries"], name_of)),
        ("left out", _left_out_lines(content["left_out"])),
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
    lines = [f"{task['name']} ({manifest['task_id'][:16]}…)", f"predicts {predicted}"]
    if task["encoder"]["kind"] == "onnx":
        lines.append(f"runs on the output of the backbone with SHA-256 {task['encoder']['sha256']}")
    if task["encoder"]["kind"] == "text":
        lines.append(f"runs on sentence vectors of all-MiniLM-L6-v2, weights SHA-256 {task['encoder']['weights']}")
    return lines


def _contributor_lines(summaries: Sequence[dict[str, Any]], name_of: Callable[[bytes], str]) -> list[str]:
    """A line for each summary; of many, how many at what privacy, and the partners in one list."""
    if len(summaries) <= MAX_LISTED:
        return [_summary_line(one, name_of) for one in summaries]
    privacy = Counter(_privacy(one) for one in summaries)
    partners = sorted({name_of(bytes.fromhex(one["origin"])) for one in summaries})
    lines = [f"{len(summaries)} summaries of {len(partners)} partners (--json has their records)"]
    lines += [f"{count} at {claim}" for claim, count in sorted(privacy.items())]
    return [*lines, ", ".join(partners)]


def _summary_line(summary: dict[str, Any], name_of: Callable[[bytes], str]) -> str:
    return f"{name_of(bytes.fromhex(summary['origin']))}: {_privacy(summary)} (record {summary['record'][:16]}…)"


def _privacy(summary: dict[str, Any]) -> str:
    if summary["epsilon"] is None:
        return "exact sums WITHOUT privacy, not for publication"
    return f"epsilon {summary['epsilon']:g}, delta {summary['delta']:g}"


def _left_out_lines(left_out: Sequence[dict[str, str]]) -> list[str]:
    """A line for each summary, or for each reason where one holds for many."""
    if len(left_out) <= MAX_LISTED:
        return [f"{one['origin']}: {one['reason']}" for one in left_out] or ["nothing"]
    origins: dict[str, list[str]] = {}
    for one in left_out:
        origins.setdefault(one["reason"], []).append(one["origin"])
    return [f"{reason}: {', '.join(sorted(names))}" for reason, names in origins.items()]


def _method_lines(method: dict[str, Any]) -> list[str]:
    shrinkage = "" if method["lambda"] is None else f" with lambda {method['lambda']:.3g}"
    if method["summary"] == "model":  # trained, not solved for: nothing is denoised, and there is no lambda
        lines = [f"{method['summary']}, {method['head']} head ({method['choice']})"]
    else:
        what = f"{method['summary']}, {method['denoiser']} denoising, {method['head']} head{shrinkage}"
        lines = [f"{what} ({method['choice']})"]
    if "robust" in method:
        lines.append(_robust_line(method["robust"]))
    if method["unseen_classes"]:
        lines.append("too few rows to tell from noise: " + ", ".join(method["unseen_classes"]))
    return lines


def _robust_line(robust: dict[str, Any]) -> str:
    """What the option did; who was left out stands with the reason under another heading."""
    count = len(robust["left_out"])
    line = (
        f"withstands {robust['liars']} lying partner{'s' if robust['liars'] > 1 else ''}: {count or 'no'} "
        f"{'summary stands' if count == 1 else 'summaries stand'} out, and no partner counts for more than "
        f"{robust['most_rows']:,.0f} rows"
    )
    if robust["weights"]:
        line += f" ({len(robust['weights'])} made lighter)"
    if robust["unjudged"]:
        line += f"; too few partners hold {', '.join(robust['unjudged'])} to judge them there"
    return line


def _quality_lines(quality: dict[str, Any] | None, summary: str) -> list[str]:
    if quality is None and summary == "model":
        return ["no estimate: summaries of this kind hold no second moments that a left-out partner could be scored on"]
    if quality is None:
        return [
            "no estimate: it takes at least two summaries, of which each can be left out, and a model that sums like "
            "theirs can score (linear, from moments)"
        ]
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
