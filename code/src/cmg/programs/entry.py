"""Entry points of the scripts: parse the arguments, find the checkpoint and announce the work, then import the program,
which needs PyTorch.

Importing PyTorch takes longer than everything else, so `--help`, argument errors and the first printed line do not wait
for it.
"""

from cmg.checkpoints.paths import require
from cmg.cli import parse_clip_retrieval, parse_downstream, parse_evaluate, parse_pretrain, parse_toc
from cmg.data.manifest import CUSTOM
from cmg.systems.settings import DECLARED
from cmg.utils import console
from cmg.utils.console import short_path
from cmg.utils.errors import InputError, is_first_process, launched_processes


def announce(program, text):
    """Print what a program is about to do, without buffering; only the first of several processes prints."""
    if is_first_process():
        print(console.fill(f"{program}: {text}", indent="  "), flush=True)


def pretrain(argv, local):
    """Pretrain a system; returns the Path of the run's last checkpoint, or None with --evaluate and in processes that
    do not save."""
    try:
        opts = parse_pretrain(argv, local)
        announce("pretrain.py", _pretraining(opts))
        opts.check_device()
    except (SystemExit, InputError):
        if launched_processes() > 1:            # the others wait for this process, so join them before failing
            from cmg.utils import dist
            with dist.process_group():
                raise
        raise
    from cmg.programs import pretrain as program
    return program.main(opts)


def _pretraining(opts):
    label = DECLARED[opts.system].label
    data = short_path(opts.manifest) if opts.manifest else f"{opts.dataset_name} in {short_path(opts.data_root)}"
    if opts.evaluate:
        return f"losses of {short_path(opts.resume)} on {data}"
    return (f"{label} on {data}; checkpoints in {short_path(opts.model_save_path)}, log in "
            f"{short_path(opts.snapshot_pref)}")


def downstream(task, argv, local):
    """Train and test the heads of a task."""
    opts = parse_downstream(task, argv, local)
    require(opts.checkpoint)
    data = opts.manifest if task == CUSTOM else opts.data_root
    announce(f"{task}.py", f"{', '.join(map('->'.join, opts.directions))} with {short_path(opts.checkpoint)}; data in "
             f"{short_path(data)}, results in {short_path(opts.results)}")
    opts.check_device()
    from cmg.programs import downstream as program
    program.main(opts, task)


def evaluate(argv, local):
    """Evaluate checkpoints on all tasks whose data exist."""
    opts = parse_evaluate(argv, local)
    for checkpoint in opts.checkpoints:
        require(checkpoint)
    first, *others = map(short_path, opts.checkpoints)
    announce("evaluate.py", f"{first}{f' and {len(others)} more' if others else ''} on tasks whose data is in "
             f"{short_path(opts.data_root)}; results in {short_path(opts.results)}")
    opts.check_device()
    from cmg.programs import evaluate as program
    program.main(opts)


def clip_retrieval(argv, local):
    """Retrieve clips by captions, and captions by clips."""
    opts = parse_clip_retrieval(argv, local)
    require(opts.checkpoint)
    announce("clip_retrieval.py", f"clips and captions of {short_path(opts.data_path('captions.csv'))} with "
             f"{short_path(opts.checkpoint)}; results in {short_path(opts.results)}")
    opts.check_device()
    from cmg.programs import clip_retrieval as program
    program.main(opts)


def toc(argv, local):
    """Show TOC's channel selection for a checkpoint."""
    opts = parse_toc(argv, local)
    require(opts.checkpoint)
    announce("toc.py", f"channels of {short_path(opts.checkpoint)}; pictures in {short_path(opts.snapshot_pref)}")
    from cmg.programs import toc as program
    program.main(opts)
