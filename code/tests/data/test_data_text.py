"""Prompts to word vectors: bert-embedding's words, the word list, the file, and the exporter for old environments."""

import ast
import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import prepare
from cmg.data.archive import read_counts
from cmg.data.csv import read_classes, read_table
from cmg.data.text import (
    KEPT,
    Sentence,
    TextFeatures,
    read_prompts,
    read_vocabulary,
    word_index,
    word_reasons,
    write_text_features,
)
from cmg.data.text_backends import Bert, find_vocabulary, hashing_sentences, word_list
from conftest import ROOT, message
from data_trees import hashed_text

PROMPTS = {"dog": "a dog is barking near the red car", "cat": "the repetitive pleading meow of a hungry cat"}
SRC = ROOT / "code" / "src"
SHIPPED = SRC / "cmg" / "data" / "prompts"


@pytest.fixture(scope="session")
def vocab(annotations):
    return annotations / "text" / "bert_uncased_vocab.txt"


@pytest.fixture(scope="session")
def bert(tmp_path_factory, vocab):
    """Folder of a random BERT of one layer with the real vocabulary."""
    import torch
    import transformers
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=1, intermediate_size=16)
    transformers.BertModel(config).save_pretrained(folder)
    shutil.copy(vocab, folder / "vocab.txt")
    return folder


# --------------------------------------------------------------------------------------------- our own prompts
@pytest.mark.parametrize("name, count", [("vggsound", 141), ("ave", 28), ("ucf_vggsound", 16), ("avsbench", 23)])
def test_shipped_prompts(name, count):
    prompts = read_prompts(SHIPPED / f"{name}.csv")
    assert len(prompts) == count == len(set(prompts.values()))
    for sentence in prompts.values():
        assert re.fullmatch(r"[a-z]+( [a-z]+){8,9}", sentence), sentence        # they fit the encoder


def test_shipped_prompts_name_the_real_classes(annotations):
    released = annotations / "released"
    lists = {"vggsound": read_classes(released / "vggsound40k" / "VggsoundAVEL40kCategories.txt"),
             "ave": read_classes(annotations / "ave" / "categories.txt"),
             "ucf_vggsound": read_classes(released / "UCF101" / "VGGSoundsameUCF101.txt"),
             "avsbench": read_table(released / "AVSBench" / "AVSBenchCategories2Prompts.csv", ("label",))["label"]}
    for name, classes in lists.items():
        assert sorted(read_prompts(SHIPPED / f"{name}.csv")) == sorted(classes)


def test_shipped_prompts_are_not_the_released_ones(annotations):
    path = annotations / "released" / "vggsound40k" / "vggsoundCategories2Prompts.csv"
    theirs = {x.lower().rstrip(".") for x in read_prompts(path).values()}
    ours = set(read_prompts(SHIPPED / "vggsound.csv").values())
    assert not ours & theirs


def test_cnt_is_made_from_our_prompts(vocab, tmp_path):
    """The committed file comes out again to the byte, in the published form, and keeps every word of our prompts."""
    prepare.main(["vocabulary", "--vocab", str(vocab), "--out", str(tmp_path / "cnt.pkl")])
    assert (tmp_path / "cnt.pkl").read_bytes() == (ROOT / "cnt.pkl").read_bytes()
    counts, vocabulary = read_counts(ROOT / "cnt.pkl"), read_vocabulary(vocab)
    assert list(counts.items())[0] == (0, 0) and list(counts.values()) == list(range(len(counts)))
    assert pickle.load(open(ROOT / "cnt.pkl", "rb")) == counts
    for name in ("vggsound", "ave", "ucf_vggsound", "avsbench"):
        for sentence in read_prompts(SHIPPED / f"{name}.csv").values():
            for word in sentence.split():
                assert word_index(word, vocabulary) and counts[word_index(word, vocabulary)]


def test_a_word_without_an_entry_is_named(vocab):
    text = message(word_list, ["p.csv"], [{"x": "a theremin"}], find_vocabulary(vocab))
    assert "p.csv: 'theremin' in the prompt of 'x'" in text


