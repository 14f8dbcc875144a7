"""`tidings doctor`. Thin like `node.cli`, which it is part of."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from node import show
from node.cli_options import Json

if TYPE_CHECKING:
    from node.doctor import Finding

app = typer.Typer(rich_markup_mode=None)

AREA_WIDTH = 13
MAX_LINE = 1_000
INDENT = 6 + AREA_WIDTH


@app.command()
def doctor(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what is not fine.")] = False,
    json: Json = False,
) -> None:
    """Check what this node depends on; one line a finding.

    Clock, disk, permissions, port, peers, keys, records and budget are looked at, and nothing is changed.
    The exit code is 1 if something fails; warnings leave it at 0."""
    from node import passphrase
    from node.doctor import Level, examine

    file = context.meta["passphrase_file"]
    found = []
    for finding in examine(context.obj, passphrase.source(file), file):
        found.append(finding)
        if not json and not (quiet and finding.level is Level.OK):
            show.line(_line(finding))
    failed = any(finding.level is Level.FAIL for finding in found)
    if json:
        kept = [one.to_json() for one in found if not (quiet and one.level is Level.OK)]
        show.as_json({"ok": not failed, "findings": kept})
    elif not quiet:
        counts = {level: sum(one.level is level for one in found) for level in Level}
        show.line(f"{counts[Level.FAIL]} failed, {counts[Level.WARN]} warnings, {counts[Level.OK]} fine")
    if failed:
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    """One line for programs that read lines; broken under itself where a terminal is too narrow."""
    from node.doctor import Level

    text = f"{finding.text}; {finding.advice}" if finding.advice else finding.text
    level = finding.level.value if finding.level is Level.OK else finding.level.value.upper()
    line = f"{level:4}  {finding.area:{AREA_WIDTH}}{show.one_line(text, MAX_LINE)}"
    if not sys.stdout.isatty():
        return line
    return textwrap.fill(line, show.console().width, subsequent_indent=" " * INDENT, break_on_hyphens=False)
