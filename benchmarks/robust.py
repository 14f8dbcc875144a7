"""Lying members: what each lie of `benchmarks.attacks` costs, with the robust option and without it.

Adult's training rows are dealt out to 20 partners, evenly or by a Dirichlet partition of concentration 0.1; in every
draw other partners lie, and everybody's noise is fresh. Heart disease at four hospitals and the movements of 26 people
(wisdm) are as they are. What the option costs where nobody lies is measured on these and on other tables whose partners
differ by nature.

The factors and LARGEST_SHARE of `fusion.robust` were fixed after looking at how far honest partners of these tables
come to their limits, on training rows. How partners weigh in the middle was changed once after a run of this benchmark,
whose figures on test rows were seen: three large liars had honest partners left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import adult
from benchmarks.attacks import (
    ATTACKS,
    MANY,
    TARGET,
    as_far_as_it_goes,
    flipped,
    forged_moments,
    honest,
    poisoned,
    same_lie,
    triggered,
)
from benchmarks.kinds import _only, _together
from benchmarks.partitions import PARTITIONS
from benchmarks.plotting import Series, pyplot
from benchmarks.progress import Progress
from examples.datasets import DATASETS, DataMissing
from examples.trial import Trial
from fusion.artifact import Model
from fusion.dataset import Batch, read_batches
from fusion.encoders import encoder_for
from fusion.errors import ModelError
from fusion.fuse import Contribution
from fusion.heads import forward
from fusion.model import build_model
from fusion.summary import Summary
from fusion.task import Task
from node.tasks import read_file

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
HEADING = "## Lying members\n\n"
NODES, EPSILON = 20, 1.0
PROCESSES = 2
NATURAL = {"heart": ("heart, 4 hospitals", 3.0, 1), "wisdm": ("wisdm, 26 people, six classes", 8.0, 3)}
"""Coalitions as they are: what they are called, epsilon at each partner, and F."""

Floats = NDArray[np.float64]
Job = Callable[[], Any]
Lies = Callable[["Scene", Sequence[int], Mapping[int, Contribution]], list[Summary]]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    draws: int
    partitions: tuple[str, ...]
    coalitions: tuple[int, ...]
    honest: tuple[str, ...]


FULL = Sizes(
    10,
    ("IID", "Dirichlet 0.1"),
    (0, 1, 3, 4, 6, 9, 10),
    ("heart", "wisdm", "california-housing", "taiwan-credit"),
)
QUICK = Sizes(2, ("IID",), (0, 3, 6), ("heart",))


def run(out: Path) -> str:
    """The section of RESULTS.md; the picture goes into `out`."""
    return _section(FULL, out)


def quick(out: Path) -> str:
    """Two draws of less."""
    return _section(QUICK, out)


def _section(sizes: Sizes, out: Path) -> str:
    if not (adult.DATA / "adult.data").is_file():
        return HEADING + "Skipped: adult.data and adult.test were not found; put them into `$TIDINGS_DATA/adult`.\n"
    jobs: list[Job] = [partial(_adult_table, name, sizes) for name in sizes.partitions]
    jobs += [partial(_natural_table, name, sizes) for name in NATURAL]
    jobs += [partial(_breakdown, name, sizes) for name in sizes.partitions]
    jobs.append(partial(_honest_text, sizes))
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        done = [one.result() for one in [pool.submit(job) for job in jobs]]
    tables, (*found, nobody_lies) = done[: len(sizes.partitions) + len(NATURAL)], done[-len(sizes.partitions) - 1 :]
    curves = dict(zip(sizes.partitions, found, strict=True))
    return (
        HEADING
        + f"Accuracy in percent on test rows, mean ± standard deviation over {sizes.draws} draws (other liars, fresh "
        f"noise, delta 1e-5). `--robust F` is asked with F as given. Success of a backdoor: test rows of other classes "
        "with the trigger that the model puts into the liars' class. The columns: honest partners alone; all without "
        "the option; all with it; liars and honest partners left out, of all draws; draws where the option refused to "
        "fuse because more than F stood out (left out of its mean).\n\n"
        + "\n".join(tables)
        + _breakdown_text(curves, sizes)
        + _draw(curves, sizes, out / "robust.png")
        + "\n"
        + nobody_lies
    )


def _adult_table(partition: str, sizes: Sizes) -> str:
    return _attack_table(_adult(partition), partition, EPSILON, 3, sizes)


def _natural_table(name: str, sizes: Sizes) -> str:
    who, epsilon, most = NATURAL[name]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return _attack_table(_natural(name, Path(scratch) / name), who, epsilon, most, sizes)
        except DataMissing as error:
            return f"### {who}\n\nSkipped: {error}.\n"


# --- scenes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A task, the rows of each partner, and encoded test rows with their classes, with the trigger and without."""

    task: Task
    parts: tuple[Batch, ...]
    x: Floats
    triggered: Floats
    label: NDArray[np.int64]

    @classmethod
    def of(cls, task: Task, parts: Sequence[Batch], test: Batch) -> Scene:
        encoder = encoder_for(task)
        marked = encoder.encode(triggered(task, test))
        return cls(task, tuple(parts), encoder.encode(test), marked, np.asarray(test.label))

    def drawn(self, epsilon: float) -> dict[int, Contribution]:
        """Everybody's honest summary with fresh noise."""
        return {k: _contribution(k, honest(self.task, rows, epsilon)) for k, rows in enumerate(self.parts)}

    def score(self, held: Sequence[Contribution], liars: int = 0) -> Score | None:
        """Of the model of these summaries; None where the option refuses."""
        try:
            model = build_model(self.task, held, liars=liars)
        except ModelError:
            return None
        left_out = model.manifest["method"]["robust"]["left_out"] if liars else []
        return Score(self._accuracy(model), self._success(model), tuple(int(one["origin"], 16) for one in left_out))

    def _accuracy(self, model: Model) -> float:
        return float((forward(model.layers, self.x).argmax(axis=1) == self.label).mean())

    def _success(self, model: Model) -> float:
        others = self.label != TARGET
        return float((forward(model.layers, self.triggered[others]).argmax(axis=1) == TARGET).mean())


