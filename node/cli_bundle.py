"""The commands of couriers: gossip by file. Thin like `node.cli`, which they are part of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node import show
from node.cli_options import Commands, Json, open_home

app = typer.Typer(
    cls=Commands,
    help="Couriers: gossip by file, for sites with no network.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("export")
def bundle_export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, or a bundle to replace.")],
    peer: Annotated[
        str | None, typer.Option("--for", metavar="PEER", help="Seal all of it for this peer; its key card is needed.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="WHEN", help="Only what arrived here since: 7d, 12h, or a date and time (UTC)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write what this node would send to a peer into one file."""
    import time

    from node.bundle_export import export_bundle, parse_since

    home = open_home(context)
    recipient = home.peers.peer_of(peer) if peer is not None else None
    moment = parse_since(since, time.time()) if since is not None else None
    with show.progress("writing", "bytes") as progress:
        exported = export_bundle(home, file, recipient, moment, progress)
    show.as_json(exported.to_json()) if json else show.line(exported.describe())


@app.command("import")
def bundle_import(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle.")],
    json: Json = False,
) -> None:
    """Take what is new in a bundle; exit code 1 if it ends early or anything in it fails a check."""
    from node.bundle_import import import_bundle

    home = open_home(context)
    with show.progress("reading", "bytes") as progress:
        imported = import_bundle(home, file, progress)
    show.as_json(imported.to_json()) if json else show.line(imported.describe())
    for warning in imported.warnings():
        show.note(f"WARNING  {warning}")
    if not imported.is_complete:
        raise typer.Exit(1)
