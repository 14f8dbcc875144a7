"""Linear classifiers of scikit-learn and diffprivlib on one table, run in an environment of their own.

    python linear_models.py TABLE.npz EPSILON DRAWS JOBS

TABLE.npz holds train, train_label, test, test_label. JOBS is a JSON list of
{"model": "logistic", "data_norm": …, "intercept": …, "C": …}, {"model": "naive bayes"} (cells within [0, 1]) and,
without privacy, {"model": "no privacy"} (logistic regression) and {"model": "ridge, no privacy"}; "columns" keeps the
first so many columns. Prints one JSON list of accuracies per job.

All that diffprivlib would otherwise read from the data is given: the norm of a row, the bounds of a column.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
from diffprivlib.models import GaussianNB, LogisticRegression
from diffprivlib.utils import PrivacyLeakWarning
from sklearn.linear_model import LogisticRegression as PlainLogisticRegression
from sklearn.linear_model import RidgeClassifier

MAX_ITERATIONS = 500


def main(table: str, epsilon: str, draws: str, jobs: str) -> None:
    """Each job's accuracies on the test rows, one per draw."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", PrivacyLeakWarning)  # a bound that was taken from the data would be no comparison
    with np.load(table) as arrays:
        data = dict(arrays)
    print(json.dumps([_accuracies(job, data, float(epsilon), int(draws)) for job in json.loads(jobs)]))


def _accuracies(job: dict[str, Any], data: dict[str, Any], epsilon: float, draws: int) -> list[float]:
    used = slice(job.get("columns"))
    train, test = data["train"][:, used], data["test"][:, used]
    scores = []
    for _ in range(1 if job["model"].endswith("no privacy") else draws):
        fitted = _model(job, epsilon).fit(train, data["train_label"])
        scores.append(float(fitted.score(test, data["test_label"])))
    return scores


def _model(job: dict[str, Any], epsilon: float) -> Any:
    if job["model"] == "logistic":
        public = {"data_norm": job["data_norm"], "fit_intercept": job["intercept"], "C": job["C"]}
        return LogisticRegression(epsilon=epsilon, max_iter=MAX_ITERATIONS, **public)
    if job["model"] == "naive bayes":
        return GaussianNB(epsilon=epsilon, bounds=(0, 1))
    if job["model"] == "ridge, no privacy":
        return RidgeClassifier()
    return PlainLogisticRegression(max_iter=MAX_ITERATIONS)


if __name__ == "__main__":
    main(*sys.argv[1:])
