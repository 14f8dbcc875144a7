"""The commands about models: get, share, check, run and score them, and what else the fused sums can tell.

Thin like `node.cli`, which these commands are part of; what they need is imported inside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from node import show
from node.cli_options import Json, TaskName, open_home
from node.config import MAX_LIARS

app = typer.Typer(rich_markup_mode=None)

Only = Annotated[str | None, typer.Option("--only", metavar="A,B", help="Fuse these partners' summaries.")]
Without = Annotated[str | None, typer.Option("--without", metavar="C", help="Leave these partners out.")]
HeadName = Annotated[str | None, typer.Option("--head", metavar="H", help="How the model is fitted; else the best.")]

Robust = Annotated[
    int, typer.Option("--robust", metavar="F", min=0, max=MAX_LIARS, help="Withstand up to F partners who lie.")
]


@app.command()
def query(
    context: typer.Context,
    task: TaskName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="FILE.onnx or FILE.safetensors.")],
    node: Annotated[str | None, typer.Option("--node", metavar="NAME|KEY", help="Ask this peer.")] = None,
    only: Only = None,
    without: Without = None,
    head: HeadName = None,
    robust: Robust = 0,
    json: Json = False,
) -> None:
    """Get the fused model, from this node or a peer. Where nothing can be fused, one that a member shared."""
    from node.ask import ask, save

    home = open_home(context)
    data = ask(
        home, task, output, node=node, only=only, without=without, head=head, robust=robust, on_progress=show.note
    )
    received = save(home, data, output)
    if json:
        show.as_json(received.card)
    else:
        show.line(received.describe(output))


@app.command()
def share(
    context: typer.Context,
    task: TaskName,
    only: Only = None,
    without: Without = None,
    head: HeadName = None,
    robust: Robust = 0,
    json: Json = False,
) -> None:
    """Gossip the fused model itself, for devices too small to fuse. Costs no budget."""
    from node.ask import select
    from node.shared import FORMAT
    from node.shared import share as share_model

    home = open_home(context)
    shared = share_model(home, select(home, task, only, without, head, FORMAT, robust), show.note)
    show.as_json(shared.to_json()) if json else show.line(shared.describe())


@app.command()
def verify(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file, or the id of a shared model's record.")],
    json: Json = False,
) -> None:
    """Fuse again: say whether a model is what its card claims. From the summaries held here."""
    from node.ask import verify_model

    verdict = verify_model(open_home(context), model)
    if json:
        show.as_json(verdict.to_json())
    else:
        show.line(verdict.describe())
    if not verdict.confirmed:
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file.")],
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Rows with the task's columns.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="A CSV file; else stdout.")
    ] = None,
) -> None:
    """Run a model file on raw rows; needs no node."""
    from node.ask import predict_file

    with show.progress("predicting", "rows") as progress:
        predict_file(model, data, output, progress)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file.")],
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Labelled rows.")],
    json: Json = False,
) -> None:
    """Score a model file on labelled rows; needs no node."""
    from fusion.model import evaluate as score
    from node.ask import read_bounded

    scores: dict[str, Any] = score(read_bounded(model), data)
    if json:
        show.as_json(scores)
        return
    per_class = scores.pop("per_class", [])
    for name, value in scores.items():
        text = (
            "not defined by these rows" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        )
        show.line(f"{name.replace('_', ' '):18}{text}")
    if per_class:
        shown = [[one["name"], f"{one['n']:,}", _share(one["recall"]), _share(one["precision"])] for one in per_class]
        show.table(["class", "rows", "recall", "precision"], shown, empty="")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@app.command()
def contributions(
    context: typer.Context,
    task: TaskName,
    only: Only = None,
    without: Without = None,
    robust: Robust = 0,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw it.")] = None,
    json: Json = False,
) -> None:
    """What each partner's summary adds to the model. Leaves one out, from the noisy sums; costs no budget."""
    from node import contributions as study
    from node.ask import select
    from node.shared import FORMAT

    home = open_home(context)
    if plot is not None:
        study.check_plot(plot)
    with show.progress("fitting", "models") as progress:
        found = study.study(home, select(home, task, only, without, None, FORMAT, robust), progress)
    if plot is not None:
        study.plot(found, plot)
        show.note(f"Drew {plot}.")
    if json:
        show.as_json(found)
        return
    show.table(["partner", "rows", "epsilon", "adds", "alone", ""], study.rows_of(found), empty="No partner.")
    for remark in study.remarks(found):
        show.line(remark)


@app.command()
def synthesize(
    context: typer.Context,
    task: TaskName,
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="How many.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="FILE.csv or FILE.parquet.")],
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="S", help="Another sample; else one that the summaries fix.")
    ] = None,
    only: Only = None,
    without: Without = None,
    json: Json = False,
) -> None:
    """Make private synthetic rows with the task's columns. From the summaries held here; costs no budget."""
    from node.ask import select
    from node.shared import FORMAT
    from node.synthesize import synthesize_file

    home = open_home(context)
    with show.progress("synthesizing", "rows") as progress:
        made = synthesize_file(home, select(home, task, only, without, None, FORMAT), rows, output, seed, progress)
    show.as_json(made.to_json()) if json else show.line(made.describe())
