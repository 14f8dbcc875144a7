"""What several groups of commands share: the types of their arguments, and opening the home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from node.home import Home

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A task's name, or the beginning of its id.")]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option("--log-format", help="Lines for people, or a JSON object a line.")
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option("--log-level", help="What to log from; info, or debug with --debug."),
]


SENTENCE: Final = 300
"""Longer than any first sentence of a command's help."""


class Commands(TyperGroup):
    """A group whose help shows of each command the whole first sentence, not what fits on one line of it."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands, each broken under itself."""
        listed = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, one.get_short_help_str(SENTENCE)) for name, one in listed if one is not None and not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def look_at_home(context: typer.Context) -> Home:
    """The home that `--home` names, for commands that change nothing: its keystore is opened when a secret is needed,
    which may be never."""
    from node import passphrase
    from node.home import Home

    opened = passphrase.handed_over() if context.meta["keys_on_stdin"] else None
    return Home.open(context.obj, passphrase.source(context.meta["passphrase_file"]), opened)


def open_home(context: typer.Context) -> Home:
    """The home that `--home` names, with its keystore open: what is wrong with the passphrase shows before anything
    was changed."""
    home = look_at_home(context)
    home.keystore.open()
    return home
