"""Prompts of a table of labels as word vectors: the published file, and one zip a clip for any width."""

from pathlib import Path

from dataset.text import WIDTH, Sentence, write_text_features
from dataset.text_backends import Bert, hashing_sentences
from extract.hub import HubText
from extract.output import write_whole, zip_bytes

PROMPTS = Path("text") / "prompts.h5"


class PromptText:
    """Word vectors of all prompts of a table.

    Args:
        name: "hashing", or a model of transformers by folder or name.
        labels: `lists.Labels`.
        device: torch device.
    Raises:
        InputError: no such model.
    """

    def __init__(self, name, labels, device):
        self.name, self.labels = name, labels
        self.of_clip = dict(zip(reversed(labels.ids), reversed(labels.sentences())))
        self.model = None if name == "hashing" else HubText(name, device)

    def record(self):
        """JSON values for the record of a run."""
        return self.model.record() if self.model else {"network": "hashing", "width": WIDTH}

    def write(self, folder, ids):
        """`text/prompts.h5`, where the width is the published one, and `text/zip/<id>.zip` (words, width) of each id.

        Returns:
            whether `prompts.h5` was written.
        """
        ids = [name for name in ids if name in self.of_clip]
        texts = list(dict.fromkeys(self.of_clip[name] for name in ids))
        if self.model is None:
            vectors = {text: sentence.vectors for text, sentence in zip(texts, hashing_sentences(texts))}
        else:
            vectors = {text: x for text, (_, x) in zip(texts, self.model.encode(texts))}
        for name in ids:
            if len(vectors[self.of_clip[name]]):
                write_whole(Path(folder) / "text" / "zip" / f"{name}.zip",
                             zip_bytes(name, vectors[self.of_clip[name]]))
        if self.record()["width"] != WIDTH:
            return False
        prompts = self.labels.prompts
        write_text_features(Path(folder) / PROMPTS, prompts, self._sentences(list(prompts.values())),
                            "transformers" if self.model else "hashing", self.name if self.model else "")
        return True

    def _sentences(self, texts):
        """As `prepare.py text` makes them: BERT as the published program cuts and glues it."""
        if self.model is None:
            return hashing_sentences(texts)
        if self.model.record()["type"] == "bert":
            return Bert(self.name).sentences(texts)
        return [Sentence(words, x, [0] * len(words)) for words, x in self.model.encode(texts)]
