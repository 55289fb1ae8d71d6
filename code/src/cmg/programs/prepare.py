"""Prepare real data: validate it, extract features, encode prompts, create the word list, derived lists and packs.

    python prepare.py check --dataset vggsound_AVT           report missing or invalid data: would a run work?
    python prepare.py lists                                  derived lists from the official annotation files
    python prepare.py text --model FOLDER                    prompts -> word vectors, once (bert-base-uncased)
    python prepare.py text --pieces                          the same as word pieces, for CoDAAR
    python prepare.py pack vggsound.audio vggsound.video     40,000 zips -> one HDF5 file per modality
    python prepare.py pack --manifest CSV --features ...     the same for your own features
    python prepare.py features VIDEOS --out DIR ...          videos -> features (code/docs/features.md)
    python prepare.py new DIR                                an example of your own data (code/docs/your-data.md)
    python prepare.py vocabulary --vocab vocab.txt           create cnt.pkl from our own prompts
"""

import argparse
import pickle
import shlex
from functools import partial
from importlib.resources import files
from pathlib import Path

from cmg import cli, own_data
from cmg.data.layout import DATA_PATHS
from cmg.data.manifest import CUSTOM, SPLITS, Manifest
from cmg.data.sets import pretraining
from cmg.data.sets.custom import is_prompts_file
from cmg.data.text import VOCABULARIES, read_prompts, write_text_features
from cmg.downstream.tasks import TASKS
from cmg.extract import command as extract_command
from cmg.models.config import seconds_or_auto
from cmg.prepare import check as checking
from cmg.prepare import pack as packing
from cmg.prepare import steps
from cmg.prepare.lists import write_lists
from cmg.programs.entry import announce
from cmg.utils.console import short_path
from cmg.utils.errors import InputError, Parser
from cmg.utils.files import atomic_output

PROMPTS = files("cmg.data") / "prompts"       # used if the user has none
TEXTS = ("vggsound", "ave", "ucf_vggsound", "avs")                      # datasets with class prompts
SHIPPED = {name: PROMPTS / f"{'avsbench' if name == 'avs' else name}.csv" for name in TEXTS}
CHECKS = tuple(dict.fromkeys((*pretraining.SETS, *TASKS, "avs")))
# --dataset all checks the first task of each family; tasks on the pretraining clips are covered by these.
ALL = ("vggsound_AVT", *{entry.family: name for name, entry in reversed(TASKS.items())
                         if entry.family not in ("vggsound", CUSTOM)}.values(), "avs")


def check(opts):
    """Print a report for each dataset; exit code 0 only if a run would work on all of them."""
    source = short_path(opts.manifest or opts.data_root)
    announce("prepare.py check", f"reading all data of a run on {opts.dataset}; data in {source}")
    opts.length, reports = 10 if opts.seconds == "auto" else opts.seconds, []
    for name in ALL if opts.dataset == "all" else (opts.dataset,):
        names, source, made = steps.of(name, opts)
        reports.append(checking.check(name, {dotted: opts.data_path(dotted) for dotted in names}, source, made))
        print(reports[-1])
    if any(report.problems for report in reports):
        return 1
    _print_next(_next_commands(opts))
    return 0


def _line(opts, script, *arguments):
    """A command to type in the current folder."""
    path = short_path(opts.local.scripts / script)
    runner = ["python"] if path.endswith(".py") else []
    return shlex.join([*runner, path if runner or "/" in path else f"./{path}", *map(str, arguments)])