# ------------------------------------------------------------------------------------------------- transformers
def test_words_of_the_worked_cases(bert, annotations):
    """Words, vocabulary indices and kept words of ten sentences, worked out apart from this program."""
    counts = {int(k): n for k, n in json.loads((annotations / "cnt_vocab.json").read_text()).items()}
    with open(annotations / "text" / "prompt_filter_examples.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 10
    for row, sentence in zip(rows, Bert(bert).sentences([row["prompt"] for row in rows])):
        assert sentence.words == row["words"].split()
        assert sentence.indices == [int(index) for index in row["vocab_index"].split()]
        reasons = word_reasons(sentence, "cnt", counts)
        kept = [word for word, reason in zip(sentence.words, reasons) if reason == KEPT]
        assert kept == row["kept_words"].split()[:10]
        dense = [counts[i] for i, reason in zip(sentence.indices, reasons) if reason == KEPT]
        assert dense == [int(index) for index in row["dense_index"].split()][:10]


def test_vectors_are_means_over_pieces(bert):
    """Against the model called piece by piece, alone and in a batch with a longer sentence."""
    import torch
    encoder = Bert(bert)
    text = "a theremin joyful"                                  # the ##min, joy ##ful
    with torch.inference_mode():
        ids = [encoder.vocabulary[piece] for piece in "[CLS] a there ##min joy ##ful [SEP]".split()]
        x = encoder.model(torch.tensor([ids])).last_hidden_state[0].numpy()
    expected = np.stack([x[1], (x[2] + x[3]) / 2, (x[4] + x[5]) / 2])
    for batch in ([text], [text, "one two three four five six seven eight nine ten"]):
        sentence = encoder.sentences(batch)[0]
        assert sentence.words == ["a", "theremin", "joyful"]
        np.testing.assert_allclose(sentence.vectors, expected, atol=2e-6)


def test_25_pieces_long_words_and_unknown_ones(bert):
    encoder = Bert(bert)
    long, cut, odd, empty = encoder.sentences(
        ["dog " * 40, "dog " * 22 + "theremin", "a " + "b" * 150 + " " + "b" * 201 + " Café!", ""])
    assert long.words == ["dog"] * 23                           # 25 with [CLS] and [SEP]
    assert cut.words == ["dog"] * 22 + ["there"] and cut.indices[-1] > 0      # the cut makes a word of a piece
    assert odd.words[0] == "a" and odd.words[1].startswith("b") and odd.indices[1] == 0
    unknown = encoder.sentences(["b" * 201 + " Café!"])[0]
    assert unknown.words == ["[UNK]", "cafe", "!"] and unknown.indices[0] == 0
    assert empty.words == [] and empty.vectors.size == 0


def test_special_tokens_change_places():
    vocabulary = {"[PAD]": 0, "[unused0]": 1, "[UNK]": 100, "dog": 3899}
    assert [word_index(w, vocabulary) for w in ("[UNK]", "[PAD]", "[unused0]", "dog", "cat")] == [0, 1, 100, 3899, 0]


def test_a_folder_without_bert_is_named(tmp_path, vocab):
    assert str(tmp_path) in message(Bert, str(tmp_path))
    assert "no vocab.txt" in message(find_vocabulary, tmp_path)
    assert "not a BERT vocabulary" in message(read_vocabulary, ROOT / "LICENSE")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 7}}}))
    assert find_vocabulary(tmp_path) == {"a": 7}
    shutil.copy(vocab, tmp_path / "vocab.txt")
    assert find_vocabulary(tmp_path)["dog"] == 3899


# ----------------------------------------------------------------------------------------------------- the file
def sentence(words, start=1):
    numbers = range(start, start + len(words))
    return Sentence(words, np.array(numbers)[:, None] * np.ones(768), numbers)


