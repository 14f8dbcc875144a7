"""The public data sets of the examples: original files in, one CSV file a partner and one of test rows out.

Each function knows one data set. It reads the files as their authors give them (zip, ARFF, CSV), derives columns where
raw ones would be wasteful by a rule that looks at one row alone (a partner would run the same lines on rows of its
own), and deals the rows out by a public rule: the area or the person in the row where the data have one, else a hash of
the row's number. Which rows are test rows is decided by such a hash too, never by what a row says.

The data sets are not part of the repository; `where` says where people get each one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from node.demo import HOSPITALS as HOSPITALS_OF_HEART
from node.demo import is_training_row

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("TIDINGS_DATA", HERE.parent.parent / "shared" / "data"))

Row = Mapping[str, str]


class DataMissing(Exception):
    """The original files are not where they were looked for; the sentence says where to get them."""


@dataclass(frozen=True)
class Partners:
    """Training rows of each partner and the test rows, as files."""

    train: dict[str, tuple[Path, ...]]
    test: tuple[Path, ...]


@dataclass(frozen=True)
class Dataset:
    """One public data set: its folder under the data, the file that must be there, and where people get it."""

    folder: str
    file: str
    where: str
    deal: Callable[[Path], Iterable[tuple[str, Row]]]  # the original file -> (partner, row); TEST for a test row
    skip: tuple[str, ...] = ()  # columns that say who a row is, or what it is asked for in other words
    header: bool = True  # of the files that are written

    def found(self, data: Path | None) -> Path:
        """The original file, in `data` or where the benchmarks look; DataMissing where it is in neither."""
        folders = [data, HERE] if data else [SHARED, HERE]
        places = [place for folder in folders for place in (folder / self.file, folder / self.folder / self.file)]
        for place in places:
            if place.is_file():
                return place
        raise DataMissing(
            f"{self.file} is not in {folders[0]}; get it from {self.where} and name its folder with --data"
        )

    def split(self, data: Path | None, out: Path) -> Partners:
        """Write `<partner>.csv` for each partner, and `test.csv`, into `out`."""
        rows: dict[str, list[Row]] = defaultdict(list)
        for partner, row in self.deal(self.found(data)):
            rows[partner].append(row)
        out.mkdir(parents=True, exist_ok=True)
        written = {partner: self._written(out / f"{partner}.csv", rows[partner]) for partner in sorted(rows)}
        test = written.pop(TEST)
        return Partners({partner: (path,) for partner, path in written.items()}, (test,))

    def _written(self, path: Path, rows: list[Row]) -> Path:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if self.header:
                writer.writeheader()
            writer.writerows(rows)
        return path


TEST = "test"
TEST_SHARE = 5  # one row (or person) of five tests


def share_of(text: str, shares: int) -> int:
    """A public hash of `text`, from 0 to shares - 1."""
    return int.from_bytes(hashlib.sha256(f"tidings-example/{text}".encode()).digest()[:8], "big") % shares


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- finance ----------------------------------------------------------------------------------------------------

BANKS = 10
MONTHS = range(1, 7)


def _taiwan(path: Path) -> Iterable[tuple[str, Row]]:
    """Ten banks by a hash of the customer's number."""
    for row in _csv_rows(path):
        customer = row["ID"]
        test = share_of(f"taiwan/test/{customer}", TEST_SHARE) == 0
        yield TEST if test else f"bank-{share_of(f'taiwan/bank/{customer}', BANKS)}", _credit(row)


def _credit(row: Row) -> Row:
    """Money relative to the customer's limit, and what six months of delays come to."""
    limit = float(row["LIMIT_BAL"])
    delays = [max(0, int(row[f"PAY_{month}"])) for month in MONTHS]
    kept = {name: row[name] for name in ("SEX", "EDUCATION", "MARRIAGE", "AGE", "LIMIT_BAL")}
    derived = {
        "delay_now": delays[0],
        "delay_before": delays[1],
        "delay_worst": max(delays),
        "months_late": sum(delay > 0 for delay in delays),
        "use_now": f"{float(row['BILL_AMT1']) / limit:.4f}",
        "use_mean": f"{sum(float(row[f'BILL_AMT{month}']) for month in MONTHS) / 6 / limit:.4f}",
        "paid_now": f"{float(row['PAY_AMT1']) / limit:.4f}",
        "paid_mean": f"{sum(float(row[f'PAY_AMT{month}']) for month in MONTHS) / 6 / limit:.4f}",
    }
    raw = {name: value for name, value in row.items() if name.startswith(("PAY_", "BILL_AMT"))}
    return {"ID": row["ID"], **kept, **{k: str(v) for k, v in derived.items()}, **raw, "default": row[_DEFAULT]}


