"""What is doubtful about the results of one encoder, collected over its directions: one warning of each kind."""

from dataclasses import dataclass, field

from cmg.results.rows import show
from cmg.training.monitors import sharing_advice

SHOWN = 6                       # directions that a warning names


@dataclass
class Doubts:
    """Directions of an encoder, as texts such as "ave video->audio".

    Attributes:
        directions: all that were measured.
        apart: those whose tested modality has no code that the labeled one has.
        chance: those that stay at chance with every seed -> their values.
    """

    directions: dict = field(default_factory=dict)      # as an ordered set
    apart: dict = field(default_factory=dict)           # -> codebooks
    chance: dict = field(default_factory=dict)

    def add(self, rows, metric, clips):
        """Look at the result lines of a task.

        Args:
            rows: result lines; those of the pretrained encoder with selection "best" are judged.
            metric: the metric that chooses the best epoch.
            clips: modality -> number of test clips, for the standard deviation of guessing.
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
            found.append(f"{len(names)} of {total} directions have no code of the labeled modality in the tested one, "
                         f"and transfer only as far as the codes lie near each other: {_listed(names)}; pretrain "
                         f"longer, {advice}and check that the features of a clip belong together")
        return found


def direction_of(task, direction, variant):
    """Name of a direction, such as "ave video->audio"."""
    return " ".join(filter(None, [task, "->".join(direction), variant]))


def _listed(names):
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
