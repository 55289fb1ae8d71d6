"""All stages from data to a report (demo.py, spoken.py, natural.py): build data, pretrain, evaluate, draw, report."""

from pathlib import Path

from cmg.cli import add_shared, parse_pretrain
from cmg.programs.entry import evaluate, pretrain
from cmg.systems.settings import DECLARED
from cmg.utils.errors import Parser
from cmg.utils.settings import whole

SHARED = ("gpu", "precision", "data_root", "checkpoint_root", "runs_root")      # options of every stage


def arguments(preset, description, local):
    """A parser with the options of a walkthrough."""
    parser = Parser(prog=f"{preset}.py", description=description, epilog="Every other option goes to pretrain.py.")
    parser.add_argument("--seed", type=whole, default=0, help="seed of pretraining and heads")
    parser.add_argument("--system", choices=tuple(DECLARED), default="dcid", help="system to pretrain")
    parser.add_argument("--figures", type=Path, default=local.figures / preset, help="folder of the pictures")
    add_shared(parser, SHARED)
    parser.add_argument("--verbose", action="store_true", help="print the complete log and tables")
    return parser


def walk(preset, parser, build, argv, local):
    """Run all stages with a preset.

    Args:
        preset: name of the preset.
        parser: result of `arguments`; other options are passed to pretrain.py and checked before any work.
        build: function (parsed options, data root) that creates the data.
        argv: command line, None for that of the process.
        local: LocalPaths of this machine.
    """
    own, pretraining = parser.parse_known_args(argv)
    shared = ["--preset", preset, "--seed", str(own.seed), *["--verbose"] * own.verbose]
    for name in SHARED:
        shared += [f"--{name}", getattr(own, name)] if getattr(own, name) else []
    pretraining = ["--system", own.system, *pretraining]
    opts = parse_pretrain(shared + pretraining, local)
    name = opts.model_save_path.name
    folder = opts.runs_root / name

    print(f"1/4  data in {opts.data_root}", flush=True)
    opts.check_device()
    build(own, opts.data_root)
    print("2/4  pretraining without labels", flush=True)
    checkpoint = pretrain([*shared, *pretraining, "--snapshot_pref", str(folder / "pretrain")], local)
    print("3/4  heads on one modality, tested on another", flush=True)
    evaluate([*shared, "--snapshot_pref", str(folder), str(checkpoint)], local)
    from cmg.report import page, pictures  # here, because --help needs no Matplotlib
    print("4/4  pictures and report", flush=True)
    drawn = pictures.draw_run(folder, own.figures / name)
    written = page.write([folder], folder / "report.html", drawn=drawn)
    print(f"\nresults   {folder / 'results.jsonl'}\npictures  {own.figures / name} ({len(drawn)})\n"
          f"report    {written} (open it in a browser)")
