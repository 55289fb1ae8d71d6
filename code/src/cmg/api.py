"""The functions of `cmg`: thin ones over the engine. Everything they need is given to them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmg.checkpoints import hub
from cmg.checkpoints.checkpoint import untrained_like
from cmg.downstream import fit_heads, metrics
from cmg.downstream.encode import EncodedSplit
from cmg.downstream.task import Task
from cmg.models.heads import ClipHead, SegmentHead
from cmg.systems.base import Codes, FrozenEncoder
from cmg.utils.errors import InputError

Array: TypeAlias = Tensor | NDArray[Any]
FilePath: TypeAlias = str | PathLike[str]
Labelled: TypeAlias = tuple[str, Array, Array]          # modality, features, labels
Clips: TypeAlias = tuple[str, Array] | Labelled         # modality, features, and classes where they are known

BATCH = 64                      # clips encoded at once; changes no figure


# --------------------------------------------------------------------------------------------------------- the encoder
class Encoder:
    """A frozen encoder: features of a clip in, a code for every second out.

    Attributes:
        modalities: that it was pretrained on.
        head_dim: width D of the vectors that `embed` gives.
        codebooks: code vectors (K, D) of every codebook; a code is the same thing in every modality.
        epoch: of pretraining, None for an untrained encoder.
        frozen: the engine's module.
        source: file of its weights; None for an untrained encoder.
    """

    def __init__(self, frozen: FrozenEncoder, source: Path | None = None) -> None:
        self.frozen, self.source = frozen, source

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.frozen.config.modalities

    @property
    def head_dim(self) -> int:
        return self.frozen.head_dim

    @property
    def codebooks(self) -> Sequence[Tensor]:
        return self.frozen.codebooks

    @property
    def epoch(self) -> int | None:
        return self.frozen.epoch

    def __repr__(self) -> str:
        return (f"<{self.frozen.system.label} encoder of {', '.join(self.modalities)}: "
                f"{' and '.join(str(len(codes)) for codes in self.codebooks)} codes, D = {self.head_dim}>")

    def embed(self, modality: str, x: Array) -> Codes:
        """The codes of some clips.

        Args:
            modality: one that it was pretrained on.
            x: array or tensor of floating-point features of the pretraining's sizes: vectors (B, T, W), maps
                (B, T, H, W, C), text (B, L, W) word vectors.

        Returns:
            `Codes` on the encoder's device: vectors (B, T, D), indices (B, T) int64, or (B, T, codebooks) where a
            second has a code of each.

        Raises:
            InputError: a modality or width that this encoder does not know, or numbers that are not finite.
        """
        x = self._checked(modality, x)
        parts = [self.frozen.embed(modality, part) for part in torch.split(x, BATCH)]
        return Codes(torch.cat([part.vectors for part in parts]), torch.cat([part.indices for part in parts]))

    def embed_clips(self, modality: str, x: Array) -> Tensor:
        """One vector per clip, (B, D), of the features that `embed` takes: the mean of its codes (FCID: the clip's
        code)."""
        x = self._checked(modality, x)
        return torch.cat([self.frozen.embed_clips(modality, part) for part in torch.split(x, BATCH)])

    def _checked(self, modality: str, x: Array) -> Tensor:
        if modality not in self.modalities:
            raise InputError(f"{modality}: this encoder was pretrained on {', '.join(self.modalities)}")
        x = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x))
        config = self.frozen.config
        given = x.shape[1 if config.kind(modality) == "tokens" else 2:]
        if not config.fits(modality, given) or not x.numel() or not x.is_floating_point():
            raise InputError(f"{modality} features of shape {tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')}; "
                             f"{config.axes(modality)} floating-point numbers are expected")
        if not torch.isfinite(x).all():
            raise InputError(f"{modality} features: NaN or infinite numbers among them; mend these clips")
        return x.to(self.codebooks[0])

    def features_of(self, path: FilePath, audio: FilePath | Callable[..., Any] | None = None,
                    video: FilePath | Callable[..., Any] | None = None, seconds: int | None = None,
                    front_end: dict[str, dict[str, Any]] | None = None) -> dict[str, NDArray[np.float32]]:
        """Features of a video file, of the kind that the encoder was pretrained on.

        Args:
            path: anything that PyAV decodes.
            audio: "logmel", the file of VGGish's weights (the published features), an ONNX file, or a function (see
                code/docs/features.md); None leaves it out.
            video: "patches", the file of VGG-19's weights (the published features), an ONNX file, or a function.
            seconds: T; default: that of pretraining.
            front_end: modality -> key -> value, of an ONNX file or function.

        Returns:
            {"audio": (1, T, 128), "video": (1, T, 7, 7, V)} float32 arrays, as far as asked for: what `embed` takes.

        Raises:
            InputError: no such video, damaged, without sound or pictures; weights that are not what they should be.
        """
        from cmg.extract import clip, custom, encoders, weights  # here, because it needs PyAV
        from cmg.extract.audio import FrontEnd
        from cmg.extract.video import random_filters
        if audio is None and video is None:
            raise InputError("features_of: audio, video or both are to be named, for example audio=\"logmel\"")
        for name, given in (("audio", audio), ("video", video)):
            if given is not None and name not in self.modalities:
                raise InputError(f"features_of: {name}={given!r}; this encoder was pretrained on "
                                 f"{', '.join(self.modalities)}")
        device = self.codebooks[0].device
        sound: Any = None
        pictures: Any = None
        front_end = front_end or {}
        if custom.is_custom(audio):
            sound = custom.CustomSound(audio, device, front_end.get("audio"))
        elif audio is not None:
            sound = encoders.LogMelSound(FrontEnd()) if audio == "logmel" else encoders.VGGishSound(
                weights.read(audio, "vggish"), FrontEnd(), device)
        if custom.is_custom(video):
            form = "map" if self.frozen.config.kind("video") == "map" else "vector"
            pictures = custom.CustomPictures(video, device, front_end.get("video"), form)
        elif video is not None:
            channels = self.frozen.config.feature_dim("video")
            pictures = encoders.PatchPictures(random_filters(channels)) if video == "patches" else \
                encoders.VGG19Pictures(weights.read(video, "vgg19"), device)
        timing = clip.Timing(seconds=seconds or self.frozen.config.seconds)
        found = clip.extract(path, Path(path).stem, timing, sound, pictures)
        if found.row.status == "unreadable" or found.problems:
            reasons = "; ".join(text for _, text in found.problems) or found.row.warning
            raise InputError(f"{path}: {reasons}; a video with what is asked for is expected")
        return {name: feature[None] for name, feature in (("audio", found.audio), ("video", found.video))
                if feature is not None}


def load(source: FilePath, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
         revision: str | None = None) -> Encoder:
    """The `Encoder` of a checkpoint or of what somebody shares.

    Args:
        source: a checkpoint file, published or ours; a folder that `python -m cmg.checkpoints export` wrote; or its
            name on the Hugging Face hub, such as "somebody/dcid", which is downloaded once.
        device, dtype: of the encoder.
        revision: on the hub: branch, tag or commit.

    Raises:
        InputError: no such file, a damaged one, or one that could run code.
    """
    path = hub.locate(source, revision)
    return Encoder(hub.load_encoder(path, device, dtype), path)


def pretrain(data_root: FilePath | None, out: FilePath, **options: Any) -> Path:
    """Pretrain a system, as pretrain.py does.

    Args:
        data_root: folder of all data, laid out as in data/README.md, or of `build_demo`; None for data of your own.
        out: folder of the checkpoints, and of the run's folder `run`: metrics.jsonl, log.txt, TensorBoard.
        options: of pretrain.py (see its --help), for example system="dcid", n_epoch=2, batch_size=40, in_memory=True;
            dataset_name="custom", manifest="clips.csv", features={"audio": "audio", "video": "video.h5"}.

    Returns:
        the last checkpoint, a Path for `load`.

    Raises:
        InputError: no data, or options that do not exist.
    """
    from cmg.cli import LocalPaths
    from cmg.programs import pretrain as program
    from cmg.training.run_logger import restored_log
    arguments = ["--model_save_path", str(out), "--snapshot_pref", str(Path(out) / "run")]
    arguments += [] if data_root is None else ["--data_root", str(data_root)]
    for name, value in options.items():
        if isinstance(value, dict):
            arguments += [part for key, of in value.items() for part in (f"--{name}", f"{key}={of}")]
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        arguments += [] if value is False else [f"--{name}"] + ([] if value is True else [str(v) for v in values])
    try:
        with restored_log():
            last: Path = program.main(arguments, LocalPaths())
            return last
    except SystemExit:                  # argparse has said why on standard error
        raise InputError(f"pretrain: {' '.join(arguments)}: not options of pretrain.py") from None


def export(checkpoint: FilePath, out: FilePath, results: Sequence[FilePath] = ()) -> list[Path]:
    """Write the encoder of a checkpoint for others: model.safetensors, config.json and a model card, README.md.

    Args:
        checkpoint: file, published or ours.
        out: folder; `load` reads it, and its name on the hub once it is uploaded.
        results: results.jsonl files whose rows of this checkpoint go into the card.

    Returns:
        the files.
    """
    from cmg.report import export as exporting
    return exporting.export(checkpoint, out, results)


def push(encoder: Encoder, name: str, private: bool = True, results: Sequence[FilePath] = ()) -> str:
    """Upload an encoder to the Hugging Face hub, where `load(name)` finds it: what `export` writes, nothing else.

    Args:
        encoder: of `load`.
        name: such as "somebody/dcid"; the repository is created where there is none.
        private: only its owner sees it. A repository that is public already is refused.
        results: results.jsonl files whose rows of its checkpoint go into the model card; those of an exported folder
            are in its card already.

    Returns:
        the address.

    Raises:
        InputError: an encoder that was not loaded; no token (`hf auth login`), right or network.
    """
    from cmg.report import export as exporting
    source = encoder.source
    if source is None:
        raise InputError("push: this encoder is of no file; push one of cmg.load")
    with TemporaryDirectory() as folder:
        if source.suffix != ".safetensors":
            exporting.export(source, folder, results, name)
        elif results:
            raise InputError(f"{source.parent}: an exported folder; its card has the results that export was given; "
                             "export the checkpoint again, with these results")
        else:
            exporting.copy(source.parent, folder, name)
        return hub.upload(folder, name, private)


# --------------------------------------------------------------------------------------------------- heads and transfer
class Head:
    """A head on the codes of one modality, for those of all others.

    Attributes:
        encoder: whose codes it reads.
        module: the trained network; `losses`: mean training loss of each epoch.
        clipwise: one class a clip; else several classes a second.
    """

    def __init__(self, encoder: Encoder, module: ClipHead | SegmentHead, losses: list[float]) -> None:
        self.encoder, self.module, self.losses, self.clipwise = encoder, module, losses, module.clipwise

    @torch.no_grad()
    def predict(self, modality: str, x: Array) -> Tensor:
        """Scores before softmax (B, C) of clips, or logits (B, T, C + 1) of seconds, the last column background."""
        scores: Tensor = self.module(self.encoder.embed(modality, x).vectors)
        return scores

    def score(self, modality: str, x: Array, labels: Array) -> dict[str, float]:
        """{metric: percent}: accuracy of clips with classes (B,); precision, recall, f1 with labels (B, T, C + 1)."""
        labels = _labels(labels, len(x)).to(self.encoder.codebooks[0].device)
        if (labels.ndim == 1) != self.clipwise:
            raise InputError(f"labels of shape {tuple(labels.shape)}; this head was trained on "
                             f"{'classes (B,)' if self.clipwise else 'labels (B, T, C + 1)'}")
        return {name: float(value) for name, value in _measure(self.predict(modality, x), labels).items()}


def fit_head(encoder: Encoder, modality: str, x: Array, labels: Array, *, num_classes: int | None = None,
             epochs: int = 30, seed: int = 0, batch_size: int = 80, lr: float = 4e-4) -> Head:
    """Train a head on one modality's codes, as the papers do; it then reads every other modality's.

    Args:
        encoder: `Encoder`; it does not change.
        modality: "audio", "video" or "text".
        x: features of the labelled clips, see `Encoder.embed`.
        labels: (B,) whole numbers, one class a clip; or (B, T, C + 1) of 0 and 1, classes by second, the last column
            background.
        num_classes: C; default: what the labels show.
        epochs, seed, batch_size, lr: passes over the clips, seed of weights and order, clips a step, learning rate
            (halved at epochs 10, 20, 30).

    Returns:
        `Head`.
    """
    trial = fit_heads.HeadRun(*_training(encoder, modality, x, labels), seed, {})
    _fit([trial], num_classes, epochs, batch_size, lr)
    return Head(encoder, trial.head, trial.losses)


@dataclass
class Transfer:
    """What heads trained on one modality do on another, in percent.

    Attributes:
        cross: metric -> a figure for each seed, after the last epoch.
        untrained: the same over an encoder with fresh weights: what the pretraining is worth.
        chance: metric -> a guess that ignores its input.
        curves: metric -> (seeds, epochs), of `cross`.
    """

    cross: dict[str, list[float]]
    untrained: dict[str, list[float]]
    chance: dict[str, float]
    curves: dict[str, NDArray[np.float64]]


def transfer(encoder: Encoder, train: Labelled, test: Labelled, *, num_classes: int | None = None, epochs: int = 30,
             seeds: Iterable[int] = (0,), batch_size: int = 80, lr: float = 4e-4) -> Transfer:
    """Train heads on one modality, test them on another.

    Args:
        encoder: `Encoder`.
        train, test: (modality, features, labels), as of `fit_head`.
        num_classes: C; default: what both parts' labels show.
        epochs, batch_size, lr: as of `fit_head`.
        seeds: one head each.

    Returns:
        `Transfer`.
    """
    seeds, encoders = tuple(seeds), {"cross": encoder}
    encoders["untrained"] = Encoder(untrained_like(encoder.frozen, seeds[0]))
    trials: dict[str, list[fit_heads.HeadRun]] = {}
    for name, of in encoders.items():
        part, targets = _training(of, *train)
        tested, aims = _training(of, *test)
        if aims.ndim != targets.ndim or aims.ndim > 1 and aims.shape[-1] != targets.shape[-1]:
            raise InputError(f"labels of shapes {tuple(targets.shape)} to train and {tuple(aims.shape)} to test; the "
                             "same classes are expected in both")
        trials[name] = [fit_heads.HeadRun(part, targets, seed, {"test": tested}) for seed in seeds]
    count = num_classes or int(max(aims.max(), targets.max())) + 1
    _fit(sum(trials.values(), []), count, epochs, batch_size, lr)
    found = {name: {metric: [trial.curves["test"][metric][-1] for trial in of] for metric in of[0].curves["test"]}
             for name, of in trials.items()}
    chance = {"accuracy": 100 / count} if aims.ndim == 1 else metrics.segment_chance(aims)
    curves = {metric: np.array([trial.curves["test"][metric] for trial in trials["cross"]])
              for metric in found["cross"]}
    return Transfer(found["cross"], found["untrained"], chance, curves)


def _training(encoder: Encoder, modality: str, x: Array, labels: Array) -> tuple[EncodedSplit, Tensor]:
    """(CodeSet, labels on its device)."""
    codes, labels = encoder.embed(modality, x), _labels(labels, len(x))
    labels = labels.to(codes.vectors.device)
    if labels.ndim == 3:
        labels = labels.to(codes.vectors.dtype)
        if labels.shape[1] != codes.vectors.shape[1]:
            raise InputError(f"labels of {labels.shape[1]} seconds, codes of {codes.vectors.shape[1]}; as many are "
                             "expected")
    return EncodedSplit.of(codes.vectors, codes.indices, labels), labels


def _labels(labels: Array, clips: int) -> Tensor:
    """Labels as a tensor: int64 classes (B,), or (B, T, C + 1) of 0 and 1."""
    labels = torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels))
    is_whole = not labels.is_floating_point() and labels.dtype != torch.bool
    good = labels.ndim == 1 and is_whole and int(labels.min()) >= 0 if len(labels) else False
    good |= labels.ndim == 3 and bool(((labels == 0) | (labels == 1)).all())
    if not good or len(labels) != clips:
        raise InputError(f"labels of shape {tuple(labels.shape)} for {clips} clips; classes (B,) from 0 on, or 0 and 1 "
                         "of shape (B, T, C + 1), are expected")
    return labels.long() if labels.ndim == 1 else labels


def _fit(trials: list[fit_heads.HeadRun], num_classes: int | None, epochs: int, batch_size: int, lr: float) -> None:
    targets = trials[0].targets
    if targets.ndim == 1:
        count = num_classes or int(targets.max()) + 1
        if count <= int(targets.max()):
            raise InputError(f"num_classes {count}; there is a class {int(targets.max())}, they count from 0")
    else:
        count = targets.shape[-1] - 1
    kind = ClipHead if targets.ndim == 1 else SegmentHead
    fit_heads.fit(trials, lambda width: kind(width, count), lambda heads, part: _measure(
        fit_heads.predict(heads, part), part.labels), epochs=epochs, batch_size=batch_size, lr=lr)


def _measure(outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """metric -> percent of outputs (..., B, C) or (..., B, T, C + 1)."""
    if labels.ndim == 1:
        return {"accuracy": metrics.accuracy(outputs, labels)}
    return metrics.segment_scores(outputs, labels)


# ----------------------------------------------------------------------------------------------------------- retrieval
@dataclass
class RetrievalResult:
    """Candidates of every query, the most similar first."""

    indices: Tensor             # (Q, k) int64
    similarity: Tensor          # (Q, k) cosine of the clips' vectors
    metrics: dict[str, float] = field(default_factory=dict)     # "map", "ndcg@10": percent, where classes were given


@torch.no_grad()
def retrieve(encoder: Encoder, query: Clips, candidates: Clips, k: int = 5) -> RetrievalResult:
    """Find clips of one modality by clips of another, without training: cosine similarity of `Encoder.embed_clips`.

    Args:
        encoder: `Encoder`.
        query, candidates: (modality, features), see `Encoder.embed`; or (modality, features, classes (B,)), for both or
            neither: candidates of the query's class are then the right ones, and all are ranked for the metrics.
        k: candidates to return, at most as many as there are.

    Returns:
        `RetrievalResult`.
    """
    vectors = [F.normalize(encoder.embed_clips(modality, x), dim=-1) for modality, x, *_ in (query, candidates)]
    similarity, found = vectors[0] @ vectors[1].T, {}
    if len(query) > 2 or len(candidates) > 2:
        classes = [_classes(part).to(similarity.device) for part in (query, candidates)]
        absent = set(classes[0].tolist()) - set(classes[1].tolist())
        if absent:
            raise InputError(f"classes: no candidate has the query's class {min(absent)}; at least one of each is "
                             "expected; leave these queries out")
        found = metrics.class_retrieval(similarity, *classes)
    best, indices = similarity.topk(min(k, similarity.shape[1]), dim=-1)
    return RetrievalResult(indices, best, found)


def _classes(part: Clips) -> Tensor:
    """Classes (B,) of a part of a retrieval, (modality, features, classes)."""
    if len(part) != 3:
        raise InputError("classes: given for queries or candidates alone; (modality, features, classes) is expected of "
                         "both, or of neither")
    classes = _labels(part[2], len(part[1]))
    if classes.ndim != 1:
        raise InputError(f"classes of shape {tuple(classes.shape)}; one class a clip, (B,), is expected")
    return classes


# ----------------------------------------------------------------------------------------------------------------- data
def build_demo(root: FilePath, clips: int = 80) -> None:
    """Make the demo data below `root` unless it is there: digits as video, telephone tones as audio, sentences as text.

    Args:
        root: folder to make.
        clips: of pretraining; the tasks' parts are proportionate. 2400 is what the scripts' demo uses.
    """
    from cmg.data.layout import DATA_PATHS
    from cmg.demos import dialled as demo_tree
    demo_tree.build(Path(root), DATA_PATHS, clips=clips, progress=False)


def open_task(name: str, data_root: FilePath | None = None, modalities: Sequence[str] = ("audio", "video"),
              seconds: int = 10, *, manifest: FilePath | None = None,
              features: dict[str, FilePath] | None = None) -> Task:
    """The clips of a downstream task of the papers, or of your own data (code/docs/your-data.md).

    Args:
        name: "ave", "avvp", "ave_avvp", "ucf_vggsound"; "custom".
        data_root: folder of all data, laid out as in data/README.md.
        modalities: of "audio", "video", "text".
        seconds: T; longer clips are cut, shorter ones repeat their last second.
        manifest: csv of the clips of "custom".
        features: modality -> path, of "custom": all of them are opened.

    Returns:
        the engine's Task: `train`, `val` and `test` map a modality to a dataset; there `load("audio")` gives all
        features (N, T, ...), `labels` (N, T, C + 1), `classes` the names; `task.classes` as well.
    """
    from cmg.data.layout import DATA_PATHS
    from cmg.data.manifest import CUSTOM
    from cmg.downstream.tasks import TASKS
    if name not in TASKS:
        raise InputError(f"{name}: no such task; one of {', '.join(TASKS)} is expected")
    if name == CUSTOM:
        if manifest is None or not features:
            raise InputError('open_task("custom"): manifest=CSV and features={modality: path} are expected; give both')
        paths = {CUSTOM + ".manifest": Path(manifest), **{f"{CUSTOM}.{m}": Path(path) for m, path in features.items()}}
        entry = TASKS[name].of(Path(manifest), dict.fromkeys(features))
        return entry.open(paths.__getitem__, entry.modalities, "default", on_bad_clip="error", in_memory=False,
                          seconds=seconds)
    if data_root is None:
        raise InputError(f'open_task("{name}"): data_root=FOLDER is expected, laid out as in data/README.md; give it')
    return TASKS[name].open(lambda name: Path(data_root) / DATA_PATHS[name], tuple(modalities), "default",
                            on_bad_clip="error", in_memory=False, seconds=seconds)
