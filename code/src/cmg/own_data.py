"""Arguments for the user's own data (code/docs/your-data.md): --manifest, --features, --modality."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from cmg.models.config import KINDS, MODALITIES, check_name, in_order
from cmg.utils import settings
from cmg.utils.errors import InputError, absolute
from cmg.utils.settings import setting


def features_argument(text):
    """Argument type of --features: MODALITY=PATH."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not MODALITY=PATH")
    return name, absolute(value)


@dataclass(frozen=True)
class OwnData:
    """The user's own dataset (code/docs/your-data.md)."""

    manifest: Path | None = setting(
        None, "list of your own clips: a csv with the columns id, split and, optionally, label, onset, offset, prompt",
        type=Path, metavar="CSV", affects_results=False)
    features: tuple[tuple[str, str], ...] = setting(
        (), "features of the clips of --manifest: a folder with <id>.npy, .npz, .pt, .pkl or .zip for each, a pack, or "
        "an HDF5 file with a dataset for each id; repeat for each modality", type=features_argument, nargs=None,
        action="append", metavar="MODALITY=PATH", affects_results=False)


def modality_argument(text):
    """Argument type of --modality: NAME=KIND."""
    name, _, kind = text.partition("=")
    if kind not in KINDS.values() or name in MODALITIES:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=KIND with KIND one of {', '.join(KINDS.values())}, and "
                                         f"NAME none of {', '.join(MODALITIES)}, whose kinds are known")
    try:
        check_name(name)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name, kind


@dataclass(frozen=True)
class OwnModalities:
    """Modalities other than the published ones."""

    modality: tuple[tuple[str, str], ...] = setting(
        (), "a modality other than audio, video and text, such as depth=map, and the kind of its features: one vector "
        "or map per second, or tokens per clip (repeatable)", type=modality_argument, nargs=None,
        action="append", metavar="NAME=KIND")


def own_arguments(parser):
    """Add the arguments for the user's own data to a parser."""
    settings.add_arguments(parser, OwnData, "own data")
    settings.add_arguments(parser, OwnModalities, "modalities")


def check_own(parser, opts):
    """Check the options for the user's own data: --manifest and --features are given together, and every modality is
    declared once."""
    opts.modality, found = kinds_of(parser, opts.modality), dict(opts.features)
    if len(found) < len(opts.features):
        parser.error("--features: a modality is given twice; expected one path per modality")
    if bool(opts.manifest) != bool(found):
        parser.error("--manifest CSV and --features MODALITY=PATH must be given together; give both "
                     "(code/docs/your-data.md)")
    for name in found:
        if name not in MODALITIES and name not in opts.modality:
            parser.error(f"--features {name}: {', '.join((*MODALITIES, *opts.modality))} are known; declare another "
                         f"with --modality {name}=vector (or map, or tokens)")
    for name in opts.modality if opts.manifest else ():
        if name not in found:
            parser.error(f"--modality {name}: no features are given for it; add --features {name}=PATH")
    opts.features = found


def require_own(parser, opts, what):
    """Check that a run on the user's own data has at least two modalities; `what` names the run in the message."""
    if len(opts.own_modalities) < 2:
        parser.error(f"{what} needs --manifest CSV and --features MODALITY=PATH for at least two modalities "
                     "(code/docs/your-data.md)")


def kinds_of(parser, declared):
    """Modality -> kind, as declared by --modality, in the fixed order."""
    kinds = dict(declared)
    if len(kinds) < len(declared):
        parser.error("--modality: a name is given twice; expected one kind per name")
    return {m: kinds[m] for m in in_order(kinds)}
