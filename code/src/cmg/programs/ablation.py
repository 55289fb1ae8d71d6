"""Ablations of pretraining (NeurIPS 2023, Tables 2 and 3, Figure 3): one pretraining run and evaluation per row.

--study 2: audio and video without one or two components, in the order of Table 2; 3: the same with text, Table 3;
sizes: numbers of codes (Figure 3); modalities: modalities of pretraining. All rows use the same seed.
"""

from pathlib import Path

from cmg.cli import add_shared, parse_pretrain
from cmg.downstream.tasks import TASKS
from cmg.programs.entry import evaluate, pretrain
from cmg.report import tables
from cmg.results import rows as results
from cmg.systems.settings import DECLARED
from cmg.utils.errors import Parser
from cmg.utils.files import atomic_output
from cmg.utils.settings import whole

BASIC = ("recon", "commit")      # components that are never removed
PAPER = {                        # study -> components to remove in each row, in the order of the paper
    "2": [("club",), ("cpc",), ("club", "cpc"), ("mm_ema",), ("reset",), ("cmcm",), ("mm_ema", "reset"), ()],
    "3": [("club",), ("cpc",), ("mm_ema",), ("mm_ema", "reset"), ("reset",), ("cmcm",), ()],
}
STUDIES = {                      # study -> arguments of all rows
    "2": ["--dataset_name", "vggsound"], "3": ["--dataset_name", "vggsound_AVT"],
    "sizes": ["--dataset_name", "vggsound_AVT"], "modalities": [],
}
EVALUATED = tuple(name for name, entry in TASKS.items() if entry.column)
SHARED = ("preset", "gpu", "precision", "data_root", "checkpoint_root", "runs_root", "workers")


def parse(argv):
    """(own options, arguments of pretraining, arguments of both stages)."""
    parser = Parser(prog="ablation.py", description=__doc__, epilog="Every other option goes to pretrain.py.")
    parser.add_argument("--study", choices=tuple(STUDIES), default="3", help="study to run")
    parser.add_argument("--seeds", nargs="+", type=whole, default=[0], help="seeds of the heads")
    parser.add_argument("--snapshot_pref", type=Path, default=None,
                        help="folder of results and table (default: RUNS/ablation-<study>)")
    add_shared(parser, SHARED)
    own, pretraining = parser.parse_known_args(argv)
    shared = [part for name in SHARED if getattr(own, name) for part in (f"--{name}", getattr(own, name))]
    return own, pretraining, shared


def added_parts(system, known):
    """Parts of a system besides those of the paper and the basic ones, without losses that are off by default."""
    off = {switch for switch in system.switches() if not any(
        term.weight for kind, term in system.TERMS.items() if (term.switch or kind) == switch)} - system.SWITCHES.keys()
    return [part for part in system.switches() if part not in {*known, *BASIC, *off}]


def rows_of(study, system):
    """Arguments of each row. Components that the paper does not have, such as a new loss, get their own row."""
    if study == "sizes":
        return [["--n_embeddings", str(k)] for k in (25, 50, 100, 200, 400)]
    if study == "modalities":
        return [["--dataset_name", name] for name in ("vggsound", "vggsound_AT", "vggsound_VT", "vggsound_AVT")]
    known = {part for row in PAPER[study] for part in row}
    new = [(part,) for part in added_parts(system, known)]
    rows = [row for row in [*PAPER[study][:-1], *new, ()] if set(row) <= set(system.switches())]
    return [["--without", *row] if row else [] for row in rows]


def row_name(arguments):
    """Name of a row and its folder, such as "full", "without-club-cpc" or "n_embeddings-100"."""
    return "-".join(argument.lstrip("-") for argument in arguments) or "full"


def show(rows, study, system):
    """The table as text, in the order of the paper: components, cells after the heads' last epoch, their mean."""
    switches, papers = system.switches(), [part for row in PAPER["3"] for part in row]
    titles = {name: switches[name] for name in [*dict.fromkeys(papers), *added_parts(system, papers)]
              if name in switches}
    newest = {Path(row["checkpoint"]).parent.name: row["checkpoint_sha256"] for row in rows}       # the latest call
    measured = {name: [row for row in rows if row["checkpoint_sha256"] == sha] for name, sha in newest.items()}
    entries = []
    for arguments in rows_of(study, system):
        for row in tables.collect(measured.get(row_name(arguments), []), "last"):
            parts = {title: "-" if name in arguments else "x" for name, title in titles.items()}
            entries.append(parts | {"row": row_name(arguments), "mean": results.show(row.mean),
                            "columns": str(len(row.values))}
                           | {cell: results.show(row.cells.get(cell, [])) for cell in tables.CELLS})
    columns = [*(titles.values() if study in "23" else ["row"]), *tables.CELLS, "mean", "columns"]
    return "\n\n".join([results.render(entries, columns), results.render(entries, columns, "markdown")])


def main(argv, local):
    own, pretraining, shared = parse(argv)
    common = STUDIES[own.study]
    opts = parse_pretrain([*shared, *common, *pretraining], local)
    system = DECLARED[opts.system]
    rows = rows_of(own.study, system)
    folder = own.snapshot_pref or opts.runs_root / f"ablation-{own.study}"
    for number, arguments in enumerate(rows, 1):
        name = row_name(arguments)
        print(f"{number}/{len(rows)}  {name}", flush=True)
        saved = opts.checkpoint_root / f"ablation-{own.study}" / name
        last = pretrain([*shared, *common, *pretraining, *arguments, "--model_save_path", str(saved),
                         "--snapshot_pref", str(folder / name)], local)
        evaluate([str(last), *shared, "--no_text", "--no_control", "--tasks", *EVALUATED, "--seeds",
                  *map(str, own.seeds), "--snapshot_pref", str(folder)], local)
    rows = results.read(folder / "results.jsonl")
    table = "\n\n".join(filter(None, [tables.title(rows), show(rows, own.study, system)]))
    with atomic_output(folder / "ablation.txt", "w", "choose another --snapshot_pref") as file:
        file.write(table + "\n")
    print(f"\n{table}\n\nx: included, -: removed; percent after the heads' last epoch\n"
          f"results: {folder / 'results.jsonl'}, table: {folder / 'ablation.txt'}")
