"""Train a segmentation network on AVSBench-S4 with queries of one modality (A2T and T2A in the paper).

    python train.py --direction at --checkpoint DCID-model-5.pt --visual_backbone pvt \\
        --backbone_weights pvt_v2_b5.pth --tpavi_stages 0 1 2 3 --tpavi_va_flag --max_epoches 15

The run folder below --log_dir contains settings, log, curves and checkpoints/{best,last,best_source}.pth.
"""

from settings import DIRECTIONS, parse_train

from cmg.checkpoints.paths import require
from cmg.programs.entry import announce
from cmg.utils.console import short_path
from cmg.utils.errors import run


def main(argv=None):
    opts = parse_train(argv)
    require(opts.checkpoint)
    announce("train.py", f"{' -> '.join(DIRECTIONS[opts.direction])} with {short_path(opts.checkpoint)}; data in "
             f"{short_path(opts.data_root)}, runs in {short_path(opts.log_dir)}")
    import train_program  # here, because --help and argument errors do not need PyTorch
    train_program.main(opts)


if __name__ == "__main__":
    run(main, survives=True)
