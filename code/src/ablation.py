"""Ablations of pretraining (NeurIPS 2023, Tables 2 and 3, Figure 3): a pretraining run and an evaluation for each row.

--study 2: audio and video without one or two components, in the order of the paper's Table 2; 3: audio, video and text,
Table 3; sizes: the number of codes (Figure 3); modalities: what pretraining sees. All rows share one seed.
"""

from pathlib import Path

import evaluate
import pretrain
from atomic_write import whole_file
from configs.opts import COMPONENTS, parse_pretrain
from engine import results
from engine.report import tables
from errors import Parser, run

TITLES = dict(zip(COMPONENTS, ("CLUB", "CPC", "MM-EMA", "reset", "CMCM")))
STUDIES = {                      # study -> arguments of all rows, arguments of each row
    "2": (["--dataset_name", "vggsound"], [["--without", *parts] if parts else [] for parts in (
        ["club"], ["cpc"], ["club", "cpc"], ["mm_ema"], ["reset"], ["cmcm"], ["mm_ema", "reset"], [])]),
    "3": (["--dataset_name", "vggsound_AVT"], [["--without", *parts] if parts else [] for parts in (
        ["club"], ["cpc"], ["mm_ema"], ["mm_ema", "reset"], ["reset"], ["cmcm"], [])]),
    "sizes": (["--dataset_name", "vggsound_AVT"], [["--n_embeddings", str(k)] for k in (25, 50, 100, 200, 400)]),
    "modalities": ([], [["--dataset_name", name] for name in (
        "vggsound", "vggsound_AT", "vggsound_VT", "vggsound_AVT")]),
}
EVALUATED = ("ave", "avvp", "ave_avvp", "ucf_vggsound")
SHARED = ("preset", "gpu", "precision", "data_root", "checkpoint_root", "runs_root", "workers")


def parse(argv):
    """(own options, arguments of pretraining, arguments of both stages)."""
    parser = Parser(prog="ablation.py", description=__doc__, epilog="Every other option goes to pretrain.py.")
    parser.add_argument("--study", choices=tuple(STUDIES), default="3", help="which rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the heads")
    parser.add_argument("--snapshot_pref", type=Path, default=None,
                        help="folder of results and table (default: RUNS/ablation-<study>)")
    for name in SHARED:
        parser.add_argument(f"--{name}", default=None, help="passed on to both stages")
    own, pretraining = parser.parse_known_args(argv)
    shared = [part for name in SHARED if getattr(own, name) for part in (f"--{name}", getattr(own, name))]
    return own, pretraining, shared


def row_name(arguments):
    """Folder and name of a row: "full", "without-club-cpc", "n_embeddings-100"."""
    return "-".join(argument.lstrip("-") for argument in arguments) or "full"


def show(rows, study):
    """The table in the paper's order: components, the eight cells after the heads' last epoch, their mean."""
    newest = {Path(row["checkpoint"]).parent.name: row["checkpoint_sha256"] for row in rows}       # of several calls
    measured = {name: [row for row in rows if row["checkpoint_sha256"] == sha] for name, sha in newest.items()}
    entries = []
    for arguments in STUDIES[study][1]:
        for row in tables.collect(measured.get(row_name(arguments), []), "last"):
            parts = {title: "-" if name in arguments else "x" for name, title in TITLES.items()}
            entries.append(parts | {"row": row_name(arguments), "mean": results.show(row.mean)}
                           | {cell: results.show(row.cells.get(cell, [])) for cell in tables.CELLS})
    columns = [*(TITLES.values() if study in "23" else ["row"]), *tables.CELLS, "mean"]
    return "\n\n".join([results.render(entries, columns), results.render(entries, columns, "markdown")])


def main(argv=None):
    own, pretraining, shared = parse(argv)
    common, rows = STUDIES[own.study]
    opts = parse_pretrain([*shared, *common, *pretraining])
    folder = own.snapshot_pref or opts.runs_root / f"ablation-{own.study}"
    for number, arguments in enumerate(rows, 1):
        name = row_name(arguments)
        print(f"{number}/{len(rows)}  {name}", flush=True)
        saved = opts.checkpoint_root / f"ablation-{own.study}" / name
        code = pretrain.main([*shared, *common, *pretraining, *arguments, "--model_save_path", str(saved),
                              "--snapshot_pref", str(folder / name)])
        if code:                        # interrupted: what is measured so far stays in the results
            return code
        checkpoint = max(saved.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)      # the last one written
        evaluate.main([str(checkpoint), *shared, "--no_text", "--no_control", "--tasks", *EVALUATED, "--seeds",
                       *map(str, own.seeds), "--snapshot_pref", str(folder)])
    table = show(results.read(folder / "results.jsonl"), own.study)
    with whole_file(folder / "ablation.txt", "w") as file:
        file.write(table + "\n")
    print(f"\n{table}\n\nx: in, -: left out; percent after the heads' last epoch\n"
          f"results: {folder / 'results.jsonl'}, table: {folder / 'ablation.txt'}")


if __name__ == "__main__":
    run(main)
