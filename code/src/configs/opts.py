"""Paths on this machine: edit the constants below. Environment variables and flags override them."""

from pathlib import Path

from cmg.cli import LocalPaths
from cmg.data import layout

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "data"                        # CMG_DATA,        --data_root
CHECKPOINTS = ROOT / "checkpoint"           # CMG_CHECKPOINTS, --checkpoint_root
RUNS = ROOT / "code" / "src" / "Exps"       # CMG_RUNS,        --runs_root
FIGURES = ROOT / "figs"                     # pictures of demo.sh, spoken.sh, natural.sh
PRETRAINED = "DCID-model-5.pt"              # loaded from CHECKPOINTS by downstream scripts
VOCABULARY = ROOT / "cnt.pkl"               # word list for filtering prompts

# By default, datasets are in DATA with the layout of the published package (cmg/data/layout.py). List files that are
# elsewhere here, relative to DATA or absolute:
DATA_PATHS = layout.DATA_PATHS | {
    # "vggsound.audio": "/fast/vggsound40k/audio",
}

LOCAL = LocalPaths(DATA, CHECKPOINTS, RUNS, FIGURES, ROOT / "code" / "src", PRETRAINED, VOCABULARY, DATA_PATHS)
