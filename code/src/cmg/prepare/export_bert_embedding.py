"""Export text features with bert-embedding itself, to reproduce the published vectors exactly.

bert-embedding needs MXNet and an old NumPy, so this program runs in a separate environment with Python 3.7 and needs
only bert-embedding, NumPy and h5py:

    python3.7 -m venv old && old/bin/pip install bert-embedding==1.0.1 h5py
    cd code/src && ../../old/bin/python -m cmg.prepare.export_bert_embedding \\
        --prompts cmg/data/prompts/vggsound.csv --out ../../data/vggsound40k/feature/text/prompts.h5
"""

import os

from cmg.data.text import VOCABULARIES, Sentence, read_prompts, write_text_features
from cmg.utils.errors import InputError, Parser, run


def bert_sentences(sentences):
    """Encode strings as `Sentence`s. Raises InputError if bert-embedding is not installed."""
    try:
        from bert_embedding import BertEmbedding
    except ImportError as error:
        raise InputError(f"bert-embedding is not installed ({error}); expected version 1.0.1; run `python -m "
                         "cmg.prepare.export_bert_embedding` in a Python 3.7 environment that has it, or use --backend "
                         "transformers") from None
    embedding = BertEmbedding()
    indices = embedding.vocab.token_to_idx          # unknown strings give 0
    return [Sentence(words, vectors, [indices[word] for word in words])
            for words, vectors in embedding(list(sentences))]


def main(argv=None):
    """Encode a prompts csv and write the text feature file."""
    parser = Parser(prog="python -m cmg.prepare.export_bert_embedding", description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", required=True, help="csv with the columns label, prompt")
    parser.add_argument("--out", required=True, help="text feature file to write (*.h5)")
    parser.add_argument("--text_vocabulary", choices=VOCABULARIES, default="all",
                        help="all: every word; cnt: only words in the word list, as published")
    parser.add_argument("--cnt", default=os.path.join("..", "..", "cnt.pkl"), help="word list for cnt")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    opts = parser.parse_args(argv)
    prompts = read_prompts(opts.prompts)
    empty = write_text_features(opts.out, prompts, bert_sentences(prompts.values()), "bert-embedding", "1.0.1",
                                opts.text_vocabulary, opts.cnt, opts.prompts)
    print(f"{opts.out}: {len(prompts)} prompts" + (f"; no word kept: {', '.join(empty)}" if empty else ""))


if __name__ == "__main__":
    run(main)
