"""Encode the prompts of a table of labels as word vectors: the published file, and one zip per clip."""

from pathlib import Path

from cmg.data.manifest import sentences_in
from cmg.data.text import Sentence, write_text_features
from cmg.data.text_backends import HASHED, Bert, hashing_sentences
from cmg.extract.custom import CustomWords, is_custom
from cmg.extract.hub import HubText
from cmg.extract.output import write_whole, zip_bytes

PROMPTS = Path("text") / "prompts.h5"


def encode_sentences(model, texts):
    """Encode texts as `Sentence`s with a `HubText` or `CustomWords`. An uncased BERT splits and joins words like the
    published program, other models like their own tokenizer."""
    if model.is_uncased_bert:
        return Bert(model.name).sentences(texts)
    return [Sentence(words, x, [0] * len(words)) for words, x in model.encode(texts)]


class PromptText:
    """Word vectors of all prompts of a table.

    Args:
        name: "hashing", a transformers model by folder or name, an ONNX file, or a function.
        labels: `lists.Labels`.
        device: torch device.
        front_end: front end of an ONNX file, key -> value (see `front_ends`).
    Raises:
        InputError: no such model.
    """

    def __init__(self, name, labels, device, front_end=None):
        self.name, self.labels = name, labels
        self.of_clip = {}                                   # id -> its sentences
        for clip, cell in zip(labels.ids, labels.sentences()):
            self.of_clip[clip] = list(dict.fromkeys(self.of_clip.get(clip, []) + sentences_in(cell)))
        self.model = None
        if name != "hashing":
            self.model = CustomWords(name, device, front_end) if is_custom(name) else HubText(name, device)

    def record(self):
        """JSON values for the record of a run."""
        return self.model.record() if self.model else {"network": "hashing", "width": HASHED}

    def write(self, folder, ids):
        """Write `text/prompts.h5` for the classes and all sentences, and `text/zip/<id>.zip` (words, width) for each
        id's first sentence."""
        ids = [name for name in ids if name in self.of_clip]
        texts = list(dict.fromkeys(self.of_clip[name][0] for name in ids))
        if self.model is None:
            vectors = {text: sentence.vectors for text, sentence in zip(texts, hashing_sentences(texts))}
        else:
            vectors = {text: x for text, (_, x) in zip(texts, self.model.encode(texts))}
        for name in ids:
            if len(vectors[self.of_clip[name][0]]):
                write_whole(Path(folder) / "text" / "zip" / f"{name}.zip",
                             zip_bytes(name, vectors[self.of_clip[name][0]]))
        prompts, known = dict(self.labels.prompts), set(self.labels.prompts.values())
        prompts |= {sentence: sentence for of_clip in self.of_clip.values() for sentence in of_clip
                    if sentence not in known}
        write_text_features(Path(folder) / PROMPTS, prompts, self._sentences(list(prompts.values())),
                            self.record()["network"], self.name if self.model else "")

    def _sentences(self, texts):
        return encode_sentences(self.model, texts) if self.model else hashing_sentences(texts)