def _own_commands(opts, manifest, features, modality=(), seconds=10):
    """The commands from the user's own clips to a result: `check`, pretraining, and heads if there are labels.

    Args:
        features, modality: modality -> path, and -> kind, the values of --features and --modality.
        seconds: value of --seconds.
    """
    saved = manifest.parent / "checkpoint"
    data = ["--manifest", manifest]
    data += [part for name, path in features.items() for part in ("--features", f"{name}={path}")]
    data += [part for name, kind in dict(modality).items() for part in ("--modality", f"{name}={kind}")]
    length = ["--seconds", seconds] if seconds != 10 else []
    found = [_line(opts, "prepare.py", "check", "--dataset", CUSTOM, *data, *length),
             _line(opts, "pretrain.sh", "--dataset_name", CUSTOM, *data, *length, "--model_save_path", saved)]
    is_labeled = "label" in Manifest(manifest).columns
    return found + [_line(opts, "custom.sh", *data, "--checkpoint", saved)] * is_labeled


def _print_next(commands):
    print("next: " + "\n      ".join(commands))


def _next_commands(opts):
    """The commands from the checked data to a result."""
    if opts.dataset == CUSTOM:
        return _own_commands(opts, opts.manifest, opts.features, opts.modality, opts.seconds)[1:]
    line = partial(_line, opts)
    data = [part for name, path in opts.path.items() for part in ("--path", f"{name}={path}")]
    data += ["--data_root", opts.data_root] if opts.data_root != cli.root("data", opts.local) else []
    saved = cli.root("checkpoints", opts.local) / opts.local.pretrained
    if opts.dataset == "avs":
        folder = Path("..") / "AVSBench_downstream" / "avs_scripts" / "avs_s4"
        return [line(folder / f"{name}.sh", "--checkpoint", saved, *data) for name in ("train", "test")]
    if opts.dataset in TASKS:
        return [line("pretrain.sh", *data), line(f"{opts.dataset}.sh", "--checkpoint", saved, *data)]
    chosen = [] if opts.dataset == "all" else ["--dataset_name", opts.dataset]
    return [line("pretrain.sh", *chosen, *data), line("evaluate.sh", saved, *data)]


def _own_text(opts):
    """Encode the sentences of a manifest: its prompts, or its labels if it has none."""
    announce("prepare.py text", f"sentences of {short_path(opts.prompts or opts.manifest)} by {opts.backend}")
    manifest = Manifest(opts.manifest)
    sentences = [prompt for clip in manifest.clips.values() for prompt in clip.prompts]
    labels = [label for clip in manifest.clips.values() for _, label, *_ in clip.events]
    given = read_prompts(opts.prompts, "--prompts") if opts.prompts else {}
    prompts = given or {sentence: sentence for sentence in sentences} or {
        label: label.replace("_", " ") for label in sorted(labels)}
    if not prompts:
        raise InputError(f"{opts.manifest}: no prompts and no labels; expected sentences to encode; add the column "
                         "'prompt', or pass --prompts FILE with label, prompt")
    out = opts.out or opts.manifest.parent / "prompts.h5"
    _write_text(opts, "manifest", prompts, _encoder(opts)(list(prompts.values())), opts.prompts or opts.manifest, out)
    print(f"  to use it: --features text={out}")


def text(opts):
    """Encode the prompts of the chosen datasets, or of a manifest."""
    if opts.manifest:
        return _own_text(opts)
    names = TEXTS if opts.dataset == "all" else (opts.dataset,)
    announce("prepare.py text", f"prompts of {', '.join(names)} by {opts.backend}; data in "
             f"{short_path(opts.data_root)}")
    if (opts.prompts or opts.out) and len(names) > 1:
        raise InputError("--prompts and --out: only for a single dataset, but --dataset is all; choose one with "
                         "--dataset")
    encode = None
    for name in names:
        own = opts.prompts or opts.data_path(f"{name}.prompts")
        source = own if opts.prompts or own.exists() else SHIPPED[name]
        out = opts.out or opts.data_path(f"{name}.text")
        prompts = read_prompts(source, "--prompts" if opts.prompts else "--path")
        encode = encode or _encoder(opts)
        _write_text(opts, name, prompts, encode(list(prompts.values())), source, out)


