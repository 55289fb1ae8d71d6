"""AVE to AVVP (NeurIPS 2023, Table 3): a head learns on AVE in one modality and is tested on AVVP in the other."""

from configs.opts import parse_downstream
from dataset.ave_avvp import AVEShared, AVVPShared
from engine.transfer import run_task
from errors import run
from model.heads import SegmentHead


def build(opts):
    """Clips of the shared classes: AVE's to train on, AVVP's to test on."""
    paths = opts.paths("ave_avvp")
    paths |= {f"{part}_{m}": opts.place(f"{part}.{m}") for part in ("ave", "avvp") for m in ("audio", "video")}
    train, test = (run_task.by_modality([part(paths, modality, **opts.reading)
                                           for modality in run_task.wanted(opts, "audio", "video")])
                   for part in (AVEShared, AVVPShared))
    return run_task.Task("ave_avvp", SegmentHead, "f1", train=train, test=test)


def main(argv=None):
    run_task.run(build, parse_downstream("ave_avvp", argv))


if __name__ == "__main__":
    run(main)
