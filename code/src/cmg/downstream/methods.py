"""How the heads of a task are trained and evaluated, by `TaskEntry.kind` (cmg/downstream/tasks.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cmg.downstream import retrieval, run
from cmg.downstream.open_set import OpenSet
from cmg.downstream.settings import OWN_SECONDS_BY
from cmg.downstream.task import Task
from cmg.models.heads import ClipHead, RetrievalHead, SegmentHead


@dataclass(frozen=True)
class Method:
    """The parts of one kind of task."""

    head: type[Any]                     # cmg/models/heads.py
    task: Callable[..., Task] = Task
    evaluate: Callable[..., list[dict[str, Any]]] = run.evaluate


def own_task(name, head, best_by, train, **parts):
    """The task of a manifest: classification of clips, or of seconds if it has onsets."""
    if any(clips.has_times for clips in train.values()):
        head, best_by = SegmentHead, OWN_SECONDS_BY
    return Task(name, head, best_by, train, **parts)


METHODS = {
    "clips": Method(ClipHead),
    "seconds": Method(SegmentHead),
    "open set": Method(ClipHead, OpenSet),
    "retrieval": Method(RetrievalHead, retrieval.Retrieval, retrieval.evaluate),
    "own": Method(ClipHead, own_task),
}