def _write_text(opts, name, prompts, sentences, source, out):
    empty = write_text_features(out, prompts, sentences, opts.backend,
                                opts.model if opts.backend == "transformers" else "", opts.text_vocabulary,
                                opts.cnt, source, "pieces" if opts.pieces else "words")
    print(f"{name}: {len(prompts)} prompts of {source} -> {out}")
    if empty:
        print(f"  warning: {len(empty)} prompts keep no word and are zero: {', '.join(empty)}")


def _encoder(opts):
    if opts.pieces and opts.backend != "transformers":
        raise InputError(f"--pieces --backend {opts.backend}: only BERT's tokenizer gives pieces; omit --backend or "
                         "--pieces")
    if opts.backend == "bert-embedding":
        from cmg.prepare.export_bert_embedding import bert_sentences
        return bert_sentences
    from cmg.data.text_backends import Bert, find_vocabulary, hashing_sentences
    if opts.backend == "transformers" and opts.pieces:
        return Bert(opts.model, pieces=True).sentences
    if opts.backend == "transformers":
        import torch

        from cmg.extract.hub import HubText
        from cmg.extract.text import encode_sentences
        model = HubText(opts.model, torch.device("cpu"))
        if opts.text_vocabulary == "cnt" and not model.is_uncased_bert:
            raise InputError(f"{opts.model}: --text_vocabulary cnt is a word list for bert-base-uncased; expected an "
                             "uncased BERT; omit --text_vocabulary")
        return partial(encode_sentences, model)
    if opts.text_vocabulary == "cnt" and not opts.vocab:
        raise InputError("--backend hashing --text_vocabulary cnt: hashing has no vocabulary; expected BERT's for the "
                         "word list; pass --vocab")
    vocabulary = find_vocabulary(opts.vocab) if opts.vocab else None
    return lambda sentences: hashing_sentences(sentences, vocabulary)


def vocabulary(opts):
    """Create the word list (cnt.pkl) from prompts, in the published format."""
    from cmg.data.text_backends import find_vocabulary, word_list
    files = opts.prompts or list(SHIPPED.values())
    counts = word_list(files, [read_prompts(file, "--prompts") for file in files], find_vocabulary(opts.vocab))
    with atomic_output(opts.out, remedy="choose another path with --out") as file:
        pickle.dump(counts, file, protocol=3)               # readable by Python 3.7 and older
    print(f"{opts.out}: {len(counts) - 1} words of {len(files)} prompt files")


def lists(opts):
    """Write derived lists from the official files that exist."""
    report = write_lists(opts.data_path, opts.overwrite)
    for path, happened in report:
        print(f"{path}: {happened}")
    if not report:
        names = ("ave.annotations", "ave.train_list", "avvp.official_audio", "avvp.official_visual", "vggsound.csv")
        raise InputError(f"{opts.data_root}: no official annotation file; expected at least one of "
                         f"{', '.join(str(opts.data_path(name)) for name in names)}; see data/README.md")


def pack(opts):
    """Pack features of published datasets or of a manifest's clips, and print how to use the packs."""
    if opts.manifest:
        sources = {f"{CUSTOM}.{name}": path for name, path in opts.features.items()}
        ids = Manifest(opts.manifest).ids(SPLITS)
    else:
        sources, ids = {name: opts.data_path(name) for name in opts.paths}, None
    announce("prepare.py pack", f"{', '.join(map(short_path, sources.values()))} as {opts.dtype}")
    if opts.out and len(sources) > 1:
        raise InputError("--out: only for the pack of a single modality, but several are given; pack them one by one")
    for dotted, source in sources.items():
        name = dotted.split(".")[1]
        if ids and is_prompts_file(source):
            print(f"{source}: already a single file, with word vectors by sentence")
            continue
        whole_name = source.with_name(f"{source.name}.pack.h5") if ids else source.parent / "pack.h5"
        out = opts.out or (whole_name if source.suffix != ".h5" else source.with_suffix(".pack.h5"))
        seconds = opts.seconds or ("auto" if ids else 10)
        if out.exists() and not opts.overwrite:
            print(f"{out}: exists, not changed (use --overwrite to write it again)")
        else:
            result = packing.pack(source, out, name, opts.dtype, None if seconds == "auto" else seconds,
                                  opts.on_bad_clip, ids, opts.own_modalities.get(name))
            print(f"{out}: {result.clips:,} clips, {result.size / 1e9:.2f} GB, {result.resumed:,} from an earlier run, "
                  f"{len(result.skipped):,} skipped")
            for reason in result.skipped.values():
                print(f"  skipped: {reason}")
        print(f"  to use it: --features {name}={out}" if ids else
              f"  to use it: --path {dotted}={out}   or   export CMG_{dotted.replace('.', '_').upper()}={out}")


