"""Learning tasks on this node: created from a file, proposed by a peer, accepted by a person.

A task that arrives by gossip is a proposal and does nothing until it is accepted. What is accepted is the task's
canonical content, under its hash, so that two nodes that accepted the same id agree on every bound and constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crypto.keys import PublicKey
from node.errors import NotReadable, UsageError
from node.files import read_at_most
from node.home import Home
from node.records import Kind

if TYPE_CHECKING:
    from fusion.task import Task

MIN_ID_PREFIX = 6
MAX_TASK_FILE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Proposal:
    """A task that a member put into the coalition, readable here."""

    task: Task
    proposed_by: PublicKey


def add(home: Home, reference: str, backbone: Path | None = None) -> tuple[Task, bool]:
    """Accept the task in a file, or one proposed by a peer (by name or id); returns it and whether it was proposed on
    to the others by this call.

    A file's task becomes a sealed TASK record unless one is held already. `backbone`, or the file that a task file
    names, is checked and copied into the home first. TaskError, BackboneError and UsageError change nothing.
    """
    path = Path(reference)
    if path.is_file():
        task = read_file(path)
        _keep_backbone(home, task, backbone or _named_backbone(path))
        _accept(home, task)
        known = {proposal.task.id for proposal in proposals(home)}
        if task.id in known:
            return task, False
        home.author.sealed(Kind.TASK, task.id, task.canonical(), home.epochs.live())
        return task, True
    matching = {p.task.id: p.task for p in proposals(home) if _means(reference, p.task.id.hex(), p.task.name)}
    if not matching:
        raise UsageError(
            f"{reference!r} is neither a task file nor a task proposed by a peer; `tidings task list` shows proposals."
        )
    task = _the_one(reference, list(matching.values()))
    _keep_backbone(home, task, backbone)
    _accept(home, task)
    return task, False


def missing_backbone(task: Task) -> str | None:
    """What to get, in words, where the task's encoder runs a backbone that is not on this machine."""
    from fusion import backbones
    from fusion.task import OnnxEncoder

    if not isinstance(task.encoder, OnnxEncoder) or backbones.find(task.encoder):
        return None
    return backbones.missing(task.encoder)


def _named_backbone(path: Path) -> Path | None:
    """The file that a task file names for its backbone, beside itself."""
    from fusion.task_checks import backbone_file

    name = backbone_file(_text_of(path))
    return None if name is None else path.parent / name


def _keep_backbone(home: Home, task: Task, file: Path | None) -> None:
    from fusion import backbones
    from fusion.task import OnnxEncoder

    if file is None:
        return
    if not isinstance(task.encoder, OnnxEncoder):
        raise UsageError(f"The encoder of {task.name} is {task.encoder.kind}, which takes no backbone; leave it out.")
    backbones.install(file, task.encoder, task.encoder.input_shape(task.columns), home.backbones)


def read_file(path: Path) -> Task:
    """The task in a TOML file; TaskError names the line and the field."""
    from fusion.task import Task

    return Task.from_toml(_text_of(path), str(path), path.parent)


def _text_of(path: Path) -> str:
    data = read_at_most(path, MAX_TASK_FILE_BYTES)
    if data is None:
        raise UsageError(f"{path} is larger than {MAX_TASK_FILE_BYTES} bytes; a task file is a page or two of text.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text; save the task file as UTF-8.") from error


def find(home: Home, reference: str) -> Task:
    """The accepted task that a person means by a name or the beginning of an id; UsageError otherwise."""
    from fusion.task import Task

    accepted = [task for task in home.store.tasks() if _means(reference, task.task_id.hex(), task.name)]
    if not accepted:
        raise UsageError(
            f"There is no accepted task {reference!r} here; `tidings task list` shows the tasks, "
            "`tidings task add` accepts one."
        )
    return _the_one(reference, [Task.from_canonical(task.canonical) for task in accepted])


def find_any(home: Home, reference: str) -> Task:
    """The task that a person means, accepted or only proposed; UsageError otherwise."""
    proposed = {p.task.id: p.task for p in proposals(home) if _means(reference, p.task.id.hex(), p.task.name)}
    is_accepted = any(_means(reference, task.task_id.hex(), task.name) for task in home.store.tasks())
    if is_accepted or not proposed:
        return find(home, reference)
    return _the_one(reference, list(proposed.values()))


