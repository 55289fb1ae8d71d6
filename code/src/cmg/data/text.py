"""Class prompts as word vectors: computed once, stored in an HDF5 file, and read by all loaders.

A run uses a few hundred distinct sentences, so BERT runs once (`prepare.py text`) and not in the loaders. This module
must run on Python 3.7 with only NumPy and h5py, because the bert-embedding exporter uses it in an old environment.

Attributes of the file: `format`, `backend`, `model`, `width` (of the vectors, 768 for BERT), `text_vocabulary`, `unit`
("words" or "pieces"), `prompts_file`. Per sentence: `labels`, `prompts`, `vectors` (N, 10, width), the encoder's input.
Per word or piece: `words`, `word_sentence`, `word_index` (index of a word in the vocabulary of bert-embedding, 0 if it
has none, or of a piece in BERT's vocabulary), `word_kept`, `word_reason`, `word_vectors` (W, width).
"""

import io
import os

import h5py
import numpy as np

from cmg.data.archive import read_counts
from cmg.data.csv import read_table
from cmg.data.hdf5 import hdf5_array, open_hdf5, reading, texts
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output, read_text_input
from cmg.utils.limits import LIMITS

FORMAT = "cmg-text-1"
WORDS = 10                              # the encoder uses the first ten kept words
VOCABULARIES = ("all", "cnt")
KEPT = "kept"
# GluonNLP swapped the special tokens of Google's vocab.txt to the front; all other entries have the same index.
GLUON_SPECIALS = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4,
                  "[unused0]": 100, "[unused1]": 101, "[unused2]": 102, "[unused3]": 103}


class Sentence:
    """One encoded prompt: its words, their vectors (n, width) and their vocabulary indices (n), 0 if there is none.

    As in bert-embedding, a word joins its pieces, and its vector is their mean. With `is_pieces` the words are the
    pieces themselves, with their indices in BERT's own vocabulary.
    """

    def __init__(self, words, vectors, indices, is_pieces=False):
        self.is_pieces = is_pieces
        self.words, self.indices = list(words), [int(i) for i in indices]
        self.vectors = np.asarray(vectors, np.float32).reshape(len(self.words), -1 if self.words else 0)


def word_index(word, vocabulary):
    """Index of a word in the vocabulary order of bert-embedding (GluonNLP); 0, the index of [UNK], if it has none.

    Args:
        word: a token in lower case.
        vocabulary: token -> line number of BERT's vocab.txt.
    """
    return GLUON_SPECIALS[word] if word in GLUON_SPECIALS else vocabulary.get(word, 0)


def read_vocabulary(path):
    """BERT's vocab.txt (one token per line, index = line number) as a dict token -> index."""
    try:
        tokens = [line.rstrip("\r") for line in read_text_input(path, LIMITS.list_bytes).split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the vocab.txt of bert-base-uncased; pass that "
                         "file or a tokenizer's folder with --vocab") from None
    while tokens and not tokens[-1]:
        tokens.pop()
    if "[UNK]" not in tokens or len(set(tokens)) != len(tokens):
        raise InputError(f"{path}: {len(tokens)} lines, not a BERT vocabulary ([UNK] is missing or a token occurs "
                         "twice); expected the vocab.txt of bert-base-uncased; download it from the model's page")
    return {token: k for k, token in enumerate(tokens)}


def word_reasons(sentence, text_vocabulary, counts=None):
    """Why each word is kept or dropped: `KEPT`, or a reason as text.

    Args:
        sentence: a Sentence.
        text_vocabulary: "all" keeps every word, "cnt" drops those not in `counts`, as published.
        counts: the word list for "cnt", vocabulary index -> dense index; a dense index of 0 stands for unknown.
    """
    reasons, kept = [], 0
    for word, index in zip(sentence.words, sentence.indices):
        if sentence.is_pieces and text_vocabulary == "cnt" and (index == 0 or index not in counts):
            reasons.append("not in the word list")
        elif not sentence.is_pieces and text_vocabulary == "cnt" and index == 0:
            reasons.append("not a single entry of BERT's vocabulary")
        elif not sentence.is_pieces and text_vocabulary == "cnt" and counts.get(index, 0) == 0:
            reasons.append("not in the word list (cnt.pkl)")
        elif not sentence.is_pieces and not any(letter.isalnum() for letter in word):
            reasons.append("punctuation")
        elif kept == WORDS:
            reasons.append("after the tenth kept word")
        else:
            reasons.append(KEPT)
            kept += 1
    return reasons


