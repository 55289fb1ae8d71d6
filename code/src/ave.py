"""AVE event classification, zero-shot across modalities (NeurIPS 2023, Table 1): one class a clip."""

from configs.opts import parse_downstream
from dataset.ave import AVE
from engine import downstream
from errors import run
from model.heads import ClipHead


def build(opts):
    """Heads are trained on the train split and tested on the test split; the released script tests on its TRAINING
    clips, in the other modality."""
    def split(name):
        return downstream.by_modality([AVE(opts.paths("ave"), downstream.wanted(opts), name, **opts.reading)])
    if opts.protocol == "released":
        train = split("train")
        return downstream.Task("ave", ClipHead, "accuracy", train=train, test=train)
    return downstream.Task("ave", ClipHead, "accuracy", train=split("train"), test=split("test"), val=split("val"))


def main(argv=None):
    downstream.run(build, parse_downstream("ave", argv))


if __name__ == "__main__":
    run(main)
