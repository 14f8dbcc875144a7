"""The commands about a node's own keys. Thin like `node.cli`, which they are part of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node import show
from node.cli_options import Json, look_at_home, open_home

app = typer.Typer(
    help="The keys of this node: look, rotate, set a passphrase.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("show")
def keys_show(context: typer.Context, json: Json = False) -> None:
    """Which keys there are, since when, and who can read what this node publishes. Needs no passphrase."""
    from node.keys import show as describe

    found = describe(look_at_home(context))
    if json:
        show.as_json(found)
        return
    show.line(found["identity"])
    show.line(f"passphrase: {'yes' if found['protected'] else 'none; `tidings keys passphrase` sets one'}")
    rows = [[one["id"], one["since"] or "not published yet", one["state"]] for one in found["encryption_keys"]]
    show.table(["encryption key", "since (UTC)", ""], rows, empty="")
    epoch = found["epoch"]
    show.line(
        f"epoch {epoch['number']}, since {epoch['since']} UTC" if epoch else "no epoch yet: nothing was published"
    )
    members = [[name, "granted", ""] for name in found["granted"]]
    members += [[one["peer"], "waiting", one["reason"]] for one in found["waiting"]]
    show.table(["member", "this epoch", "why"], members, empty="No members yet.")


@app.command("rotate")
def keys_rotate(
    context: typer.Context,
    encryption: Annotated[
        bool, typer.Option("--encryption", help="Also make a new encryption key, to which peers grant theirs.")
    ] = False,
    json: Json = False,
) -> None:
    """Seal under a new key from now on: a new epoch, granted to those who are members now."""
    from node.keys import rotate

    rotated = rotate(open_home(context), encryption=encryption)
    show.as_json(rotated.to_json()) if json else show.line(rotated.describe())


@app.command("passphrase")
def keys_passphrase(
    context: typer.Context,
    new_file: Annotated[
        Path | None,
        typer.Option("--new-passphrase-file", metavar="FILE", help="Holds the new one; else it is asked for, twice."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Leave the keystore open: file permissions alone.")] = False,
) -> None:
    """Set, change or remove the passphrase of the keystore."""
    from node import passphrase
    from node.errors import UsageError
    from node.keys import set_passphrase

    if remove and new_file is not None:
        raise UsageError("--remove takes no new passphrase.")
    home = open_home(context)
    set_passphrase(home, None if remove else passphrase.choice(new_file, environment=False))
    if remove:
        show.line("The keystore has no passphrase now: whoever can read the file is this node.")
        return
    show.line("The keystore is sealed under the new passphrase. Earlier copies and backups of it are as they were.")
    if home.is_served():
        show.note("The running node goes on. Start it again before the next `keys rotate --encryption`.")
