"""The commands about the signed list of members. Thin like `node.cli`, which they are part of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node import show
from node.cli_options import Commands, Json, look_at_home, open_home

if TYPE_CHECKING:
    from node.home import Home
    from node.membership import Changed
    from node.roster_propose import Proposal

app = typer.Typer(
    cls=Commands,
    help="A signed list of members, kept by administrators.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The roster file to write.")]
Members = Annotated[
    list[str] | None, typer.Option("--add", "--member", metavar="KEY=NAME", help="A member; may be given many times.")
]
QueryOnly = Annotated[
    list[str] | None, typer.Option("--query-only", metavar="KEY=NAME", help="A member that may only ask for models.")
]
Addresses = Annotated[
    list[str] | None,
    typer.Option("--address", metavar="NAME=HOST:PORT", help="Where a member is reached; several are tried in turn."),
]
Threshold = Annotated[
    int | None, typer.Option("--threshold", metavar="K", min=1, help="How many administrators must sign.")
]
Who = Annotated[str, typer.Argument(metavar="KEY|NAME", help="A key, or a name in the roster or here.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")]


@app.command("create")
def roster_create(
    context: typer.Context,
    name: Annotated[str, typer.Option("--name", metavar="N", help="What to call the coalition.")],
    output: Output,
    admin: Annotated[
        list[str] | None,
        typer.Option("--admin", metavar="KEY|NAME", help="An administrator; without any, this node alone."),
    ] = None,
    threshold: Threshold = None,
    member: Members = None,
    query_only: QueryOnly = None,
    address: Addresses = None,
) -> None:
    """Write version 1 of a roster, to be signed. Without --member its members are this node and its peers."""
    from node.roster_propose import Changes, create
    from node.roster_wire import write_file

    changes = Changes(
        add=member or (), query_only=query_only or (), addresses=address or (), add_admins=admin or (),
        threshold=threshold,
    )  # fmt: skip
    home = look_at_home(context)
    write_file(_new(output), create(home, name, changes))
    _tell_file(home, output)


@app.command("propose")
def roster_propose(
    context: typer.Context,
    output: Output,
    add: Members = None,
    query_only: QueryOnly = None,
    address: Addresses = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="KEY|NAME", help="Who is no member any more.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option("--rename", metavar="OLD=NEW", help="What to call a member.")
    ] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option("--replace", metavar="KEY|NAME=KEY", help="The same member or administrator under a new key."),
    ] = None,
    add_admin: Annotated[
        list[str] | None, typer.Option("--add-admin", metavar="KEY|NAME", help="One administrator more.")
    ] = None,
    remove_admin: Annotated[
        list[str] | None, typer.Option("--remove-admin", metavar="KEY|NAME", help="One administrator less.")
    ] = None,
    threshold: Threshold = None,
) -> None:
    """Write the version after the one in force here, to be signed by administrators of both."""
    from node.roster_propose import Changes, propose
    from node.roster_wire import write_file

    changes = Changes(
        add or (), query_only or (), address or (), remove or (), rename or (), replace or (), add_admin or (),
        remove_admin or (), threshold,
    )  # fmt: skip
    home = look_at_home(context)
    write_file(_new(output), propose(home, changes))
    _tell_file(home, output)


@app.command("sign")
def roster_sign(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A roster file; the signature is added to it.")],
    yes: Yes = False,
    again: Annotated[
        bool, typer.Option("--again", help="Although this node has signed another version with this number.")
    ] = False,
) -> None:
    """Show what a roster file changes, and sign it with this node's key."""
    from node.roster_propose import check_signing, look_at, sign

    home = open_home(context)
    proposal = look_at(home, file)
    check_signing(home, proposal, again=again)
    _tell_proposal(home, file, proposal)
    _confirm("Sign it?", yes)
    signed = sign(home, file, proposal)
    show.line(f"Signed. {_outlook(file, signed.missing)}")


@app.command("follow")
def roster_follow(
    context: typer.Context,
    reference: Annotated[
        list[str],
        typer.Argument(metavar="FILE|COALITION...", help="A roster file, copies of it, or a coalition by its id."),
    ],
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Members that were added by hand are the roster's from now on.")
    ] = False,
    json: Json = False,
) -> None:
    """Follow a roster: this node adds and removes members as it says. Also takes a newer version of it from a file."""
    from node.roster_follow import follow, publish_at_once
    from node.roster_sources import versions_of

    home = open_home(context)
    is_first = home.store.followed_roster() is None
    changed = follow(home, versions_of(home, reference), adopt=adopt)
    publish_at_once(home)
    _tell_change(home, changed, json, is_first=is_first)


@app.command("unfollow")
def roster_unfollow(
    context: typer.Context,
    keep: Annotated[bool, typer.Option("--keep", help="Its members stay, as if they were added by hand.")] = False,
) -> None:
    """Leave the roster. Members whom it brought are removed."""
    from node.roster_follow import unfollow
    from node.roster_watch import words

    show.line(f"This node follows no roster now: {words(unfollow(open_home(context), keep=keep))}.")