def features(opts):
    """Extract features from videos, and print the commands from them to a result."""
    encoders = {"audio": opts.audio_encoder, "video": opts.video_encoder, "text": opts.text_encoder}
    made = [f"{modality} by {name}" for modality, name in encoders.items()
            if name and (modality == "text" or opts.modality in (modality, "both"))]
    announce("prepare.py features", f"{', '.join(made)} of {', '.join(map(short_path, opts.videos))}; written to "
             f"{short_path(opts.out or opts.data_root)}")
    code = extract_command.features(opts)
    from cmg.extract.lists import MANIFEST  # here, because both need PyTorch
    from cmg.extract.text import PROMPTS as SENTENCES
    manifest = opts.out / MANIFEST
    if opts.labels and opts.preset != "avsbench" and manifest.exists():
        paths = {m: opts.out / m / "zip" for m in ("audio", "video")} | {"text": opts.out / SENTENCES}
        paths = {m: path for m, path in paths.items() if path.exists()}
        has_seconds = opts.rows_per_second == 1 and opts.hop is None        # otherwise T is not in seconds
        _print_next(_own_commands(opts, manifest, paths, seconds=(has_seconds and opts.seconds) or "auto"))
    return code


def new(opts):
    """Write an example of your own data."""
    from cmg.demos import own_example  # here, because no other command draws clips
    for path in own_example.write(opts.folder, opts.local.scripts):
        print(path)
    print(f"next: bash {shlex.quote(str(opts.folder / 'run.sh'))}   (its commands are explained in README.md)")


FEATURES = [name for name in DATA_PATHS if name.split(".")[1] in ("audio", "video") and name != "avs.audio"]


def _features_name(text):
    """Argument type of the features of a published dataset."""
    if text not in FEATURES:
        raise argparse.ArgumentTypeError(f"'{text}' is not one of {', '.join(FEATURES)}")
    return text


