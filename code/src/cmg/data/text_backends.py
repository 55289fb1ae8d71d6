"""Encode sentences as word vectors: BERT through transformers, or hashed character n-grams for the demo.

Both define words like bert-embedding 1.0.1: lower case, accents stripped, punctuation split off, the pieces of a word
joined and their vectors averaged, 25 pieces per sentence with [CLS] and [SEP].
"""

import json
import re
from pathlib import Path

import numpy as np

from cmg.data.pretrained import from_pretrained
from cmg.data.text import Sentence, read_vocabulary, word_index
from cmg.utils.errors import InputError
from cmg.utils.files import read_text_input
from cmg.utils.limits import LIMITS

LONGEST_TEXT = 512              # maximum of pieces in BERT's input
MAX_PIECES = 25                 # bert-embedding's max_seq_length, [CLS] and [SEP] included
LONGEST_WORD = 200              # characters; a longer word becomes [UNK] there (transformers: 100)
BATCH = 64
HASHED = 768                    # width of a hashed word's vector, as in BERT
HUB_NAME = "bert-base-uncased"


def hashing_sentences(sentences, vocabulary=None):
    """Encode words as hashed character n-grams, without a download and equal on every machine. For demos, not results.

    Args:
        sentences: list of str.
        vocabulary: BERT's token -> index, only for the word list filter.
    Returns:
        one `Sentence` each, with word vectors (n, 768) of norm 1.
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    hashing = HashingVectorizer(n_features=HASHED, analyzer="char_wb", ngram_range=(2, 4), norm="l2")
    result = []
    for sentence in sentences:
        words = re.findall(r"\w+|[^\w\s]", sentence.lower())
        vectors = hashing.transform(words).toarray() if words else []
        result.append(Sentence(words, vectors, [word_index(word, vocabulary or {}) for word in words]))
    return result


class Bert:
    """bert-base-uncased, or another uncased BERT of any width, with bert-embedding's word semantics.

    Args:
        model: folder with the model and its tokenizer, or a name on the hub.
        pieces: keep all pieces of the sentence instead of joining them to words, like CoDAAR.
    Raises:
        InputError: no such model.
    """

    def __init__(self, model=HUB_NAME, pieces=False):
        from transformers import AutoModel, BertTokenizerFast
        self.pieces = pieces
        try:
            self.tokenizer = from_pretrained(BertTokenizerFast, model, do_lower_case=True)
            self.model = from_pretrained(AutoModel, model).float().eval()
        except InputError:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{model}: no BERT found ({str(error).splitlines()[0][:120]}); expected a folder with "
                             "config.json, weights and vocab.txt, or a name on the Hugging Face hub; download "
                             f"{HUB_NAME} and pass its folder with --model") from None
        self.vocabulary = self.tokenizer.get_vocab()
        self.tokenizer.backend_tokenizer.model.max_input_chars_per_word = LONGEST_WORD

    def sentences(self, texts):
        """Encode texts as `Sentence`s."""
        return [s for k in range(0, len(texts), BATCH) for s in self._batch(list(texts[k:k + BATCH]))]

    def _batch(self, texts):
        import torch
        longest = LONGEST_TEXT if self.pieces else MAX_PIECES
        batch = self.tokenizer(texts, max_length=longest, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = self.model(**batch).last_hidden_state.numpy()              # (B, pieces, width)
        made = self._keep_pieces if self.pieces else self._glue
        return [made(ids, mask, x) for ids, mask, x in zip(batch["input_ids"], batch["attention_mask"], states)]

    def _keep_pieces(self, ids, mask, states):
        """All pieces of a sentence except special tokens."""
        special = set(self.tokenizer.all_special_ids)
        kept = [n for n in range(int(mask.sum())) if int(ids[n]) not in special]
        return Sentence(self.tokenizer.convert_ids_to_tokens(ids[kept]), states[kept], ids[kept].tolist(), True)

    def _glue(self, ids, mask, states):
        """Words and mean vectors of a sentence, without [CLS], [SEP] and padding; [UNK] remains a word."""
        length = int(mask.sum())
        words, vectors = [], []
        for piece, vector in zip(self.tokenizer.convert_ids_to_tokens(ids[1:length - 1]), states[1:length - 1]):
            if piece.startswith("##") and words:
                words[-1] += piece[2:]
                vectors[-1].append(vector)
            else:
                words.append(piece)
                vectors.append([vector])
        means = [np.mean(pieces, axis=0) for pieces in vectors]
        return Sentence(words, means, [word_index(w, self.vocabulary) for w in words])


def find_vocabulary(path):
    """Read BERT's token -> index from vocab.txt, or from a tokenizer's folder (vocab.txt or tokenizer.json)."""
    path = Path(path)
    if path.is_dir() and (path / "vocab.txt").exists():
        path = path / "vocab.txt"
    if not path.is_dir():
        return read_vocabulary(path)
    try:
        return dict(json.loads(read_text_input(path / "tokenizer.json", LIMITS.text_bytes))["model"]["vocab"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no vocab.txt, nor tokenizer.json of a WordPiece model ({type(error).__name__}); "
                         f"expected the folder of {HUB_NAME}; see --vocab") from None


def word_list(prompt_files, prompts, vocabulary):
    """Build the word list of prompts in the published format (cnt.pkl).

    Args:
        prompt_files: names for messages, one for each of `prompts`.
        prompts: list of dict label -> sentence.
        vocabulary: BERT's token -> index.
    Returns:
        dict index -> dense index, starting with 0 -> 0, then the words by first occurrence.
    Raises:
        InputError: a word is not a single entry of the vocabulary.
    """
    counts = {0: 0}
    for path, sentences in zip(prompt_files, prompts):
        for label, sentence in sentences.items():
            for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
                index = word_index(word, vocabulary)
                if index == 0:
                    raise InputError(f"{path}: '{word}' in the prompt of '{label}' is not a single entry of BERT's "
                                     "vocabulary; expected whole entries; use another word")
                counts.setdefault(index, len(counts))
    return counts
