"""Where everything is on this machine: edit the constants below. Environment variables and flags win over them."""

from pathlib import Path

from cmg.cli import LocalPaths
from cmg.data import layout

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "data"                        # CMG_DATA,        --data_root
CHECKPOINTS = ROOT / "checkpoint"           # CMG_CHECKPOINTS, --checkpoint_root
RUNS = ROOT / "code" / "src" / "Exps"       # CMG_RUNS,        --runs_root
FIGURES = ROOT / "figs"                     # pictures of demo.sh, spoken.sh, natural.sh
PRETRAINED = "DCID-model-5.pt"              # what downstream scripts load from CHECKPOINTS
VOCABULARY = ROOT / "cnt.pkl"               # word list of the prompts' filter

# The files of the data sets lie below DATA as the published package unpacks (cmg/data/layout.py lists them). Name here
# those that are elsewhere, relative to DATA or absolute:
DATA_PATHS = layout.DATA_PATHS | {
    # "vggsound.audio": "/fast/vggsound40k/audio",
}

LOCAL = LocalPaths(DATA, CHECKPOINTS, RUNS, FIGURES, ROOT / "code" / "src", PRETRAINED, VOCABULARY, DATA_PATHS)