def test_file_keeps_words_reasons_and_vectors(tmp_path):
    counts = tmp_path / "cnt.pkl"
    counts.write_bytes(pickle.dumps({0: 0} | {k: k for k in range(1, 30) if k % 2}))
    words = [f"w{k}" for k in range(1, 25)] + ["."]
    path = tmp_path / "below" / "t.h5"
    empty = write_text_features(path, {"a": "first", "b": "second"}, [sentence(words), sentence(["x"], 2)], "hashing",
                                text_vocabulary="cnt", counts_file=counts)
    assert empty == ["b"]
    text = TextFeatures(path)
    assert text.text_vocabulary == "cnt" and np.array_equal(text["a"], text["first"])
    assert text["a"][:, 0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19] and not text["b"].any()
    with h5py.File(path) as file:
        reasons = dict(zip(file["words"].asstr()[:], file["word_reason"].asstr()[:]))
        assert reasons["w1"] == "kept" and "word list" in reasons["w2"] and "tenth" in reasons["w21"]
        assert reasons["."] == "punctuation" and file["word_vectors"].shape == (26, 768)
    write_text_features(path, {"a": "first"}, [sentence(["w1", ".", "w2"])], "hashing")
    assert TextFeatures(path)["a"][:, 0].tolist() == [1, 3] + [0] * 8          # every word, no punctuation
    assert not list(path.parent.glob("*.tmp"))


def test_broken_text_files_are_named(tmp_path):
    path = tmp_path / "t.h5"
    assert "not found" in message(TextFeatures, path)
    hashed_text(path, PROMPTS)
    assert "no prompt for 'cow'" in message(TextFeatures(path).__getitem__, "cow")
    good = path.read_bytes()
    path.write_bytes(good[:3000])
    assert "not a valid HDF5 file" in message(TextFeatures, path)
    for change, finding in ((lambda f: f.attrs.__setitem__("format", "x"), "format 'x'"),
                            (lambda f: f.__delitem__("labels"), "no dataset 'labels'"),
                            (lambda f: f["vectors"].__setitem__((0, 0, 0), np.nan), "NaN"),
                            (lambda f: (f.__delitem__("vectors"), f.__setitem__("vectors", np.zeros((2, 300)))),
                             "(2, 300)")):
        path.write_bytes(good)
        with h5py.File(path, "r+") as file:
            change(file)
        text = message(TextFeatures, path)
        assert str(path) in text and finding in text and "prepare.py text" in text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.h5"
    hashed_text(path, PROMPTS)
    old = path.read_bytes()
    good = Sentence(["x"], [np.ones(768)], [1])
    for other, finding in ((Sentence(["x"], [np.ones(300)], [1]), "300 and 768 numbers"),
                           (Sentence(["x"], [np.full(768, np.nan)], [1]), "not finite")):
        assert finding in message(write_text_features, path, {"a": "x", "b": "y"}, [good, other], "b")
    assert "no numbers" in message(write_text_features, path, {"a": "!"}, [Sentence([], [], [])], "b")
    assert path.read_bytes() == old


def test_hashing_is_the_same_everywhere_and_tells_words_apart():
    first, second = hashing_sentences(["A dog, barking", "a dog"])
    assert first.words == ["a", "dog", ",", "barking"] and first.vectors.shape == (4, 768)
    assert np.array_equal(first.vectors[1], second.vectors[1])
    np.testing.assert_allclose(np.linalg.norm(first.vectors[[0, 1, 3]], axis=1), 1, rtol=1e-6)
    assert first.vectors[1] @ first.vectors[3] < 0.5


