"""Check for `prepare.py check` that the prompts in a file of word vectors have the vectors of their own sentences.

Findings are warnings, as in `values`.
"""

import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from cmg.data.hdf5 import hdf5_array, open_hdf5, reading, texts
from cmg.data.text import Sentence, TextFeatures, word_reasons
from cmg.data.text_backends import hashing_sentences
from cmg.prepare.values import Found, named
from cmg.utils.errors import InputError

UNKNOWN = "[unk]"               # placeholder for words that are not in BERT's vocabulary


def look(path, expected=None):
    """Check whether each sentence in a file of word vectors has the vectors of its own words; returns `Found`.

    Args:
        path: file of `prepare.py text`.
        expected: label -> sentence in its source list, or None.
    """
    found, features = Found(), TextFeatures(path)
    labels, of_label = features.labels, dict(zip(features.labels, features.prompts))
    if expected:
        other = [label for label in labels if label in expected and expected[label] != of_label[label]]
        if other:
            found.warnings.append(f"{path}: the sentences of {len(other):,} labels differ from the list of prompts ("
                                  f"{named(other)}); create the file again with `python prepare.py text`")
    try:
        words = _Words.read(path)
    except InputError:
        found.left_out.append(f"{path}: whether vectors match their sentences, because the file has no words")
        return found
    wrong = {}
    for n, label in enumerate(labels):
        kept = words.kept(n)
        if len(kept) > features.vectors.shape[1] or not np.array_equal(features.vectors[n, :len(kept)], kept) or \
                features.vectors[n, len(kept):].any():
            wrong[label] = "its vectors do not match its words"
        elif not words.are_of(n, features.prompts[n]):
            wrong[label] = "its words do not match its sentence"
    if features.backend == "hashing" and not wrong:
        wrong = {label: "its vectors do not match its sentence" for label in _recomputed(features)}
    elif features.backend != "hashing":
        found.left_out.append(f"{path}: the vectors themselves, which only {features.backend} can compute; words and "
                              "sentences were compared")
    if wrong:
        found.warnings.append(f"{path}: {len(wrong):,} of {len(labels):,} prompts do not match their class ("
                              f"{named(f'{label}: {why}' for label, why in wrong.items())}); create the file again "
                              "with `python prepare.py text`")
    return found


@dataclass
class _Words:
    """The words in a file of prompts: their sentence, whether they are kept, their vectors."""

    words: list
    sentence: np.ndarray
    is_kept: np.ndarray
    vectors: np.ndarray

    def __post_init__(self):
        self.order = np.argsort(self.sentence, kind="stable")
        self.sorted = self.sentence[self.order]

    def of(self, n):
        """Indices of the words of a sentence, in order."""
        first, last = np.searchsorted(self.sorted, [n, n + 1])
        return self.order[first:last]

    @classmethod
    def read(cls, path):
        with open_hdf5(path) as file, reading(path):
            found = cls(texts(hdf5_array(file, "words", "OS", 1)), hdf5_array(file, "word_sentence", "iu", 1)[:],
                        hdf5_array(file, "word_kept", "b", 1)[:].astype(bool),
                        hdf5_array(file, "word_vectors", "f", 2)[:].astype(np.float32))
        if not len(found.words) == len(found.sentence) == len(found.is_kept) == len(found.vectors):
            raise InputError(f"{path}: the numbers of words, sentences and vectors differ")
        return found

    def kept(self, n):
        words = self.of(n)
        return self.vectors[words[self.is_kept[words]]]

    def are_of(self, n, prompt):
        """Whether all words of a sentence occur in its text, except for unknown ones."""
        text = _plain(prompt)
        words = [_plain(self.words[k]).removeprefix("##") for k in self.of(n)]
        return all(word in text for word in words if re.search(r"\w", word) and word != UNKNOWN)


def _plain(text):
    """Lower case without accents."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))


def _recomputed(features):
    """Labels whose vectors differ from the hashed words of their sentence. If a word list was applied, only the
    remaining words are compared."""
    wrong = []
    for label, sentence, vectors in zip(features.labels, hashing_sentences(features.prompts), features.vectors):
        wanted = _vectors(sentence)
        there = vectors[vectors.any(1)]
        same = len(there) == len(wanted) and np.allclose(there, wanted, atol=1e-5)
        if features.text_vocabulary != "all":
            same = all(np.isclose(wanted, row, atol=1e-5).all(1).any() for row in there)
        if not same:
            wrong.append(label)
    return wrong


def _vectors(sentence: Sentence):
    """Vectors of a sentence's words that are kept without a word list."""
    kept = [reason == "kept" for reason in word_reasons(sentence, "all")]
    return sentence.vectors[kept] if any(kept) else sentence.vectors[:0]