def read_prompts(path, flag="--path"):
    """Read a prompts csv: dict label -> sentence, in file order. As published, the first row of a label is used."""
    table = read_table(path, ("label", "prompt"), flag=flag)
    prompts = {}
    for label, prompt in zip(table["label"], table["prompt"]):
        prompts.setdefault(label, prompt)
    return prompts


def write_text_features(path, prompts, sentences, backend, model="", text_vocabulary="all", counts_file=None,
                        prompts_file="", unit="words"):
    """Write the text feature file atomically.

    Args:
        path: file to write, *.h5.
        prompts: dict label -> sentence.
        sentences: a Sentence for each of them, in the same order.
        backend: source of the vectors: "transformers", "bert-embedding" or "hashing".
        model: folder or name of the model.
        text_vocabulary: "all" or "cnt".
        counts_file: word list (cnt.pkl) for "cnt".
        prompts_file: source of the sentences.
        unit: "words" or "pieces".

    Returns:
        Labels of the sentences without any kept word, whose vectors are zero.

    Raises:
        InputError: unknown vocabulary, no words, vectors of several widths or not finite, or the file cannot be
            written.
    """
    if text_vocabulary not in VOCABULARIES:
        raise InputError(f"text vocabulary '{text_vocabulary}'; expected one of {', '.join(VOCABULARIES)}; see "
                         "--text_vocabulary")
    counts = read_counts(counts_file) if text_vocabulary == "cnt" else None
    widths = sorted({sentence.vectors.shape[1] for sentence in sentences if sentence.words})
    if len(widths) != 1:
        raise InputError(f"{model or backend}: word vectors of {' and '.join(map(str, widths)) or 'no'} numbers; "
                         "expected one width for all words of all prompts; check the prompts and the model")
    width = widths[0]
    vectors = np.zeros((len(prompts), WORDS, width), np.float32)
    rows = {"words": [], "word_sentence": [], "word_index": [], "word_kept": [], "word_reason": []}
    empty = []
    for n, (label, sentence) in enumerate(zip(prompts, sentences)):
        if not np.isfinite(sentence.vectors).all():
            raise InputError(f"{model or backend}: word vectors of '{label}' are not finite; check the model's weights")
        reasons = word_reasons(sentence, text_vocabulary, counts)
        kept = np.array([reason == KEPT for reason in reasons], bool)
        if kept.any():
            vectors[n, :kept.sum()] = sentence.vectors[kept]
        else:
            empty.append(label)
        rows["words"] += sentence.words
        rows["word_sentence"] += [n] * len(sentence.words)
        rows["word_index"] += sentence.indices
        rows["word_kept"] += kept.tolist()
        rows["word_reason"] += reasons
    words = [s.vectors for s in sentences if s.words]
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, value in (("format", FORMAT), ("backend", backend), ("model", str(model)), ("width", width),
                            ("text_vocabulary", text_vocabulary), ("unit", unit), ("prompts_file", str(prompts_file))):
            file.attrs[name] = value
        file["labels"], file["prompts"] = _texts(prompts.keys()), _texts(prompts.values())
        file["vectors"] = vectors
        file["words"], file["word_reason"] = _texts(rows["words"]), _texts(rows["word_reason"])
        file["word_sentence"] = np.array(rows["word_sentence"], np.int32)
        file["word_index"] = np.array(rows["word_index"], np.int32)
        file["word_kept"] = np.array(rows["word_kept"], bool)
        file["word_vectors"] = np.concatenate(words)
    with atomic_output(path, remedy="choose another path with --out or --path") as file:
        file.write(content.getvalue())
    return empty


