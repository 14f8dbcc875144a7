"""What several groups of commands share: the types of their arguments, and opening the home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from node.home import Home

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A task's name, or the beginning of its id.")]


def open_home(context: typer.Context) -> Home:
    """The home that `--home` names."""
    from node.home import Home

    return Home.open(context.obj)
