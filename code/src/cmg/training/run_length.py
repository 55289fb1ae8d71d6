"""How long a pretraining run is, in words: what a newcomer with other data should know before it starts."""

import math

PUBLISHED_STEPS = 3066          # 40,801 clips, 80 a step, 6 epochs (NeurIPS 2023)
FAR_BELOW = 1 / 3               # of these


def lines(num_clips, batch_size, n_epoch, num_codes, max_steps=None):
    """Steps in all and clips a code; where the steps are far below the published run's, a line that says so and which
    flag changes it.

    Args:
        num_clips, batch_size, n_epoch: of the run.
        num_codes: K.
        max_steps: at which it stops, if any.
    Returns:
        list of one or two lines.
    """
    an_epoch = math.ceil(num_clips / batch_size)
    steps = min(an_epoch * n_epoch, max_steps or an_epoch * n_epoch)
    found = [f"{steps:,} steps in all ({an_epoch:,} an epoch, {n_epoch} epochs, {batch_size} clips a step), "
             f"{num_clips / num_codes:.1f} clips a code"]
    if steps < FAR_BELOW * PUBLISHED_STEPS:
        remedy = f"--n_epoch {math.ceil(PUBLISHED_STEPS / an_epoch)} or a smaller --batch_size brings it there"
        if steps < an_epoch * n_epoch:
            remedy = "--max_steps ends it there"
        found.append(f"{steps:,} steps are far below the {PUBLISHED_STEPS:,} of the published run, in which codes "
                     f"settle and modalities come to share them; {remedy}")
    return found