_DEFAULT = "default.payment.next.month"

# --- sensors ----------------------------------------------------------------------------------------------------

TEST_USERS = range(27, 37)  # the last ten of 36: nobody has seen a row of theirs


def _wisdm(path: Path) -> Iterable[tuple[str, Row]]:
    """One partner a user."""
    lines = path.read_text(encoding="ascii").splitlines()
    start = lines.index("@data")
    names = [line.split()[1].strip('"') for line in lines[:start] if line.startswith("@attribute")]
    for cells in csv.reader(line for line in lines[start + 1 :] if line.strip()):
        row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        user = int(row["user"])
        yield TEST if user in TEST_USERS else f"user-{user:02d}", row


# --- health -----------------------------------------------------------------------------------------------------

HOSPITALS = 10


def _diabetes(path: Path) -> Iterable[tuple[str, Row]]:
    """Ten hospital groups; all stays of a person are at one of them, or test."""
    with zipfile.ZipFile(path) as archive, archive.open("dataset_diabetes/diabetic_data.csv") as file:
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")):
            person = row["patient_nbr"]
            test = share_of(f"diabetes130/test/{person}", TEST_SHARE) == 0
            partner = TEST if test else f"hospitals-{share_of(f'diabetes130/hospitals/{person}', HOSPITALS)}"
            yield partner, _stay(row)


def _stay(row: Row) -> Row:
    """Codes of the data set's IDs_mapping.csv and of ICD-9 merged into groups; the rest as it is."""
    derived = {
        "discharged_to": _group(_DISCHARGES, row["discharge_disposition_id"]),
        "admitted_as": _group(_ADMISSIONS, row["admission_type_id"]),
        "admitted_from": _group(_SOURCES, row["admission_source_id"]),
        "specialty": _specialty(row["medical_specialty"]),
        "diagnosis": _diagnosis(row["diag_1"]),
        "diagnosis_2": _diagnosis(row["diag_2"]),
        "diagnosis_3": _diagnosis(row["diag_3"]),
        "age_years": str(int(row["age"].strip("[)").split("-")[0]) + 5),
    }
    return {**row, **derived}


def _group(groups: dict[str, str], code: str) -> str:
    return next((name for name, codes in groups.items() if code in codes.split()), "")


_DISCHARGES = {
    "home": "1 8",
    "home care": "6",
    "hospital": "2 5 9 10 12 15 16 17 28 29 30",
    "nursing": "3 4 24",
    "rehabilitation": "22 23 27",
    "left": "7",
    "died or hospice": "11 13 14 19 20 21",
}
_ADMISSIONS = {"emergency": "1 7", "urgent": "2", "elective": "3"}
_SOURCES = {"referral": "1 2 3", "transfer": "4 5 6 10 18 22 25 26", "emergency room": "7"}


def _specialty(text: str) -> str:
    groups = (
        ("surgery", ("Surg", "Orthopedics", "Urology", "Obst", "Gynecology", "Otolaryngology", "Anesthesiology")),
        ("cardiology", ("Cardiology",)),
        ("nephrology", ("Nephrology",)),
        ("general", ("InternalMedicine", "Family", "Hospitalist")),
        ("emergency", ("Emergency",)),
        ("psychiatry", ("Psych",)),
        ("oncology", ("Oncology", "Hematology")),
        ("rehabilitation", ("PhysicalMedicine",)),
        ("lungs", ("Pulmonology",)),
    )
    if text == "?":
        return ""
    return next((name for name, starts in groups if any(start in text for start in starts)), "other")


def _diagnosis(code: str) -> str:
    """The groups of B. Strack et al. (2014), table 2, by ICD-9 code."""
    if code == "?":
        return ""
    if code.startswith("250"):
        return "diabetes"
    if not code[0].isdigit():  # E and V codes: causes and encounters
        return "other"
    number = int(float(code))
    for name, spans in _ICD9.items():
        if any(low <= number <= high for low, high in spans):
            return name
    return "other"


_ICD9 = {
    "circulatory": ((390, 459), (785, 785)),
    "respiratory": ((460, 519), (786, 786)),
    "digestive": ((520, 579), (787, 787)),
    "injury": ((800, 999),),
    "musculoskeletal": ((710, 739),),
    "genitourinary": ((580, 629), (788, 788)),
    "neoplasms": ((140, 239),),
}

# --- language ---------------------------------------------------------------------------------------------------