def parser(local):
    """Arguments of prepare.py."""
    shared = Parser(add_help=False)
    shared.add_argument("--data_root", type=Path, default=cli.root("data", local),
                        help="root of all data (environment: CMG_DATA)")
    shared.add_argument("--path", type=cli.path_argument, action="append", default=[], metavar="NAME=FILE",
                        help="override a path of cmg/data/layout.py, e.g. vggsound.csv=/data/my.csv (repeatable)")
    shared.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    main_parser = Parser(prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(function, description):
        result = commands.add_parser(function.__name__, help=description, description=description, parents=[shared])
        result.set_defaults(function=function)
        return result

    one = command(check, "validate a dataset; exit code 0 only if a run would work")
    one.add_argument("--dataset", choices=("all", *CHECKS), default="all", help="dataset to check")
    one.add_argument("--seconds", type=seconds_or_auto, default=10, metavar="N|auto",
                     help="T of the system that will read it; auto: length of the longest clip, as in pretrain.py")
    own_data.own_arguments(one)
    one = command(text, "compute the word vectors of the class prompts, once, into an HDF5 file")
    one.add_argument("--dataset", choices=("all", *TEXTS), default="all", help="dataset whose prompts to encode")
    one.add_argument("--backend", choices=("transformers", "bert-embedding", "hashing"), default="transformers",
                     help="BERT in transformers or in the original package (Python 3.7), or hashed n-grams (demo only)")
    one.add_argument("--model", default="bert-base-uncased",
                     help="any text model in transformers: a folder, or a name on the hub")
    one.add_argument("--text_vocabulary", choices=VOCABULARIES, default="all",
                     help="all: every word; cnt: only words in the word list, as published")
    one.add_argument("--cnt", type=Path, default=local.vocabulary, help="word list for --text_vocabulary cnt")
    one.add_argument("--vocab", type=Path, help="BERT's vocab.txt, for hashing with cnt")
    one.add_argument("--pieces", action="store_true", help="word pieces instead of words, for CoDAAR; written to a "
                     "separate file, which other programs read with --pieces")
    one.add_argument("--prompts", type=Path, help="csv with label, prompt (default: the published file if you have it, "
                     "else ours)")
    one.add_argument("--manifest", type=Path, metavar="CSV", help="encode the prompts of your own clips, or their "
                     "labels if there are none, instead of those of --dataset")
    one.add_argument("--out", type=Path, help="file to write (default: the dataset's path; prompts.h5 next to the "
                     "manifest)")
    one = command(new, "create a dozen synthetic clips as an example of your own data, with the commands to a result")
    one.add_argument("folder", type=Path, metavar="DIR", help="folder to create")
    one = command(vocabulary, "create the word list cnt.pkl from prompts")
    one.add_argument("--vocab", type=Path, required=True, help="vocab.txt of bert-base-uncased, or a folder with it")
    one.add_argument("--prompts", type=Path, nargs="+", help="prompt csv files (default: ours)")
    one.add_argument("--out", type=Path, default=local.vocabulary, help="file to write")
    one = command(lists, "create derived lists (AVVP, AVE->AVVP, AVE orders and labels, VGGSound side of UCF, UCF51)")
    one.add_argument("--overwrite", action="store_true", help="replace existing lists")
    extract_command.add_arguments(command(features, "videos -> features, lists and a report"))
    one = command(pack, "zips (or AVE's arrays) -> one HDF5 file; run again to continue after an interruption")
    one.add_argument("paths", nargs="*", type=_features_name, metavar="NAME", help=f"one of {', '.join(FEATURES)}; or "
                     "pass --manifest and --features")
    one.add_argument("--dtype", choices=("float16", "float32"), default="float16",
                     help="data type of the stored features")
    one.add_argument("--seconds", type=seconds_or_auto, default=None, help="length of all clips; auto: that of the "
                     "longest clip (default: 10; auto with --manifest)")
    one.add_argument("--out", type=Path, help="pack to write (default: pack.h5 next to the folder of zips, "
                     "NAME.pack.h5 next to features of --manifest)")
    one.add_argument("--on_bad_clip", choices=("error", "skip"), default="error",
                     help="for bad clips: stop, or skip them with a warning")
    one.add_argument("--overwrite", action="store_true", help="replace an existing pack")
    own_data.own_arguments(one)
    return main_parser


def main(argv, local):
    """Run one command."""
    made = parser(local)
    opts = made.parse_args(argv, cli.Options(local=local))
    opts.path = dict(opts.path)
    if opts.command in ("check", "pack"):
        own_data.check_own(made, opts)
    if opts.command == "pack" and bool(opts.paths) == bool(opts.manifest):
        made.error("pack needs NAMEs of published features, or --manifest CSV and --features MODALITY=PATH")
    if opts.command == "check":
        if opts.dataset == CUSTOM and not opts.manifest:
            made.error(f"check --dataset {CUSTOM} needs --manifest CSV and --features MODALITY=PATH "
                       "(code/docs/your-data.md)")
        if opts.seconds == "auto" and opts.dataset not in {CUSTOM, *pretraining.SETS.keys() - TASKS.keys()}:
            made.error(f"check --seconds auto: only for pretraining clips; --dataset {opts.dataset} uses the T of a "
                       "checkpoint; pass a number")
    return opts.function(opts)