@app.command("choose")
def roster_choose(
    context: typer.Context,
    version: Annotated[str, typer.Argument(metavar="HASH", help="The beginning of the hash of a disputed version.")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """In a dispute, go on with one version: the word of this node's operator, for this node alone."""
    from node.roster_follow import choose
    from node.roster_sources import disputed

    home = open_home(context)
    chosen = disputed(home, version)
    show.note(f"Whatever else counts as version {chosen.roster.version} is ignored here from now on.")
    _confirm(f"Go on with {chosen.hash.hex()[:12]}?", yes)
    _tell_change(home, choose(home, chosen.hash), json)


@app.command("deny")
def roster_deny(context: typer.Context, who: Who) -> None:
    """Keep a key out, whatever the roster says."""
    from node.roster_follow import deny
    from node.roster_sources import named_key

    home = open_home(context)
    key, name = named_key(home, who)
    deny(home, key, name)
    show.line(f"{name} stays out whatever the roster says. `tidings roster allow` takes that back.")


@app.command("allow")
def roster_allow(context: typer.Context, who: Who) -> None:
    """Take a key off the list of those that are denied: the roster brings it in if it is a member."""
    from node.roster_follow import allow
    from node.roster_sources import named_key
    from node.roster_watch import words

    home = open_home(context)
    key, name = named_key(home, who)
    show.line(f"{name} is denied no longer: {words(allow(home, key))}.")


@app.command("status")
def roster_status(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A roster file, instead of what is followed.")
    ] = None,
    json: Json = False,
) -> None:
    """What is in force, who signed it, who is held back and why, and what is disputed."""
    from node.roster_propose import look_at
    from node.roster_status import file_status, status

    home = look_at_home(context)
    if file is not None:
        show.as_json(file_status(home, look_at(home, file))) if json else _tell_file(home, file)
        return
    state = status(home)
    if json:
        show.as_json(state)
        return
    _tell_followed(state["followed"])
    for one in state["denied"]:
        show.line(f"denied: {one['name']}  {one['key']}, since {one['since']} UTC ({one['reason']})")
    for one in state["carried"]:
        show.line(f"not followed: {one['name']}, version {one['version']}, from {', '.join(one['from'])}")
        show.line(f"  tidings roster follow {one['coalition']}")


# ---------------------------------------------------------------------------------------------------------------- words


def _new(path: Path) -> Path:
    from node.errors import UsageError

    if path.exists():
        raise UsageError(f"{path} exists already, and signatures in it would be lost; choose another -o FILE.")
    return path


def _confirm(question: str, yes: bool) -> None:
    from node.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask at; look at it with `tidings roster status`, then say --yes.")
    typer.confirm(question, abort=True, err=True)


def _tell_file(home: Home, path: Path) -> None:
    from node.roster_propose import look_at

    _tell_proposal(home, path, look_at(home, path))


def _tell_proposal(home: Home, path: Path, proposal: Proposal) -> None:
    """What was read from a file, and nothing that is in it by now."""
    from node.roster_status import file_status

    state = file_status(home, proposal)
    show.line(f"{path}: {state['name']}, version {state['version']}")
    _tell_coalition(state["coalition"])
    for line in state["changes"]:
        show.line(f"  {line}")
    show.line(f"signed by: {', '.join(state['signed_by']) or 'nobody yet'}. {_outlook(path, proposal.missing)}")


def _outlook(path: Path, missing: list[str]) -> str:
    if missing:
        return f"Still needed: {'; '.join(missing)}."
    return f"It is complete: tidings roster follow {path}"


def _tell_coalition(coalition: str) -> None:
    groups = " ".join(coalition[at : at + 8] for at in range(0, len(coalition), 8))
    show.line(f"coalition {groups}")


def _tell_change(home: Home, changed: Changed, json: bool, *, is_first: bool = False) -> None:
    from node.errors import RosterError
    from node.local_tables import OPERATOR
    from node.roster_status import status
    from node.roster_watch import words

    state: dict[str, Any] = status(home)["followed"]
    if json:
        show.as_json(state)
    else:
        show.line(f"This node follows {state['name']}, version {state['version']}: {words(changed)}.")
        _tell_coalition(state["coalition"])
        if is_first:
            show.line("Compare the coalition's id with other members, over a line that you trust: it must be the same.")
        by_hand = [one["name"] for one in state["members"] if one["via"] == OPERATOR]
        if by_hand:
            show.line(f"Added by hand, and staying whatever the roster says: {', '.join(by_hand)} (see --adopt).")
        if not state["is_member"]:
            show.line("This node is no member of it itself.")
    if state["frozen"]:
        raise RosterError(f"{state['frozen']}; `tidings roster status` shows them, `tidings roster choose` goes on.")


def _tell_followed(state: dict[str, Any] | None) -> None:
    if state is None:
        show.line("This node follows no roster; its members are those that `tidings peer add` added.")
        return
    show.line(f"{state['name']}, version {state['version']}, followed since {state['since']} UTC")
    _tell_coalition(state["coalition"])
    show.line(f"signed by: {', '.join(state['signed_by'])}")
    for one in state["administrators"]:
        show.line(f"administrator {one['name']}  {one['key']}")
    show.line(f"{state['threshold']} of {len(state['administrators'])} administrators must sign")
    rows = [[one["name"], one["state"], one["reason"]] for one in state["members"]]
    for line in show.told(["member", "here", "why"], rows, empty=""):
        show.line(line)
    if not state["is_member"]:
        show.line("This node is no member of it itself.")
    for line in state["waiting"]:
        show.line(f"WAITING  {line}")
    if state["frozen"]:
        show.line(f"FROZEN   {state['frozen']}")
        for one in state["rivals"]:
            show.line(f"  {one['hash'][:12]}, signed by {', '.join(one['signed_by'])}")
        show.line("  Ask the administrators which is meant, then: tidings roster choose HASH")
