"""Computes the public constants of the text encoder: `python -m benchmarks.text_constants [FILE]`, two minutes.

Everything comes from public text: the sentences of `benchmarks.public_sentences`, which were written for this purpose,
and words of the model's own vocabulary. Vectors v are those of `fusion.encoders.minilm`, of length 1.

* mean (384,): the mean of the sentences, for, against and neither counting alike.
* topics (k, 384), damping (k,): the covariance C of single words says in which directions any two words differ most,
  whatever is said of them. W = (C / c + RIDGE I)^(-1/2), c being the mean eigenvalue of C, shrinks vectors along its
  first k axes; the others, which W would scale nearly alike, are left as they are ("all but the top": J. Mu, P.
  Viswanath, 2018, https://arxiv.org/abs/1702.01417).
* opinion (384,): the direction along which sentences for and against differ, by a discriminant analysis with a ridge,
  in the damped space: that of the written sentences plus TEMPLATES times that of the templates.

TOPICS, RIDGE, OPINION_RIDGE, TEMPLATES and the stretch of the lens (`fusion.encoders.text`) were chosen on the training
rows of examples/sentiment; see docs/experiments.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.public_sentences import AGAINST, AGAINST_IT, FOR, FOR_IT, NEITHER, PLAIN, sentences
from fusion.encoders.minilm import Minilm, one_thread
from fusion.encoders.text import CONSTANTS_FILE

Floats = NDArray[np.float64]

WORDS = 3_000
TOPICS = 128
RIDGE = 3.0  # in mean eigenvalues of the words' covariance
TEMPLATES = 2.0
OPINION_RIDGE = 10.0  # in mean eigenvalues of the sentences' covariance


def main(path: Path = CONSTANTS_FILE) -> None:
    from safetensors.numpy import save_file

    save_file(compute(Minilm.load()), path)
    print(f"{path} is written; its sha256 belongs into fusion/task.py, as TEXT_CONSTANTS_SHA256")


def compute(model: Minilm) -> dict[str, NDArray[np.float32]]:
    """The tensors of the file."""
    texts, opinions = sentences()
    opinion = np.array(opinions)
    spoken, words = _unit_vectors(model, texts), _unit_vectors(model, _words(model))
    mean = np.mean([spoken[opinion == one].mean(axis=0) for one in (FOR_IT, AGAINST_IT, NEITHER)], axis=0)
    topics, damping = _topics(words)
    damped = spoken - mean
    damped += (damped @ topics.T * (damping - 1.0)) @ topics
    damped /= np.linalg.norm(damped, axis=1, keepdims=True)
    written = np.arange(len(texts)) < len((FOR.strip() + "\n" + AGAINST.strip() + "\n" + PLAIN.strip()).splitlines())
    direction = _direction(damped[written], opinion[written])
    direction += TEMPLATES * _direction(damped[~written], opinion[~written])
    direction /= np.linalg.norm(direction)
    tensors = {"mean": mean, "topics": topics, "damping": damping, "opinion": direction}
    return {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in tensors.items()}


def _words(model: Minilm) -> list[str]:
    """Whole words of three or more letters from the vocabulary."""
    words = [word for word in model.vocabulary if word.isascii() and word.isalpha() and len(word) > 2]
    return [words[i] for i in np.random.default_rng(0).permutation(len(words))[:WORDS]]


def _unit_vectors(model: Minilm, texts: list[str]) -> Floats:
    with one_thread():
        return np.array([model.vector(text) for text in texts], dtype=np.float64)


def _topics(words: Floats) -> tuple[Floats, Floats]:
    values, vectors = np.linalg.eigh(np.cov(words.T))
    scales = 1.0 / np.sqrt(values[::-1] / values.mean() + RIDGE)
    return vectors.T[::-1][:TOPICS], scales[:TOPICS] / scales[TOPICS:].mean()


def _direction(vectors: Floats, opinion: NDArray[np.int64]) -> Floats:
    groups = [vectors[opinion == one] for one in (AGAINST_IT, FOR_IT)]
    within = np.mean([np.cov(group.T) for group in groups], axis=0)
    ridge = OPINION_RIDGE * np.trace(within) / len(within)
    direction = np.linalg.solve(within + ridge * np.eye(len(within)), groups[1].mean(axis=0) - groups[0].mean(axis=0))
    return np.asarray(direction / np.linalg.norm(direction))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
