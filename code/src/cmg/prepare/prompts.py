"""What `prepare.py check` finds in a file of word vectors: prompts whose vectors belong to another sentence.

A warning, as all that `values` finds.
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

UNKNOWN = "[unk]"               # the word that stands for those that BERT's vocabulary does not know


def look(path, expected=None):
    """`Found` about a file of word vectors: whether each sentence has the vectors of its own words.

    Args:
        path: file of `prepare.py text`.
        expected: label -> sentence of the list that it should be of, or None.
    """
    found, features = Found(), TextFeatures(path)
    labels, of_label = features.labels, dict(zip(features.labels, features.prompts))
    if expected:
        other = [label for label in labels if label in expected and expected[label] != of_label[label]]
        if other:
            found.warnings.append(f"{path}: {len(other):,} labels have another sentence than in the list of prompts ("
                                  f"{named(other)}); make the file again with `python prepare.py text`")
    try:
        words = _Words.read(path)
    except InputError:
        found.left_out.append(f"{path}: whether vectors belong to their sentences; it does not keep its words")
        return found
    wrong = {}
    for n, label in enumerate(labels):
        kept = words.kept(n)
        if len(kept) > features.vectors.shape[1] or not np.array_equal(features.vectors[n, :len(kept)], kept) or \
                features.vectors[n, len(kept):].any():
            wrong[label] = "its vectors are not those of its words"
        elif not words.are_of(n, features.prompts[n]):
            wrong[label] = "its words are not those of its sentence"
    if features.backend == "hashing" and not wrong:
        wrong = {label: "its vectors are not those that its sentence gives" for label in _recomputed(features)}
    elif features.backend != "hashing":
        found.left_out.append(f"{path}: the vectors themselves, which only {features.backend} gives; words and "
                              "sentences were compared")
    if wrong:
        found.warnings.append(f"{path}: {len(wrong):,} of {len(labels):,} prompts do not belong to their class ("
                              f"{named(f'{label}: {why}' for label, why in wrong.items())}); make the file again with "
                              "`python prepare.py text`")
    return found


@dataclass
class _Words:
    """The words of a file of prompts: of which sentence they are, whether they count, their vectors."""

    words: list
    sentence: np.ndarray
    is_kept: np.ndarray
    vectors: np.ndarray

    def __post_init__(self):
        self.order = np.argsort(self.sentence, kind="stable")
        self.sorted = self.sentence[self.order]

    def of(self, n):
        """Positions of the words of a sentence, in their order."""
        first, last = np.searchsorted(self.sorted, [n, n + 1])
        return self.order[first:last]

    @classmethod
    def read(cls, path):
        with open_hdf5(path) as file, reading(path):
            found = cls(texts(hdf5_array(file, "words", "OS", 1)), hdf5_array(file, "word_sentence", "iu", 1)[:],
                        hdf5_array(file, "word_kept", "b", 1)[:].astype(bool),
                        hdf5_array(file, "word_vectors", "f", 2)[:].astype(np.float32))
        if not len(found.words) == len(found.sentence) == len(found.is_kept) == len(found.vectors):
            raise InputError(f"{path}: words, sentences and vectors of other numbers")
        return found

    def kept(self, n):
        words = self.of(n)
        return self.vectors[words[self.is_kept[words]]]

    def are_of(self, n, prompt):
        """Whether all words of a sentence stand in it, but for those that a vocabulary does not know."""
        text = _plain(prompt)
        words = [_plain(self.words[k]).removeprefix("##") for k in self.of(n)]
        return all(word in text for word in words if re.search(r"\w", word) and word != UNKNOWN)


def _plain(text):
    """Lower case without accents."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))


def _recomputed(features):
    """Labels whose vectors are not those that hashing their sentence gives; the word list leaves words out, which are
    compared where they are."""
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
    """Vectors of the words that a file keeps of a sentence where every word counts."""
    kept = [reason == "kept" for reason in word_reasons(sentence, "all")]
    return sentence.vectors[kept] if any(kept) else sentence.vectors[:0]
