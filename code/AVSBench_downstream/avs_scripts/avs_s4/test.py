"""Test a segmentation network on AVSBench-S4 with queries of the other modality, its own, zero and shuffled ones.

    python test.py --checkpoint DCID-model-5.pt --weights train_logs/S4_pvt_at_20250101-120000 --test_batch_size 4

Settings are read from the trained file. The run folder in --log_dir contains the log, results.jsonl and, optionally,
masks; the figure with overlays is written to --figure_dir.
"""

from settings import parse_test

from cmg.checkpoints.paths import require
from cmg.programs.entry import announce
from cmg.utils.console import short_path
from cmg.utils.errors import run


def main(argv=None):
    opts = parse_test(argv)
    require(opts.checkpoint)
    weights = short_path(opts.weights) if opts.weights else f"the newest run in {short_path(opts.train_log_dir)}"
    announce("test.py", f"{weights} with {short_path(opts.checkpoint)}; data in {short_path(opts.data_root)}, "
             f"results in {short_path(opts.log_dir)}")
    import test_program  # here, because --help and argument errors do not need PyTorch
    test_program.main(opts)


if __name__ == "__main__":
    run(main)