@dataclass(frozen=True)
class Score:
    """Shares of 1, and who was left out."""

    accuracy: float
    success: float
    left_out: tuple[int, ...]


def _contribution(k: int, summary: Summary) -> Contribution:
    key = k.to_bytes(32, "big")
    return Contribution(key, key, summary)


def _adult(partition: str) -> Scene:
    task = read_file(HERE / "tasks" / "adult.toml")
    with tempfile.TemporaryDirectory() as scratch:
        data = adult._split(Path(scratch))
        train, test = _together(read_batches(data.nodes, task)), _together(read_batches([data.test], task))
    places = np.arange(len(train))
    parts = [_only(train, np.isin(places, own)) for own in PARTITIONS[partition](np.asarray(train.label), NODES)]
    return Scene.of(task, parts, test)


def _natural(name: str, scratch: Path) -> Scene:
    scratch.mkdir()
    task = read_file(EXAMPLES / name / "task.toml")
    partners = DATASETS[name].split(None, scratch)
    parts = [_together(read_batches(files, task)) for files in partners.train.values()]
    return Scene.of(task, parts, _together(read_batches(partners.test, task)))


# --- attacks ----------------------------------------------------------------------------------------------------


def _each(
    name: str, epsilon: float, scene: Scene, liars: Sequence[int], _: Mapping[int, Contribution]
) -> list[Summary]:
    return [ATTACKS[name](scene.task, scene.parts[k], epsilon) for k in liars]


def _forged(epsilon: float, scene: Scene, liars: Sequence[int], others: Mapping[int, Contribution]) -> list[Summary]:
    """Along the direction in which the honest model decides."""
    weight = build_model(scene.task, [*others.values()]).layers[0].weight
    along = weight[:, 1] - weight[:, 0]
    return [forged_moments(scene.task, scene.parts[k], epsilon, along) for k in liars]


def _together_lying(
    epsilon: float, times: int, scene: Scene, liars: Sequence[int], others: Mapping[int, Contribution]
) -> list[Summary]:
    """All claim `times` as many rows as the largest honest partner has."""
    most = times * max(len(scene.parts[k]) for k in others)
    return same_lie(scene.task, [scene.parts[k] for k in liars], epsilon, most)


def _adaptive(
    lie: Callable[[Task, Batch], Batch],
    withstood: int,
    epsilon: float,
    scene: Scene,
    liars: Sequence[int],
    others: Mapping[int, Contribution],
) -> list[Summary]:
    rows = [scene.parts[k] for k in liars]
    return as_far_as_it_goes(scene.task, rows, lie, [*others.values()], epsilon, withstood)


def _strategies(epsilon: float, withstood: int) -> dict[str, Lies]:
    simple = [name for name in ATTACKS if name != "forged second moments"]
    return {
        **{name: partial(_each, name, epsilon) for name in simple},
        "forged second moments": partial(_forged, epsilon),
        "one lie, told by all": partial(_together_lying, epsilon, 1),
        "label flip as far as the option lets": partial(_adaptive, flipped, withstood, epsilon),
        "backdoor as far as the option lets": partial(_adaptive, poisoned, withstood, epsilon),
    }


@dataclass
class Outcome:
    """Of one strategy over draws."""

    honest: list[Score]
    without: list[Score]
    robust: list[Score]
    refused: int = 0
    caught: int = 0
    wronged: int = 0


