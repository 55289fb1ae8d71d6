"""Retrieval between clips and captions without a head, by cosine similarity of clip codes (ACL 2025 Findings).

The list (captions.csv) has one row per caption: label, prompt, clip. Clips may have several captions: the best-ranked
one counts for clip->text, and each is a query for text->clip.
"""

from cmg.data import origins
from cmg.data.fingerprint import fingerprint
from cmg.data.sets.captions import Captions
from cmg.downstream import captions
from cmg.downstream.settings import RetrievalSettings
from cmg.downstream.task import Pretrained
from cmg.results import provenance
from cmg.results import rows as results
from cmg.training.run_logger import kept_warnings
from cmg.utils.console import width
from cmg.utils.errors import InputError
from cmg.utils.settings import read


def main(opts):
    """Measure retrieval in both ways and print the results."""
    paths = opts.paths("captions")
    modalities = opts.modalities or [m for m in ("video", "audio") if paths[m].exists()]
    if not modalities:
        raise InputError(f"{paths['video']}, {paths['audio']}: neither exists; expected features of the clips; pass "
                         "--path captions.video=FOLDER or captions.audio=FOLDER")
    pretrained = Pretrained.load(opts.checkpoint, opts.device, opts.precision, opts.zero_code0)
    dataset = Captions(paths, modalities, **opts.reading, **pretrained.encoder.config.reading)
    used = {f"captions.{name}": path for name, path in paths.items() if name in ("csv", "text", *modalities)}
    contents = {name: fingerprint(path, cache=opts.cache_root) for name, path in used.items()}
    record = provenance.write(opts.results.parent, provenance.collect(
        opts.resolved(), opts.device, used, fingerprints=contents))
    output = results.Output(opts.results, record, contents, ("video", "audio", "text"),
                            settings={"precision": opts.precision}, first_seed=opts.seeds[0])
    with kept_warnings(opts.results.parent):
        pretrained.warn(origins.other_features(pretrained.path, pretrained.encoder.features,
                                              [(m, paths[m]) for m in ("text", *modalities)]))
        settings = read(RetrievalSettings, opts)
        rows = captions.evaluate(dataset, pretrained, settings, output, 0 if opts.in_memory else opts.workers,
                                 pretrained.cache(settings, used, contents))
        print(f"{results.summary(rows, width=None if opts.verbose else width())}\n\nresults: {opts.results}")
