"""A6: regression. California housing by area, Parkinson's disease by patient and by groups of patients."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tabular import DRAWS, Compared, Files, compare, skipped
from examples.datasets import HERE, DataMissing
from node.tasks import read_file

EPSILON = 3.0
GROUPS = 4
HEADING = "## A6: regression\n\n"
NAMES = {"r2": "R²", "rmse": "RMSE"}


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    parkinsons = read_file(Path(__file__).parent / "tasks" / "parkinsons.toml")
    try:
        houses = compare("california-housing", read_file(HERE / "california-housing" / "task.toml"), (EPSILON, 1.0))
        groups = compare("parkinsons", parkinsons, (EPSILON, 1.0), grouped)
        patients = compare("parkinsons", parkinsons, (EPSILON, 1.0))
    except DataMissing as error:
        return skipped(HEADING, error)
    return (
        f"{HEADING}Target: R² within 0.05 of pooled raw ridge regression at epsilon {EPSILON:g} for nodes of at least "
        f"1,000 rows. Mean ± standard deviation over nodes (alone) or {DRAWS} draws of the noise; a fifth of the rows "
        "tests. Unit: the row.\n\n"
        + _part("California housing, median value of a house, four areas of 1,835 to 7,343 rows", houses)
        + _part(f"Parkinson's disease, total UPDRS, {GROUPS} groups of ten patients with over 1,000 recordings", groups)
        + _part("Parkinson's disease, one node per patient with 85 to 140 recordings", patients)
        + "A recording protects a recording: whoever knows that a patient took part is not kept from learning it.\n"
    )


def grouped(patients: Files) -> Files:
    """Patients dealt out in turn to GROUPS clinics."""
    names = sorted(patients)
    return {
        f"clinic-{clinic}": tuple(path for name in names[clinic::GROUPS] for path in patients[name])
        for clinic in range(GROUPS)
    }


def _part(title: str, compared: Compared) -> str:
    return f"{title}; {compared.gap(EPSILON)} to pooled raw at epsilon {EPSILON:g}:\n\n{compared.table(NAMES)}\n"
