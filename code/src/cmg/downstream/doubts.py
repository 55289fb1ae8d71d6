"""Doubts about the results of one encoder, collected over all directions, with one warning of each kind."""

from dataclasses import dataclass, field

from cmg.results.rows import show
from cmg.training.monitors import sharing_advice

SHOWN = 6                       # maximum number of directions named in a warning


@dataclass
class Doubts:
    """Directions of an encoder, as texts such as "ave video->audio".

    Attributes:
        directions: all measured ones.
        apart: those in which the tested modality has no code in common with the labeled one.
        chance: those that stay at chance with every seed -> their values.
    """

    directions: dict = field(default_factory=dict)      # as an ordered set
    apart: dict = field(default_factory=dict)           # -> codebooks
    chance: dict = field(default_factory=dict)

    def add(self, rows, metric, clips):
        """Check the result lines of a task.

        Args:
            rows: result lines; those of the pretrained encoder with selection "best" are judged.
            metric: metric by which the best epoch is chosen.
            clips: modality -> number of test clips, for the standard deviation of chance.
        """
        found = {}
        for row in rows:
            if (row["metric"], row["selection"], row["control"]) == (metric, "best", None):
                name = direction_of(row["task"], row["direction"].split("->"), row["variant"])
                found.setdefault(name, []).append(row)
        self.directions |= dict.fromkeys(found)
        for name, of_seeds in found.items():
            value, chance = max(row["value"] for row in of_seeds), of_seeds[0]["chance"]
            if chance is None:
                continue
            deviation = (chance * (100 - chance) / clips[of_seeds[0]["direction"].split("->")[1]]) ** 0.5
            if value <= chance + 2 * deviation:
                self.chance[name] = f"{metric} {show([value])}, chance {chance:.1f} +- {deviation:.1f}"

    def lines(self, encoder):
        """The warnings, with advice that fits the run of a FrozenEncoder."""
        found, total = [], len(self.directions)
        if self.chance:
            names = [f"{name} ({values})" for name, values in self.chance.items()]
            found.append(f"{len(names)} of {total} directions stay at chance: {_listed(names)}; check that the "
                         "checkpoint is pretrained well (python -m cmg.checkpoints FILE), and the same-modality values")
        if self.apart:
            names = [f"{name}{f' ({books})' if books else ''}" for name, books in self.apart.items()]
            advice = sharing_advice(encoder.system.name, encoder.pretraining.get("options", {}))
            found.append(f"in {len(names)} of {total} directions, the tested modality shares no code with the labeled "
                         f"one, so transfer depends on how close their codes are: {_listed(names)}; pretrain longer, "
                         f"{advice}and check that the features of a clip belong together")
        return found


def direction_of(task, direction, variant):
    """Name of a direction, such as "ave video->audio"."""
    return " ".join(filter(None, [task, "->".join(direction), variant]))


def _listed(names):
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
