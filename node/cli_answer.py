"""The hidden commands that a running node starts to answer queries; people use `query`."""

from __future__ import annotations

from typing import Annotated

import typer

from node.cli_options import open_home

app = typer.Typer(rich_markup_mode=None)


@app.command(hidden=True)
def answer(
    context: typer.Context,
    rewrite: Annotated[str | None, typer.Option("--rewrite", metavar="FORMAT", help="A model file instead.")] = None,
) -> None:
    """Answer the query on standard input, on standard output."""
    from node.fusing import answer_on_stdout, rewrite_on_stdout

    if rewrite is not None:
        rewrite_on_stdout(rewrite)
    else:
        answer_on_stdout(open_home(context))
