"""Sets of defaults: presets (where things lie, and how a data set is trained and tested) and recipes (how to learn)."""

# A preset changes defaults; flags still win over it. `folder` is where it lives below each of the three roots, `run`
# below that where pretraining saves, `pretrained` what downstream scripts load, `tasks` what differs from task to task.
PRESETS = {
    # Dialled Digits: 32 video channels instead of 512, ten classes, 30 steps per epoch; minutes on two CPU cores. Codes
    # that stay unused are reset from step 301 on, so the run goes on beyond it.
    "demo": {"folder": "demo", "run": "{system}-seed{seed}", "pretrained": "dcid-seed0/DCID-model-11.pt",
             "in_memory": True,
             "pretrain": {"n_embeddings": 100, "n_epoch": 12, "seed": 0, "print_freq": 15, "keep": 2},
             "downstream": {"seeds": [0]}},
    # Spoken Digits, real recordings: 16 video channels, ten classes, 30 steps per epoch, 510 steps. The list's test and
    # validation clips are not pretrained on.
    "spoken": {"folder": "spoken", "run": "{system}-seed{seed}", "pretrained": "dcid-seed0/DCID-model-16.pt",
               "in_memory": True,
               "pretrain": {"splits": ["train"], "n_epoch": 17, "seed": 0, "print_freq": 30, "keep": 2},
               "downstream": {"seeds": [0]}},
    # The published scripts of CoDAAR; add --protocol released for their way of evaluating.
    "codaar": {"pieces": True, "pretrain": {"system": "codaar"}, "pretrained": "CoDAAR-model-AVT-5.pt",
               "tasks": {"ave": {"batch_size": 256, "lr": 2.5e-4}, "avvp": {"batch_size": 64, "segment_layers": 4},
                         "ave_avvp": {"n_epoch": 30}}},
}

# A recipe changes defaults of learning and goes with any preset; flags win over it, too. What each was chosen by:
# docs/decisions.md.
RECIPES = {
    # Clips contrasted in the codebook's space, one code for a second of audio and video, unused codes re-drawn early
    # and between them: modalities share their codes, in half the steps.
    "shared": {"weights": [("contrast", 3.0)], "codebook_init": "data", "code_reset": "full", "code_choice": "joint",
               "reset_to": "second", "reset_after": 60},
}
