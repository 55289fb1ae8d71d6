"""What the parts of a model that look at a whole batch ask for, where one process holds all of it.

Several processes (cmg/utils/dist.py) answer the same questions together. A batch is then cut over them in order,
and every loss term is computed in full by each of them, its gradient flowing into the clips that the process holds;
the sum of all processes' parameter gradients is the gradient of one process with the whole batch.
"""


class Alone:
    """One process, which holds every clip."""

    is_first, size = True, 1

    def part(self, order, batch_size):
        """Clips that this process reads, of an epoch's order (N,), and how many of them per step."""
        return order, batch_size

    def expect(self, clips, step):
        """The next step's batch has `clips` clips in all."""

    def agree(self, value):
        """The largest of all processes' whole numbers."""
        return value

    def own(self, x):
        """The first dimension's entries that count here (a process without clips computes on a stand-in)."""
        return x

    def gather(self, x):
        """The whole batch (B, ...) of what each process has for its clips; backward keeps the own clips' part."""
        return x

    def average(self, x, real=None):
        """Mean over the batch from each process's mean over its clips; backward gives each its share. With the mask
        `real` (B, T) it is a mean over the real seconds."""
        return x

    def pool(self, x, real=None):
        """As `average`, for what each clip is changed by, such as batch statistics: backward adds up the gradients of
        all processes."""
        return x

    def total(self, x):
        """Sum over the processes, without gradient."""
        return x

    def add_gradients(self, tensors):
        """From now on the gradients of these leaves are added up over the processes."""

    def finish_gradients(self):
        """Wait until every gradient is added up."""

    def clips(self, x):
        """Clips of the whole batch of which `x` holds the own ones."""
        return len(x)


ALONE = Alone()
