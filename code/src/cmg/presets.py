"""Sets of defaults: presets (paths and settings for a dataset), recipes (training settings), and values that depend on
the size of the user's own data."""

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
    # Natural, field recordings and photographs: 39 steps per epoch, 390 steps. Clip length and feature width are taken
    # from the data.
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

# A recipe changes training defaults and can be combined with any preset; flags override it as well. docs/decisions.md
# explains how each was chosen.
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


# Unless --recipe published is given, own data uses OWN_RECIPE, if the system has its settings, and values that depend
# on the number of clips and seconds (docs/your-data.md; evidence in benchmarks/studies/own-data.md).
OWN_RECIPE = "shared"
OWN_SIZES = ("batch_size", "n_embeddings", "n_epoch", "lr_drops", "print_freq", "save_freq")
OWN_EPOCHS, OWN_STEPS = 15, (150, 600)  # limits; more if the published epochs take more
OWN_BATCH = (12, 80)            # limits of a quarter of the clips
OWN_CODES = 32                  # minimum; the maximum is the published number
SECONDS_PER_CODE = 16
LOSS_LINES, CHECKPOINTS = 20, 6     # per run, approximately


def own_sizes(clips, seconds, epochs, codes, given):
    """Settings of a pretraining run on own data that depend on the amount of data.

    Args:
        clips: number of clips to train on, at least 1.
        seconds: T.
        epochs, codes: published numbers of the system.
        given: name -> value of settings, including `max_steps`; those that are not None take precedence.

    Returns:
        name -> value of OWN_SIZES.
    """
    given = {name: value for name, value in given.items() if value is not None}
    batch_size = given.get("batch_size", min(max(clips // 4, OWN_BATCH[0]), OWN_BATCH[1], max(clips, 2)))
    an_epoch = math.ceil(clips / batch_size)
    steps = min(max(OWN_EPOCHS * an_epoch, OWN_STEPS[0]), OWN_STEPS[1])
    n_epoch = given.get("n_epoch", max(epochs, math.ceil(steps / an_epoch)))
    steps = min(an_epoch * n_epoch, given.get("max_steps", math.inf))
    num_codes = 2 ** round(math.log2(max(clips * seconds / SECONDS_PER_CODE, OWN_CODES)))
    values = (batch_size, min(num_codes, codes), n_epoch,
              [],                               # the published run also ends before its first drop
              min(max(steps // LOSS_LINES, 1), 50), max(math.ceil(steps / an_epoch) // CHECKPOINTS, 1))
    return {name: given.get(name, value) for name, value in zip(OWN_SIZES, values)}