@dataclass
class Draw:
    """Fresh noise for everybody's honest summary, the order in which partners turn liars, and the scores of the honest
    ones alone by their number: all lies meet the same draws."""

    order: list[int]
    drawn: dict[int, Contribution]
    alone: dict[int, list[Score]]


def _draws(scene: Scene, epsilon: float, count: int) -> list[Draw]:
    partners = len(scene.parts)
    orders = [np.random.default_rng(seed).permutation(partners).tolist() for seed in range(count)]
    return [Draw(order, scene.drawn(epsilon), {}) for order in orders]


def _outcome(scene: Scene, draws: Sequence[Draw], lies: Lies | None, count: int, withstood: int) -> Outcome:
    found = Outcome([], [], [])
    for draw in draws:
        liars = draw.order[:count]
        others = {k: one for k, one in draw.drawn.items() if k not in liars}
        told = lies(scene, liars, others) if lies else []
        held = [*others.values(), *(_contribution(k, one) for k, one in zip(liars, told, strict=True))]
        if count not in draw.alone:
            draw.alone[count] = _known(scene.score([*others.values()]))
        found.honest += draw.alone[count]
        found.without += _known(scene.score(held))
        if withstood:
            score = scene.score(held, withstood)
            found.robust += _known(score)
            found.refused += score is None
            for k in score.left_out if score else ():
                found.caught += k in liars
                found.wronged += k not in liars
    return found


def _known(score: Score | None) -> list[Score]:
    return [score] if score else []


def _attack_table(scene: Scene, name: str, epsilon: float, most: int, sizes: Sizes) -> str:
    """A row for each strategy and number of liars."""
    tell, rows, draws = Progress("robust"), [], _draws(scene, epsilon, sizes.draws)
    for count in sorted({1, most}):
        for strategy, lies in _strategies(epsilon, most).items():
            outcome = _outcome(scene, draws, lies, count, most)
            rows.append(_row(f"{strategy} | {count}", outcome, count * sizes.draws))
            tell(f"{name}: {rows[-1]}")
    nobody = _row("nobody lies | 0", _outcome(scene, draws, None, 0, most), 0)
    partners = len(scene.parts)
    return (
        f"### {'Adult, 20 partners, ' if partners == NODES else ''}{name}, epsilon {epsilon:g}, `--robust {most}`\n\n"
        "| lie | liars | honest alone | without | with | backdoor: honest alone | without | with | liars left out | "
        "honest left out | refused |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join([nobody, *rows])
        + "\n"
    )


def _row(title: str, one: Outcome, lied: int) -> str:
    groups = (one.honest, one.without, one.robust)
    accuracy = " | ".join(_cell([score.accuracy for score in group]) for group in groups)
    success = " | ".join(_cell([score.success for score in group], digits=0) for group in groups)
    caught = f"{one.caught} of {lied}" if lied else "–"
    return f"| {title} | {accuracy} | {success} | {caught} | {one.wronged} | {one.refused} |"


