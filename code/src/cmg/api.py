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
from cmg.models.config import MODALITIES
from cmg.models.heads import ClipHead, SegmentHead
from cmg.systems.base import Codes, FrozenEncoder
from cmg.utils import arguments
from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS

Array: TypeAlias = Tensor | NDArray[Any]
FilePath: TypeAlias = str | PathLike[str]
Labeled: TypeAlias = tuple[str, Array, Array]          # modality, features, labels
Clips: TypeAlias = tuple[str, Array] | Labeled         # modality, features, and classes where they are known

BATCH = 64                      # clips encoded at once; results do not depend on it


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
            x: tensor or array (of any byte order and strides) of floating-point features of the pretraining's sizes:
                vectors (B, T, W), maps (B, T, H, W, C), text (B, L, W) word vectors.

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
        if not isinstance(modality, str) or modality not in self.modalities:
            raise InputError(f"{str(modality)[:60]}: this encoder was pretrained on {', '.join(self.modalities)}")
        x = arguments.tensor(x, f"{modality} features")
        config = self.frozen.config
        given = x.shape[1 if config.kind(modality) == "tokens" else 2:]
        if not config.fits(modality, given) or not x.numel() or not x.is_floating_point():
            raise InputError(f"{modality} features of shape {tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')}; "
                             f"{config.axes(modality)} floating-point numbers are expected")
        if not (x.abs() < LIMITS.feature).all():
            raise InputError(f"{modality} features: NaN, infinite numbers, or beyond {LIMITS.feature:g} among them; "
                             "finite features are expected; fix or leave out these clips")
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
        path = arguments.path(path, "features_of: path")
        if seconds is not None:
            seconds = arguments.integer(seconds, "features_of: seconds", 1, LIMITS.video_seconds)
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
        known = [found for name in ("audio", "video") if (found := (self.frozen.features or {}).get(name))]
        timing = clip.Timing.of(seconds or self.frozen.config.seconds, known[0] if known else {})
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
    arguments.path(source, "load: source")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"load: dtype {dtype!s:.40}; torch.float32 or another floating-point type is expected")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, AttributeError):
        raise InputError(f"load: device {device!s:.40}; \"cpu\", \"cuda\" or a torch.device is expected") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("load: device cuda; this machine has no GPU that PyTorch can use; take \"cpu\"")
    file = hub.locate(source, revision)
    return Encoder(hub.load_encoder(file, device, dtype), file)


