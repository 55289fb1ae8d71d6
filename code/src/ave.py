"""AVE event classification, zero-shot across modalities (NeurIPS 2023, Table 1): one class a clip."""

from configs.opts import parse_downstream
from dataset.ave import AVE
from engine.transfer import run_task
from errors import run
from model.heads import ClipHead


def build(opts):
    """Heads are trained on the train split and tested on the test split; the released script tests on its TRAINING
    clips, in the other modality."""
    def split(name):
        return run_task.by_modality([AVE(opts.paths("ave"), run_task.wanted(opts), name, **opts.reading)])
    if opts.protocol == "released":
        train = split("train")
        return run_task.Task("ave", ClipHead, "accuracy", train=train, test=train)
    return run_task.Task("ave", ClipHead, "accuracy", train=split("train"), test=split("test"), val=split("val"))


def main(argv=None):
    run_task.run(build, parse_downstream("ave", argv))


if __name__ == "__main__":
    run(main)