def listing(home: Home) -> list[dict[str, Any]]:
    """Every task known here: `{id, name, state, proposed_by, kind, summary}`."""
    from fusion.task import Task

    accepted = {task.task_id: Task.from_canonical(task.canonical) for task in home.store.tasks()}
    by: dict[bytes, str] = {}
    known = dict(accepted)
    for proposal in proposals(home):
        by.setdefault(proposal.task.id, home.peers.name_of(proposal.proposed_by))
        known.setdefault(proposal.task.id, proposal.task)
    return [
        {
            "id": task_id.hex(),
            "name": task.name,
            "state": "accepted" if task_id in accepted else "proposed",
            "proposed_by": by.get(task_id),
            "kind": task.kind,
            "summary": task.summary,
        }
        for task_id, task in known.items()
    ]


def describe(task: Task) -> str:
    """A task as a page of text."""
    from fusion.task import CategoryColumn, ImageColumn, NumberColumn, OnnxEncoder, dimension

    if task.kind == "regression":
        target = f"a number from {task.label.lower:g} to {task.label.upper:g}"
    else:
        target = ", ".join(f"{one.name} ({' '.join(one.values)})" for one in task.label.classes)
    lines = [
        f"{task.name}  {task.id.hex()}",
        f"predicts  {task.label.column}: {target}",
        f"summary   {task.summary}, {dimension(task)} features",
        f"privacy   at most epsilon {task.privacy.max_epsilon:g} a release, delta {task.privacy.delta:g}, "
        f"unit: {_unit(task)}",
        *_model_lines(task),
        f"columns   {len(task.columns)}; a column of the data that is not listed is ignored",
    ]
    if isinstance(task.encoder, OnnxEncoder):
        lines.insert(2, f"backbone  an ONNX file of {task.encoder.bytes:,} bytes, SHA-256 {task.encoder.sha256}")
    for column in task.columns:
        if isinstance(column, NumberColumn):
            bins = f", {column.bins} bins" if column.bins else ""
            lines.append(f"  {column.name:20} number from {column.lower:g} to {column.upper:g}{bins}")
        elif isinstance(column, CategoryColumn):
            lines.append(f"  {column.name:20} one of {' '.join(column.values[:20])}")
        elif isinstance(column, ImageColumn):
            lines.append(f"  {column.name:20} picture, {column.height} x {column.width} x {column.channels}")
        else:
            lines.append(f"  {column.name:20} text")
    return "\n".join(lines)


def _model_lines(task: Task) -> list[str]:
    """How the small head of kind `model` is shaped and trained."""
    if task.model is None:
        return []
    shown = task.model
    head = f"one hidden layer of {shown.hidden[0]}" if shown.hidden else "linear"
    teacher = "" if shown.teacher_hidden is None else f", distilled from a teacher of {list(shown.teacher_hidden)}"
    start = f"the weights of model {shown.initial_model[:12]}" if shown.initial else f"seed {shown.seed}"
    return [f"model     {head}{teacher}; {shown.steps} steps at rate {shown.learning_rate:g}, clip norm "
            f"{shown.clip_norm:g}, from {start}"]  # fmt: skip


def _unit(task: Task) -> str:
    person = task.privacy.person
    if person is None:
        return "one row"
    return f"one person, by column {person.column}, of whom at most {person.max_rows} rows are taken"


def proposals(home: Home) -> Iterator[Proposal]:
    """Every readable task record, own ones included. A record whose content is not the task it names is skipped."""
    from fusion.errors import TaskError
    from fusion.task import Task

    for held in home.store.held(kind=Kind.TASK):
        try:
            task = Task.from_canonical(home.epochs.open(held))
        except (NotReadable, TaskError):
            continue
        if task.id == held.record.header.task_id:
            yield Proposal(task, held.record.header.origin)


def _accept(home: Home, task: Task) -> None:
    home.store.accept_task(task.id, task.name, task.canonical())


def _means(reference: str, task_id: str, name: str) -> bool:
    is_prefix = len(reference) >= MIN_ID_PREFIX and task_id.startswith(reference.lower())
    return reference == name or is_prefix


def _the_one(reference: str, tasks: list[Task]) -> Task:
    if len(tasks) > 1:
        raise UsageError(f"{reference!r} means {len(tasks)} tasks; give more of the id: `tidings task list`.")
    return tasks[0]