def read_sentences(path):
    """Read the sentences that a text feature file was written from.

    Returns:
        (dict sentence -> Sentence, {"backend", "model", "unit"}), the arguments of `write_text_features`.

    Raises:
        InputError: see `TextFeatures`; or the arrays of words are missing or inconsistent.
    """
    prompts = TextFeatures(path).prompts
    with open_hdf5(path) as file, reading(path, "words of the prompts"):
        words = texts(hdf5_array(file, "words", "OS", 1))
        owner, index = (hdf5_array(file, name, "iu", 1)[:] for name in ("word_sentence", "word_index"))
        vectors = hdf5_array(file, "word_vectors", "f", 2)[:]
        about = {name: str(file.attrs.get(name, "")) for name in ("backend", "model", "unit")}
    if not len(words) == len(owner) == len(index) == len(vectors):
        raise InputError(f"{path}: {len(words)} words with {len(vectors)} vectors; expected one each; create it "
                         "with `python prepare.py text`")
    rows = [np.flatnonzero(owner == n) for n in range(len(prompts))]
    return {prompt: Sentence([words[k] for k in of], vectors[of], index[of], about["unit"] == "pieces")
            for prompt, of in zip(prompts, rows)}, about


def _texts(values):
    return np.array([value.encode("utf-8") for value in values], dtype=h5py.special_dtype(vlen=bytes))


class TextFeatures:
    """Word vectors by class label or sentence.

    Args:
        path: file written by `prepare.py text`.

    Raises:
        InputError: the file is missing, has another format or wrong shapes, or values that are not finite.
    """

    def __init__(self, path):
        self.path = path
        remedy = "create it with `python prepare.py text`"
        if not os.path.exists(str(path)):
            raise InputError(f"{path}: not found; expected word vectors of the prompts; {remedy}")
        try:
            self._read(path)
        except InputError as error:
            raise InputError(f"{error}; {remedy}") from None
        if not np.isfinite(self.vectors).all():
            raise InputError(f"{path}: some vectors are NaN or infinite; expected finite numbers; {remedy}")
        self._row = {prompt: k for k, prompt in enumerate(self.prompts)}
        self._row.update((label, k) for k, label in enumerate(self.labels))

    def _read(self, path):
        """Read and check the contents of the file; InputError if they are invalid."""
        with open_hdf5(path) as file, reading(path, "word vectors of the prompts"):
            if file.attrs.get("format") != FORMAT:
                raise InputError(f"{path}: format '{str(file.attrs.get('format'))[:40]}'; expected a text feature file "
                                 f"({FORMAT})")
            self.backend = str(file.attrs["backend"])
            self.text_vocabulary = str(file.attrs["text_vocabulary"])
            self.unit = str(file.attrs.get("unit", "words"))
            vectors = hdf5_array(file, "vectors", "f", 3)
            labels, prompts = (hdf5_array(file, name, "OS", 1) for name in ("labels", "prompts"))
            if not len(vectors) == len(labels) == len(prompts) or 0 in vectors.shape:
                raise InputError(f"{path}: vectors {vectors.shape} of {len(labels)} labels; expected (labels, words, "
                                 "width)")
            self.labels, self.prompts = texts(labels), texts(prompts)
            self.vectors = vectors[:].astype(np.float32)

    def __getitem__(self, key):
        """Word vectors (L, W) float32 of a class label or a sentence, padded with zeros."""
        return self.vectors[self.indices([key])[0]]

    def sentences(self, keys):
        """Sentences for class labels; sentences map to themselves."""
        return [self.prompts[row] for row in self.indices(keys)]

    def indices(self, keys):
        """Rows of `vectors` for labels or sentences.

        Raises:
            InputError: a key has no prompt.
        """
        unknown = sorted(set(keys) - set(self._row))
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise InputError(f"{self.path}: no prompt for '{unknown[0][:60]}'{more}; expected one for each class; "
                             "add it to the prompts csv and run `python prepare.py text` (with --manifest CSV for a "
                             "list of your own)")
        return [self._row[key] for key in keys]