def _cell(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "–"
    deviation = 100 * stdev(values) if len(values) > 1 else 0.0
    return f"{100 * fmean(values):.{digits}f} ± {deviation:.{digits}f}"


# --- where it breaks --------------------------------------------------------------------------------------------

FIXED, ENOUGH = "--robust 3", "--robust as many as lie"


def _breakdown(partition: str, sizes: Sizes) -> dict[str, dict[int, Outcome]]:
    """Growing coalitions with one lie, of many rows."""
    tell, scene, lies = Progress("robust"), _adult(partition), partial(_together_lying, EPSILON, MANY)
    found: dict[str, dict[int, Outcome]] = {FIXED: {}, ENOUGH: {}}
    draws = _draws(scene, EPSILON, sizes.draws)
    for count in sizes.coalitions:
        found[FIXED][count] = _outcome(scene, draws, lies if count else None, count, 3)
        if 2 * count < len(scene.parts):
            found[ENOUGH][count] = _outcome(scene, draws, lies if count else None, count, count)
        tell(f"{count} of {len(scene.parts)} tell one lie: {_row('', found[FIXED][count], 1)}")
    return found


def _breakdown_text(curves: Mapping[str, dict[str, dict[int, Outcome]]], sizes: Sizes) -> str:
    lines = []
    for name, curve in curves.items():
        for count in sizes.coalitions:
            fixed, enough = curve[FIXED][count], curve[ENOUGH].get(count)
            cells = [_cell([score.accuracy for score in group]) for group in (fixed.honest, fixed.without)]
            cells += [_with_refusals(fixed), _with_refusals(enough) if enough and count else "–"]
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return (
        f"\n### Where it breaks: growing coalitions with one lie, Adult, {NODES} partners\n\n"
        f"All liars claim the same flipped rows, each {MANY:,} times as many as the largest honest partner has. In "
        f"brackets: draws of {sizes.draws} that were refused.\n\n"
        f"| rows | liars | honest alone | without | `{FIXED}` | `{ENOUGH}` |\n| --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(lines)
        + "\n"
    )


def _with_refusals(one: Outcome) -> str:
    return _cell([score.accuracy for score in one.robust]) + (f" ({one.refused})" if one.refused else "")


STYLES = {
    "honest alone": Series("honest partners alone", "#3d5a80", "s"),
    "without": Series("all, without the option", "#c8553d", "^"),
    FIXED: Series(f"all, {FIXED}", "#0b7a75", "o"),
    ENOUGH: Series(f"all, {ENOUGH}", "#c9b458", "x"),
}


def _draw(curves: Mapping[str, dict[str, dict[int, Outcome]]], sizes: Sizes, path: Path) -> str:
    """Accuracy by the number of liars; the line of Markdown that shows it."""
    plt = pyplot()
    if plt is None:
        return ""
    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves), 4.4), layout="constrained", squeeze=False)
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        for label, scores in _series(curve):
            places = [count for count in sizes.coalitions if scores.get(count)]
            STYLES[label].line(axis, places, [scores[count] for count in places])
        axis.set_title(f"Adult, {NODES} partners, {name}, epsilon {EPSILON:g}", fontsize=10)
        axis.set_xlabel("partners who tell one lie; no mark: refused in all draws", fontsize=9)
        axis.set_ylabel("accuracy in percent", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return f"\n![Accuracy by the number of liars](plots/{path.name})\n"


def _series(curve: Mapping[str, dict[int, Outcome]]) -> Iterator[tuple[str, dict[int, list[float]]]]:
    """Label -> the scores of every number of liars."""
    fixed = curve[FIXED]
    yield "honest alone", {count: [score.accuracy for score in one.honest] for count, one in fixed.items()}
    yield "without", {count: [score.accuracy for score in one.without] for count, one in fixed.items()}
    for name in (ENOUGH, FIXED):
        yield name, {count: [score.accuracy for score in one.robust] for count, one in curve[name].items() if count}


# --- nobody lies ------------------------------------------------------------------------------------------------


def _honest_text(sizes: Sizes) -> str:
    """What the option costs coalitions without liars."""
    tell = Progress("robust")
    rows: list[str] = []
    for name in sizes.honest:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                partners = DATASETS[name].split(None, Path(scratch))
                trial = Trial(read_file(EXAMPLES / name / "task.toml"), partners.train, partners.test)
                for epsilon in (1.0, trial.task.privacy.max_epsilon):
                    rows += _honest_rows(trial, name, epsilon, sizes.draws)
                    tell(rows[-1])
        except DataMissing as error:
            rows.append(f"| {name} | skipped: {error} |")
    for partition in (*sizes.partitions, "one class each"):
        scene = _adult(partition)
        draws = _draws(scene, EPSILON, sizes.draws)
        for liars in (1, 3):
            one = _outcome(scene, draws, None, 0, liars)
            cells = [_cell([score.accuracy for score in group]) for group in (one.without, one.robust)]
            of = len(scene.parts) * sizes.draws
            what = f"Adult, {len(scene.parts)} partners, {partition} | {EPSILON:g} | {liars}"
            rows.append(f"| {what} | accuracy | {' | '.join(cells)} | {one.wronged} of {of} | {one.refused} |")
            tell(rows[-1])
    return (
        "### Nobody lies: what the option costs\n\n"
        "Honest partners as they are. Whoever is left out is wronged; the rest of the cost is that nobody counts for "
        "more rows than the (F + 1)-th largest.\n\n"
        "| partners | epsilon | F | score | without | with | left out | refused |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def _honest_rows(trial: Trial, name: str, epsilon: float, draws: int) -> Iterator[str]:
    partners = len(trial.train)
    for liars in sorted({1, (partners - 1) // 4} - {0}):
        without, robust, left_out, refused = [], [], 0, 0
        for _ in range(draws):
            held = trial.drawn(epsilon)
            without.append(trial.score(build_model(trial.task, held))[trial.measure_of_success])
            try:
                model = build_model(trial.task, held, liars=liars)
            except ModelError:
                refused += 1
                continue
            left_out += len(model.manifest["method"]["robust"]["left_out"])
            robust.append(trial.score(model)[trial.measure_of_success])
        what = f"{name}, {partners} partners | {epsilon:g} | {liars} | {trial.measure_of_success}"
        yield f"| {what} | {_cell(without)} | {_cell(robust)} | {left_out} of {partners * draws} | {refused} |"