SITES = ("imdb", "amazon_cells", "yelp")
TRAINING_SENTENCES = 667  # of the 1,000 of a site


def sentences_of(path: Path, site: str) -> list[Row]:
    """The sentences of a site in the order of its file, `path` being the file of any site."""
    lines = path.with_name(f"{site}_labelled.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [dict(zip(("text", "label"), line.rsplit("\t", 1), strict=True)) for line in lines]


def training_sentences(site: str, count: int, split: int = 0) -> set[int]:
    """The numbers of a site's training rows, those with the smallest hashes; split 0 is that of the example."""

    def digest(index: int) -> bytes:
        other = f"/{split}" if split else ""
        return hashlib.sha256(f"tidings-sentiment/{SITES.index(site)}/{index}{other}".encode()).digest()

    return set(sorted(range(count), key=digest)[:TRAINING_SENTENCES])


def _sentiment(path: Path) -> Iterable[tuple[str, Row]]:
    """One partner a site of reviews."""
    for site in SITES:
        rows = sentences_of(path, site)
        training = training_sentences(site, len(rows))
        for index, row in enumerate(rows):
            yield site if index in training else TEST, row


# --- regression -------------------------------------------------------------------------------------------------

AREAS = {"<1H OCEAN": "near-the-coast", "INLAND": "inland", "NEAR OCEAN": "ocean", "NEAR BAY": "bay", "ISLAND": "ocean"}


def _california(path: Path) -> Iterable[tuple[str, Row]]:
    """Four areas; the five block groups on an island go with the ocean."""
    for index, row in enumerate(_csv_rows(path)):
        homes = float(row["households"])
        rooms, people = float(row["total_rooms"]) / homes, float(row["population"]) / homes
        bedrooms = f"{float(row['total_bedrooms']) / homes:.4f}" if row["total_bedrooms"] else ""
        derived = {"rooms": f"{rooms:.4f}", "bedrooms": bedrooms, "people": f"{people:.4f}"}
        test = share_of(f"california/test/{index}", TEST_SHARE) == 0
        yield TEST if test else AREAS[row["ocean_proximity"]], {**row, **derived}


def _parkinsons(path: Path) -> Iterable[tuple[str, Row]]:
    """One partner a patient."""
    for index, row in enumerate(_csv_rows(path)):
        test = share_of(f"parkinsons/test/{index}", TEST_SHARE) == 0
        yield TEST if test else f"patient-{int(row['subject#']):02d}", row


# --- all of them ------------------------------------------------------------------------------------------------


def _heart(path: Path) -> Iterable[tuple[str, Row]]:
    """The four hospitals of the repository's own files, split as `tidings demo` splits them."""
    for hospital in HOSPITALS_OF_HEART:
        lines = path.with_name(f"{hospital}.csv").read_text(encoding="utf-8").splitlines()
        for index, line in enumerate(lines):
            row = {str(place): cell for place, cell in enumerate(line.split(","))}
            yield hospital if is_training_row(hospital, index) else TEST, row


UCI = "the UCI Machine Learning Repository"

DATASETS = {
    "heart": Dataset("heart", "cleveland.csv", "examples/heart in this repository", _heart, header=False),
    "taiwan-credit": Dataset(
        "taiwan_credit", "UCI_Credit_Card.csv", f"{UCI} (Default of Credit Card Clients), as CSV", _taiwan, ("ID",)
    ),
    "wisdm": Dataset(
        "wisdm_v1.1",
        "WISDM_ar_v1.1_transformed.arff",
        "the WISDM Lab, https://www.cis.fordham.edu/wisdm/ (Activity Prediction)",
        _wisdm,
        ("UNIQUE_ID", "user"),
    ),
    "diabetes130": Dataset(
        "diabetes130",
        "dataset_diabetes.zip",
        f"{UCI} (Diabetes 130-US hospitals for years 1999-2008)",
        _diabetes,
        ("encounter_id", "patient_nbr", "diag_1", "diag_2", "diag_3", "medical_specialty"),
    ),
    "california-housing": Dataset(
        "california_housing", "housing.csv", "the repository ageron/handson-ml2, folder datasets/housing", _california
    ),
    "parkinsons": Dataset(
        "parkinsons_telemonitoring",
        "parkinsons_updrs.data",
        f"{UCI} (Parkinsons Telemonitoring)",
        _parkinsons,
        ("subject#", "motor_UPDRS"),
    ),
    "sentiment": Dataset(
        "sentiment_sentences", "imdb_labelled.txt", f"{UCI} (Sentiment Labelled Sentences)", _sentiment
    ),
}