def pretrain(data_root: FilePath | None, out: FilePath, **options: Any) -> Path:
    """Pretrain a system, as pretrain.py does.

    Args:
        data_root: folder of all data, laid out as in data/README.md, or of `build_demo`; None for data of your own.
        out: folder of the checkpoints, and of the run's folder `run`: metrics.jsonl, log.txt, TensorBoard.
        options: of pretrain.py (see its --help), for example system="dcid", n_epoch=2, batch_size=40, in_memory=True;
            dataset_name="custom", manifest="clips.csv", features={"audio": "audio", "video": "video.h5"}. None leaves
            one at its default.

    Returns:
        the last checkpoint, a Path for `load`.

    Raises:
        InputError: no data, or options that do not exist.
    """
    from cmg.cli import LocalPaths
    from cmg.programs import entry
    from cmg.training.run_logger import restored_log
    folder = arguments.path(out, "pretrain: out")
    given = ["--model_save_path", str(folder), "--snapshot_pref", str(folder / "run")]
    given += [] if data_root is None else ["--data_root", str(arguments.path(data_root, "pretrain: data_root"))]
    for name, value in options.items():
        if isinstance(value, dict):
            given += [part for key, of in value.items() for part in (f"--{name}", f"{key}={of}")]
        elif value is not None and value is not False:
            values = value if isinstance(value, (list, tuple, range, np.ndarray)) else [value]
            given += [f"--{name}"] + ([] if value is True else [str(v) for v in values])
    try:
        with restored_log():
            last: Path = entry.pretrain(given, LocalPaths())
            return last
    except SystemExit:                  # argparse has said why on standard error
        raise InputError(f"pretrain: {' '.join(given)}: not options of pretrain.py") from None


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
    return exporting.export(arguments.path(checkpoint, "export: checkpoint"), arguments.path(out, "export: out"),
                            arguments.paths(results, "export: results"))


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
        classes: names of the classes, in the order of the scores' columns; None where they were given as numbers.
        trained: numbers of the classes that clips may have; None where any is possible.
    """

    def __init__(self, encoder: Encoder, module: ClipHead | SegmentHead, losses: list[float],
                 classes: list[str] | None = None, trained: set[int] | None = None) -> None:
        self.encoder, self.module, self.losses, self.clipwise = encoder, module, losses, module.clipwise
        self.classes, self.trained = classes, trained

    @torch.no_grad()
    def predict(self, modality: str, x: Array) -> Tensor:
        """Scores before softmax (B, C) of clips, or logits (B, T, C + 1) of seconds, the last column background."""
        scores: Tensor = self.module(self.encoder.embed(modality, x).vectors)
        return scores

    def score(self, modality: str, x: Array, labels: Array) -> dict[str, float]:
        """{metric: percent}: accuracy of clips with classes (B,); precision, recall, f1 with labels (B, T, C + 1).

        Raises:
            InputError: labels of another form than those that it was trained on, or of classes that these did not have.
        """
        scores = self.predict(modality, x)
        truth = _labels(labels, len(scores), self.classes).to(scores.device)
        if (truth.ndim == 1) != self.clipwise or truth.ndim == 3 and truth.shape != scores.shape:
            form = "classes (B,)" if self.clipwise else f"labels (B, T, C + 1), which is {tuple(scores.shape)} here"
            raise InputError(f"labels of shape {tuple(truth.shape)}; this head was trained on {form}")
        _require_trained(truth, self.trained)
        return {name: float(value) for name, value in _measure(scores, truth).items()}


def fit_head(encoder: Encoder, modality: str, x: Array, labels: Array, *, num_classes: int | None = None,
             epochs: int = 30, seed: int = 0, batch_size: int = 80, lr: float = 4e-4) -> Head:
    """Train a head on one modality's codes, as the papers do; it then reads every other modality's.

    Args:
        encoder: `Encoder`; it does not change.
        modality: "audio", "video" or "text".
        x: features of the labeled clips, see `Encoder.embed`.
        labels: (B,) whole numbers from 0 on or names, one class a clip; or (B, T, C + 1) of 0 and 1, classes by second,
            the last column background.
        num_classes: C; default: what the labels show.
        epochs, seed, batch_size, lr: passes over the clips, seed of weights and order, clips a step, learning rate
            (halved at epochs 10, 20, 30).

    Returns:
        `Head`.

    Raises:
        InputError: features or labels of another form, or options out of range.
    """
    classes = _names(labels)
    part, targets = _training(encoder, modality, x, labels, classes)
    trial = fit_heads.HeadRun(part, targets, arguments.integer(seed, "seed"), {})
    _fit([trial], len(classes) if num_classes is None and classes else num_classes, epochs, batch_size, lr)
    trained = set(targets.tolist()) if targets.ndim == 1 and num_classes is None else None
    return Head(encoder, trial.head, trial.losses, classes, trained)


@dataclass
class Transfer:
    """What heads trained on one modality do on another, in percent.

    Attributes:
        cross: metric -> a value for each seed, after the last epoch.
        untrained: the same over an encoder with fresh weights: what the pretraining is worth.
        chance: metric -> a guess that ignores its input.
        curves: metric -> (seeds, epochs), of `cross`.
    """

    cross: dict[str, list[float]]
    untrained: dict[str, list[float]]
    chance: dict[str, float]
    curves: dict[str, NDArray[np.float64]]


def transfer(encoder: Encoder, train: Labeled, test: Labeled, *, num_classes: int | None = None, epochs: int = 30,
             seeds: Iterable[int] = (0,), batch_size: int = 80, lr: float = 4e-4) -> Transfer:
    """Train heads on one modality, test them on another.

    Args:
        encoder: `Encoder`.
        train, test: (modality, features, labels), as of `fit_head`.
        num_classes: C; default: what the labels to train on show, which must have every class to test on.
        epochs, batch_size, lr: as of `fit_head`.
        seeds: one head each.

    Returns:
        `Transfer`.

    Raises:
        InputError: features or labels of another form, or options out of range.
    """
    seeds = _seeds(seeds)
    for name, given in (("train", train), ("test", test)):
        if not isinstance(given, (tuple, list)) or len(given) != 3:
            raise InputError(f"{name}: (modality, features, labels) is expected")
    encoders, classes = {"cross": _encoder(encoder)}, _names(train[2])
    encoders["untrained"] = Encoder(untrained_like(encoder.frozen, seeds[0]))
    trials: dict[str, list[fit_heads.HeadRun]] = {}
    for name, of in encoders.items():
        part, targets = _training(of, *train, classes)
        tested, aims = _training(of, *test, classes)
        if aims.ndim != targets.ndim or aims.ndim > 1 and aims.shape[-1] != targets.shape[-1]:
            raise InputError(f"labels of shapes {tuple(targets.shape)} to train and {tuple(aims.shape)} to test; the "
                             "same classes are expected in both")
        trials[name] = [fit_heads.HeadRun(part, targets, seed, {"test": tested}) for seed in seeds]
    if num_classes is None:
        _require_trained(aims, set(targets.tolist()) if targets.ndim == 1 else None)
        num_classes = len(classes) if classes else None
    count = _fit(sum(trials.values(), []), num_classes, epochs, batch_size, lr)
    found = {name: {metric: [trial.curves["test"][metric][-1] for trial in of] for metric in of[0].curves["test"]}
             for name, of in trials.items()}
    chance = {"accuracy": 100 / count} if aims.ndim == 1 else metrics.segment_chance(aims)
    curves = {metric: np.array([trial.curves["test"][metric] for trial in trials["cross"]])
              for metric in found["cross"]}
    return Transfer(found["cross"], found["untrained"], chance, curves)


def _encoder(encoder: Encoder) -> Encoder:
    if not isinstance(encoder, Encoder):
        raise InputError(f"encoder: a value of type {type(encoder).__name__}; one of cmg.load is expected")
    return encoder


def _seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    try:
        found = tuple(seeds)
    except TypeError:
        found = ()
    if not found:
        raise InputError("seeds: a list of whole numbers is expected, at least one")
    return tuple(arguments.integer(seed, "seeds") for seed in found)


def _training(encoder: Encoder, modality: str, x: Array, labels: Array,
              classes: list[str] | None) -> tuple[EncodedSplit, Tensor]:
    """(codes with labels, labels on their device); `classes`: see `_labels`."""
    codes = _encoder(encoder).embed(modality, x)
    found = _labels(labels, len(codes.vectors), classes).to(codes.vectors.device)
    if found.ndim == 3:
        found = found.to(codes.vectors.dtype)
        if found.shape[1] != codes.vectors.shape[1]:
            raise InputError(f"labels of {found.shape[1]} seconds, codes of {codes.vectors.shape[1]}; as many are "
                             "expected")
    return EncodedSplit.of(codes.vectors, codes.indices, found), found


def _names(labels: Any) -> list[str] | None:
    """Names of classes, sorted; None where labels are numbers."""
    found = arguments.names(labels)
    return None if found is None else sorted(set(found))


def _labels(labels: Any, clips: int, classes: list[str] | None = None) -> Tensor:
    """Labels as a tensor: int64 classes (B,), or (B, T, C + 1) of 0 and 1.

    Args:
        labels: of the caller.
        clips: B.
        classes: names by number, where labels may be names.
    """
    given = arguments.names(labels)
    if given is not None:
        known = {name: number for number, name in enumerate(classes or [])}
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise InputError(f"labels: the class '{unknown[:60]}' is not one of those to train on "
                             f"({', '.join(known)[:200] or 'they were numbers'}); correct it, or leave these clips out")
        labels = np.array([known[name] for name in given])
    found = arguments.tensor(labels, "labels")
    is_whole = not found.is_floating_point() and found.dtype != torch.bool
    good = found.ndim == 1 and is_whole and int(found.min()) >= 0 if found.numel() else False
    good |= found.ndim == 3 and found.shape[2] > 1 and found.numel() > 0 and bool(((found == 0) | (found == 1)).all())
    if not good or len(found) != clips:
        raise InputError(f"labels of shape {tuple(found.shape)} for {clips} clips; classes (B,) from 0 on, or 0 and 1 "
                         "of shape (B, T, C + 1), are expected")
    if found.ndim == 1 and int(found.max()) >= LIMITS.classes:
        raise InputError(f"labels: the class {int(found.max()):,}; numbers from 0 on, below {LIMITS.classes:,}, are "
                         "expected; number the classes, as np.unique(labels, return_inverse=True) does, or give names")
    return found.long() if found.ndim == 1 else found


def _require_trained(classes: Tensor, trained: set[int] | None) -> None:
    """InputError for a class (B,) that no clip to train on had."""
    absent = set(classes.tolist()) - trained if trained is not None and classes.ndim == 1 else set()
    if absent:
        raise InputError(f"labels: no clip to train on has the class {min(absent)}; at least one of each is expected; "
                         "leave these clips out, or give num_classes to count them as wrong")


def _fit(trials: list[fit_heads.HeadRun], num_classes: int | None, epochs: int, batch_size: int, lr: float) -> int:
    """Train heads, and give the number of classes."""
    targets = trials[0].targets
    epochs, batch_size = arguments.integer(epochs, "epochs", 1), arguments.integer(batch_size, "batch_size", 1)
    lr = arguments.not_negative(lr, "lr")
    if targets.ndim == 1:
        largest = max(int(t.max()) for t in [targets, *(part.labels for part in trials[0].measured.values())])
        count = largest + 1 if num_classes is None else num_classes
        count = arguments.integer(count, "num_classes", 1, LIMITS.classes)
        if count <= largest:
            raise InputError(f"num_classes {count}; there is a class {largest}, they count from 0")
    else:
        count = targets.shape[-1] - 1
    kind = ClipHead if targets.ndim == 1 else SegmentHead
    fit_heads.fit(trials, lambda width: kind(width, count), lambda heads, part: _measure(
        fit_heads.predict(heads, part), part.labels), epochs=epochs, batch_size=batch_size, lr=lr)
    return count


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
    k = arguments.integer(k, "k", 1)
    for name, given in (("query", query), ("candidates", candidates)):
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise InputError(f"{name}: (modality, features) or (modality, features, classes) is expected")
    vectors = [F.normalize(_encoder(encoder).embed_clips(modality, x), dim=-1)
               for modality, x, *_ in (query, candidates)]
    similarity, found = vectors[0] @ vectors[1].T, {}
    if len(query) > 2 or len(candidates) > 2:
        known = _names(candidates[-1])
        classes = [_classes(part, known).to(similarity.device) for part in (query, candidates)]
        absent = set(classes[0].tolist()) - set(classes[1].tolist())
        if absent:
            raise InputError(f"classes: no candidate has the query's class {min(absent)}; at least one of each is "
                             "expected; leave these queries out")
        found = metrics.class_retrieval(similarity, *classes)
    best, indices = similarity.topk(min(k, similarity.shape[1]), dim=-1)
    return RetrievalResult(indices, best, found)


def _classes(part: Clips, known: list[str] | None) -> Tensor:
    """Classes (B,) of a part of a retrieval, (modality, features, classes); `known`: see `_labels`."""
    if len(part) != 3:
        raise InputError("classes: given for queries or candidates alone; (modality, features, classes) is expected "
                         "for both, or no classes at all")
    classes = _labels(part[2], len(part[1]), known)
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
    demo_tree.build(arguments.path(root, "build_demo: root"), DATA_PATHS,
                    clips=arguments.integer(clips, "build_demo: clips", 1, LIMITS.clips), progress=False)


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
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"{str(name)[:60]}: no such task; one of {', '.join(TASKS)} is expected")
    seconds = arguments.integer(seconds, "open_task: seconds", 1, LIMITS.video_seconds)
    if isinstance(modalities, str) or not set(modalities) <= set(MODALITIES) or not modalities:
        raise InputError(f"open_task: modalities {modalities!r:.60}; some of {', '.join(MODALITIES)} are expected, as "
                         'modalities=("audio", "video")')
    if name == CUSTOM:
        if manifest is None or not features or not isinstance(features, dict):
            raise InputError('open_task("custom"): manifest=CSV and features={modality: path} are expected; give both')
        paths = {CUSTOM + ".manifest": arguments.path(manifest, "open_task: manifest"),
                 **{f"{CUSTOM}.{m}": arguments.path(of, f"open_task: features of {m}") for m, of in features.items()}}
        entry = TASKS[name].of(paths[CUSTOM + ".manifest"], dict.fromkeys(features))
        return entry.open(paths.__getitem__, entry.modalities, "default", on_bad_clip="error", in_memory=False,
                          seconds=seconds)
    if data_root is None:
        raise InputError(f'open_task("{name}"): data_root=FOLDER is expected, laid out as in data/README.md; give it')
    root = arguments.path(data_root, "open_task: data_root")
    return TASKS[name].open(lambda name: root / DATA_PATHS[name], tuple(modalities), "default",
                            on_bad_clip="error", in_memory=False, seconds=seconds)
