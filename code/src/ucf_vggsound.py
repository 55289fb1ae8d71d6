"""UCF-101 video and VGGSound audio (NeurIPS 2023, Table 3): across modalities and data sets, one class a clip."""

from configs.opts import parse_downstream
from dataset.ucf_vggsound import UCFVGGSound
from engine.transfer import run_task
from errors import run
from model.heads import ClipHead


def build(opts):
    """Each side's clips are what its head is trained on and what the other's is tested on; prompts are those of the
    UCF clips' classes."""
    wanted = run_task.wanted(opts)
    sides = [("audio",)] if "audio" in wanted else []
    sides += [("video", "text") if "text" in wanted else ("video",)] if {"video", "text"} & set(wanted) else []
    parts = run_task.by_modality([UCFVGGSound(opts.paths("ucf_vggsound"), side, **opts.reading) for side in sides])
    return run_task.Task("ucf_vggsound", ClipHead, "accuracy", train=parts, test=parts)


def main(argv=None):
    run_task.run(build, parse_downstream("ucf_vggsound", argv))


if __name__ == "__main__":
    run(main)
