"""What the scripts call: parse the arguments and look for the checkpoint, then import the program, which needs PyTorch.

PyTorch takes longer to import than everything else together; `--help` and wrong arguments do not wait for it.
"""

from cmg.checkpoints.paths import require
from cmg.cli import parse_clip_retrieval, parse_downstream, parse_evaluate, parse_pretrain, parse_toc
from cmg.utils.errors import InputError, launched_processes


def pretrain(argv, local):
    """Pretrain a system; returns the last checkpoint of the run, a Path. None: with --evaluate, and in a process that
    does not save."""
    try:
        opts = parse_pretrain(argv, local)
    except (SystemExit, InputError):
        if launched_processes() > 1:            # the others wait for this one: it joins them, and ends before them
            from cmg.utils import dist
            with dist.process_group():
                raise
        raise
    from cmg.programs import pretrain as program
    return program.main(opts)


def downstream(task, argv, local):
    """Train heads of one task, and test them."""
    opts = parse_downstream(task, argv, local)
    require(opts.checkpoint)
    from cmg.programs import downstream as program
    program.main(opts, task)


def evaluate(argv, local):
    """Evaluate checkpoints on all tasks whose data exist."""
    opts = parse_evaluate(argv, local)
    for checkpoint in opts.checkpoints:
        require(checkpoint)
    from cmg.programs import evaluate as program
    program.main(opts)


def clip_retrieval(argv, local):
    """Retrieve clips by captions, and captions by clips."""
    opts = parse_clip_retrieval(argv, local)
    require(opts.checkpoint)
    from cmg.programs import clip_retrieval as program
    program.main(opts)


def toc(argv, local):
    """Show TOC's selection for a checkpoint."""
    opts = parse_toc(argv, local)
    require(opts.checkpoint)
    from cmg.programs import toc as program
    program.main(opts)
