"""From nothing to a cross-modal result: demo data, pretraining, every downstream task, table, pictures and report.

A classifier that was trained on telephone tones recognises handwritten digits for which it never saw a label.
"""

from pathlib import Path

import evaluate
import pretrain
from configs.opts import PLACES, ROOT, parse_pretrain
from demo_data import demo_tree
from engine import figures
from engine.report import page
from errors import Parser, run
from systems.registry import SYSTEMS

SHARED = ("gpu", "precision", "data_root", "checkpoint_root", "runs_root")      # options of every stage


def parse(argv):
    """(own options, arguments of pretraining, arguments of all stages); wrong ones end here, before any work."""
    parser = Parser(prog="demo.py", description=__doc__, epilog="Every other option goes to pretrain.py.")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and heads")
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid", help="what is pretrained")
    parser.add_argument("--figures", type=Path, default=ROOT / "figs" / "demo", help="folder of the pictures")
    for name in SHARED:
        parser.add_argument(f"--{name}", default=None, help="passed on to every stage")
    own, pretraining = parser.parse_known_args(argv)
    shared = ["--preset", "demo", "--seed", str(own.seed)]
    for name in SHARED:
        shared += [f"--{name}", getattr(own, name)] if getattr(own, name) else []
    return own, ["--system", own.system, *pretraining], shared


def main(argv=None):
    own, pretraining, shared = parse(argv)
    opts = parse_pretrain(shared + pretraining)
    name = opts.model_save_path.name
    folder = opts.runs_root / name

    print(f"1/4  demo data in {opts.data_root}", flush=True)
    demo_tree.build(opts.data_root, PLACES)
    print("2/4  pretraining without labels", flush=True)
    pretrain.main([*shared, *pretraining, "--snapshot_pref", str(folder / "pretrain")])
    print("3/4  heads on one modality, tested on another", flush=True)
    checkpoint = opts.model_save_path / SYSTEMS[own.system].file(opts.modalities, opts.n_epoch - 1)
    evaluate.main([*shared, "--snapshot_pref", str(folder), str(checkpoint)])
    print("4/4  pictures and report", flush=True)
    pictures = figures.draw_run(folder, own.figures / name)
    written = page.write([folder], folder / "report.html", drawn=pictures)
    print(f"\nresults   {folder / 'results.jsonl'}\npictures  {own.figures / name} ({len(pictures)})\n"
          f"report    {written} (open it in a browser)")


if __name__ == "__main__":
    run(main)
