"""Sets of defaults: presets (paths and settings for a data set), recipes (settings of training), and the values that
own data gets by its size."""

import json
import math

# A preset changes defaults, which flags override. `folder` is its folder below each of the three roots, `run` the
# folder below that in which pretraining saves, `pretrained` the checkpoint that downstream scripts load, and `tasks`
# holds settings of single tasks.
PRESETS = {
    # Dialled Digits: 32 video channels instead of 512, ten classes, 30 steps per epoch; takes minutes on two CPU cores.
    # Unused codes are reset from step 301 on, so the run is longer than that.
    "demo": {"folder": "demo", "run": "{system}-seed{seed}", "pretrained": "dcid-seed0/DCID-model-11.pt",
             "in_memory": True,
             "pretrain": {"n_embeddings": 100, "n_epoch": 12, "seed": 0, "print_freq": 15, "keep": 2},
             "downstream": {"seeds": [0]}},
    # Spoken Digits, real recordings: 16 video channels, ten classes, 30 steps per epoch, 510 steps. Test and validation
    # clips are not used for pretraining.
    "spoken": {"folder": "spoken", "run": "{system}-seed{seed}", "pretrained": "dcid-seed0/DCID-model-16.pt",
               "in_memory": True,
               "pretrain": {"splits": ["train"], "n_epoch": 17, "seed": 0, "print_freq": 30, "keep": 2},
               "downstream": {"seeds": [0]}},
    # Natural, field recordings and photographs: 39 steps per epoch, 390 steps. Length of the clips and width of the
    # features are those of the data.
    "natural": {"folder": "natural", "run": "{system}-seed{seed}", "pretrained": "dcid-seed0/DCID-model-9.pt",
                "in_memory": True,
                "pretrain": {"splits": ["train"], "n_epoch": 10, "seed": 0, "print_freq": 39, "keep": 2,
                             "seconds": "auto", "standardize": "channel"},
                "downstream": {"seeds": [0]}},
    # The published scripts of CoDAAR; add --protocol released for their evaluation.
    "codaar": {"pieces": True, "pretrain": {"system": "codaar"}, "pretrained": "CoDAAR-model-AVT-5.pt",
               "tasks": {"ave": {"batch_size": 256, "lr": 2.5e-4}, "avvp": {"batch_size": 64, "segment_layers": 4},
                         "ave_avvp": {"n_epoch": 30}}},
}

# A recipe changes defaults of training, can be combined with any preset, and is overridden by flags, too. See
# docs/decisions.md for how each was chosen.
RECIPES = {
    # The papers' values, for own data as well.
    "published": {"standardize": "none"},
    # Contrast between clips in the space of the codebook, joint codes of audio and video, and early resets of unused
    # codes to the mean of the modalities: they share their codes after half the steps.
    "shared": {"weights": [("contrast", 3.0)], "codebook_init": "data", "code_reset": "full", "code_choice": "joint",
               "reset_to": "second", "reset_after": 60},
}


def has_recipe(name, options):
    """Whether a run's options, name -> value, are those of a recipe."""
    plain = [json.dumps({key: of.get(key) for key in RECIPES[name]}, default=str) for of in (options, RECIPES[name])]
    return plain[0] == plain[1]


# Without --recipe published, own data gets a recipe, where the system has its settings, and values by the number of
# clips and seconds (docs/your-data.md; the evidence: benchmarks/studies/own-data.md).
OWN_RECIPE = "shared"
OWN_SIZES = ("batch_size", "n_embeddings", "n_epoch", "lr_drops", "print_freq", "save_freq")
OWN_EPOCHS, OWN_STEPS = 15, (150, 600)  # within these; more where the published epochs are
OWN_BATCH = (12, 80)            # a quarter of the clips, within these
OWN_CODES = 32                  # at least; at most as published
SECONDS_A_CODE = 16
LOSS_LINES, CHECKPOINTS = 20, 6     # of a run, about


def own_sizes(clips, seconds, epochs, codes, given):
    """Settings of a pretraining run on own data that depend on the amount of it.

    Args:
        clips: number of clips to train on, at least 1.
        seconds: T.
        epochs, codes: of the system, as published.
        given: name -> value of settings; those that are not None win, also `max_steps`.

    Returns:
        name -> value of OWN_SIZES.
    """
    given = {name: value for name, value in given.items() if value is not None}
    batch_size = given.get("batch_size", min(max(clips // 4, OWN_BATCH[0]), OWN_BATCH[1], max(clips, 2)))
    an_epoch = math.ceil(clips / batch_size)
    steps = min(max(OWN_EPOCHS * an_epoch, OWN_STEPS[0]), OWN_STEPS[1])
    n_epoch = given.get("n_epoch", max(epochs, math.ceil(steps / an_epoch)))
    steps = min(an_epoch * n_epoch, given.get("max_steps", math.inf))
    num_codes = 2 ** round(math.log2(max(clips * seconds / SECONDS_A_CODE, OWN_CODES)))
    values = (batch_size, min(num_codes, codes), n_epoch,
              [],                               # the published run, too, ends before its first drop
              min(max(steps // LOSS_LINES, 1), 50), max(math.ceil(steps / an_epoch) // CHECKPOINTS, 1))
    return {name: given.get(name, value) for name, value in zip(OWN_SIZES, values)}