# ------------------------------------------------------------------------------------------------- prepare text
def test_prepare_text(tmp_path, bert, monkeypatch, capsys):
    """Our prompts where the user has none, the released file where it is there, both vocabularies."""
    monkeypatch.delenv("CMG_DATA", raising=False)
    place = tmp_path / "vggsound40k" / "feature" / "text" / "prompts.h5"
    call = ["text", "--dataset", "vggsound", "--data_root", str(tmp_path), "--model", str(bert)]
    prepare.main(call)
    text = TextFeatures(place)
    assert len(text.labels) == 141 and text.backend == "transformers" and text["yodelling"].all(1).sum() == 10
    prepare.main([*call, "--text_vocabulary", "cnt"])           # our word list keeps all our words
    assert TextFeatures(place).text_vocabulary == "cnt" and np.array_equal(TextFeatures(place).vectors, text.vectors)
    released = tmp_path / "vggsound40k" / "data" / "vggsoundCategories2Prompts.csv"
    released.parent.mkdir(parents=True)
    released.write_text("label,prompt\ndog,A theremin sounds\ncat,theremin\n")
    prepare.main([*call, "--text_vocabulary", "cnt"])
    text = TextFeatures(place)
    assert text.labels == ["dog", "cat"] and text["dog"].any(1).sum() == 2 and not text["cat"].any()
    assert "1 prompts keep no word and are zero: cat" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ word pieces
@pytest.mark.parametrize("dataset, file, pieces, cut", [
    ("vggsound", "vggsound40k/vggsoundCategories2Prompts.csv", 1473, 65),
    ("avs", "AVSBench/AVSBenchCategories2Prompts.csv", 239, 12)])
def test_pieces_of_the_released_prompts(tmp_path, bert, annotations, dataset, file, pieces, cut):
    """The filter of CoDAAR's program drops none of them; longer prompts are cut at ten."""
    counts = json.loads((annotations / "released" / "cnt_new_vocab.json").read_text())
    (tmp_path / "cnt.pkl").write_bytes(pickle.dumps({int(k): v for k, v in counts.items()}))
    common = ["text", "--pieces", "--dataset", dataset, "--model", str(bert), "--prompts",
              str(annotations / "released" / file)]
    prepare.main([*common, "--out", str(tmp_path / "all.h5")])
    prepare.main([*common, "--out", str(tmp_path / "cnt.h5"), "--text_vocabulary", "cnt", "--cnt",
                  str(tmp_path / "cnt.pkl")])
    every, filtered = TextFeatures(tmp_path / "all.h5"), TextFeatures(tmp_path / "cnt.h5")
    assert every.unit == "pieces" and np.array_equal(every.vectors, filtered.vectors)
    with h5py.File(tmp_path / "cnt.h5") as stored:
        assert len(stored["words"]) == pieces
        assert set(stored["word_reason"].asstr()[:]) == {KEPT, "after the tenth kept word"}
        lengths = np.bincount(stored["word_sentence"][:])
    assert (lengths > 10).sum() == cut


def test_pieces_are_the_models_states_and_not_glued(bert):
    """All of a long sentence, punctuation too; the special tokens are left out."""
    import torch
    text = "theremin, " * 20
    words, pieces = Bert(bert).sentences([text])[0], Bert(bert, pieces=True).sentences([text, "a dog"])
    encoder = Bert(bert)
    batch = encoder.tokenizer([text], return_tensors="pt")
    with torch.inference_mode():
        states = encoder.model(**batch).last_hidden_state[0, 1:-1].numpy()
    assert "theremin" in words.words and any(piece.startswith("##") for piece in pieces[0].words)
    assert pieces[0].indices == batch["input_ids"][0, 1:-1].tolist() and len(pieces[0].words) > 25
    np.testing.assert_allclose(pieces[0].vectors, states, atol=1e-5)
    assert pieces[1].words == ["a", "dog"]
    assert word_reasons(pieces[0], "all")[:11] == [KEPT] * 10 + ["after the tenth kept word"]
    counts = {piece: 1 for piece in pieces[0].indices[1:]} | {0: 0}
    first = pieces[0].indices[0]
    reasons = word_reasons(pieces[0], "cnt", {k: v for k, v in counts.items() if k != first})
    assert reasons[0] == "not in the word list" and reasons[1] == KEPT


def test_pieces_have_a_file_of_their_own(tmp_path, bert):
    assert "--pieces --backend hashing" in message(prepare.main, [
        "text", "--dataset", "ave", "--data_root", str(tmp_path), "--pieces", "--backend", "hashing"])
    prepare.main(["text", "--dataset", "ave", "--data_root", str(tmp_path), "--model", str(bert), "--pieces"])
    assert TextFeatures(tmp_path / "AVE" / "feature" / "text" / "prompts_pieces.h5").unit == "pieces"
    assert not (tmp_path / "AVE" / "feature" / "text" / "prompts.h5").exists()


