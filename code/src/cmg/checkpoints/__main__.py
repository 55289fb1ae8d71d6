"""`python -m cmg.checkpoints FILE` describes a checkpoint, `... export FILE --out DIR` exports its encoder."""

import sys
from pathlib import Path

from cmg.checkpoints.paths import require
from cmg.utils.errors import Parser, run


def main(argv=None):
    """Describe a checkpoint, or export its encoder if the first argument is `export`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["export"]:
        return _export(argv[1:])
    parser = Parser(prog="python -m cmg.checkpoints", description="Describe a pretraining checkpoint.",
                    epilog="python -m cmg.checkpoints export FILE --out DIR exports its encoder as safetensors.")
    parser.add_argument("file", type=Path, help="checkpoint, published or ours, or a folder of them (most steps)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    file = parser.parse_args(argv).file
    require(file)
    from cmg.checkpoints import checkpoint, hub  # imported here and below because --help does not need PyTorch
    print("\n".join(checkpoint.describe(hub.locate(file))))


def _export(argv):
    parser = Parser(prog="python -m cmg.checkpoints export", description="Export a checkpoint's encoder for sharing, "
                    "as safetensors with config.json and a model card.")
    parser.add_argument("file", type=Path, help="checkpoint, published or ours, or a folder of them (most steps)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="results.jsonl files for the model card")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    parser.add_argument("--published", action="store_true", help="instead, write the whole checkpoint for the "
                        "published programs, including tensors that they store but do not use")
    options = parser.parse_args(argv)
    require(options.file)
    if options.published:
        from cmg.checkpoints import checkpoint, hub
        loaded = checkpoint.open_file(hub.locate(options.file))
        out = options.out / loaded.path.name
        checkpoint.save(out, checkpoint.as_published(loaded))
        print(out)
        return
    from cmg.report.export import export
    for path in export(options.file, options.out, options.results):
        print(path)


if __name__ == "__main__":
    run(main)
