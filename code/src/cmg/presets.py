"""Sets of defaults: presets (paths and settings for a data set) and recipes (settings of training)."""

import json

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
    # Contrast between clips in the space of the codebook, joint codes of audio and video, and early resets of unused
    # codes to the mean of the modalities: they share their codes after half the steps.
    "shared": {"weights": [("contrast", 3.0)], "codebook_init": "data", "code_reset": "full", "code_choice": "joint",
               "reset_to": "second", "reset_after": 60},
}


def has_recipe(name, options):
    """Whether a run's options, name -> value, are those of a recipe."""
    plain = [json.dumps({key: of.get(key) for key in RECIPES[name]}, default=str) for of in (options, RECIPES[name])]
    return plain[0] == plain[1]