# ------------------------------------------------------------------------------- the exporter for Python 3.7
EXPORTER = ["cmg/prepare/export_bert_embedding.py", "cmg/data/text.py", "cmg/data/csv.py", "cmg/data/archive.py",
            "cmg/data/hdf5.py", "cmg/utils/errors.py", "cmg/utils/files.py", "cmg/utils/limits.py",
            "cmg/utils/locks.py", "cmg/utils/signals.py", "cmg/utils/console.py"]
OURS = {path[:-3].replace("/", ".") for path in EXPORTER}


@pytest.mark.parametrize("name", EXPORTER)
def test_exporter_is_python_3_7_and_needs_little(name):
    tree = ast.parse((SRC / name).read_text(), feature_version=(3, 7))
    names = set()
    for node in ast.walk(tree):
        assert not isinstance(node, ast.NamedExpr)
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(f"{node.module}.{node.names[0].name}" if f"{node.module}.{node.names[0].name}" in OURS else
                      node.module if node.module.startswith("cmg.") else node.module.split(".")[0])
        elif isinstance(node, ast.Attribute):
            assert node.attr not in ("removesuffix", "removeprefix")      # of Python 3.9
    assert names - OURS - set(sys.stdlib_module_names) <= {"numpy", "h5py", "bert_embedding"}


FAKE = '''
import numpy as np
class Vocab:
    token_to_idx = type("Default", (dict,), {"__missing__": lambda self, key: 0})(a=1037, dog=3899)
class BertEmbedding:
    vocab = Vocab()
    def __call__(self, sentences):
        return [(s.split(), [np.full(768, len(w), np.float32) for w in s.split()]) for s in sentences]
'''
BLOCK = '''
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "pandas", "sklearn", "transformers", "tqdm", "scipy"}:
            raise ImportError("not in the old environment: " + name)
sys.meta_path.insert(0, Block())
'''


def test_exporter_runs_with_bert_embedding_numpy_and_h5py_alone(tmp_path):
    """A stand-in with bert-embedding's interface; everything else that the project needs is made unimportable."""
    (tmp_path / "bert_embedding.py").write_text(FAKE)
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    (tmp_path / "p.csv").write_text("label,prompt\ndog,a dog barking\n")
    (tmp_path / "cnt.pkl").write_bytes(pickle.dumps({0: 0, 3899: 1}, protocol=3))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    call = [sys.executable, "-m", "cmg.prepare.export_bert_embedding", "--prompts", str(tmp_path / "p.csv"), "--out",
            str(tmp_path / "t.h5")]
    subprocess.run(call, cwd=SRC, env=env, check=True)
    assert TextFeatures(tmp_path / "t.h5")["dog"][:4, 0].tolist() == [1, 3, 7, 0]
    filtered = [*call, "--text_vocabulary", "cnt", "--cnt", str(tmp_path / "cnt.pkl")]
    subprocess.run(filtered, cwd=SRC, env=env, check=True)
    assert TextFeatures(tmp_path / "t.h5")["dog"][:2, 0].tolist() == [3, 0]
    (tmp_path / "bert_embedding.py").unlink()
    found = subprocess.run(call, cwd=SRC, env=env, capture_output=True, text=True)
    assert found.returncode == 2 and "bert-embedding is not installed" in found.stderr and found.stderr.count("\n") == 1


def test_vocabulary_that_is_absent_is_named(tmp_path):
    assert "--vocab" in message(prepare.main, ["text", "--backend", "hashing", "--text_vocabulary", "cnt", "--dataset",
                                               "ave", "--data_root", str(tmp_path)])
    assert "absent.txt" in message(prepare.main, ["vocabulary", "--vocab", str(Path(tmp_path) / "absent.txt")])
