"""Use an encoder as an MTEB model (pip install mteb), with one vector per clip: the mean of its codes.

    mteb.evaluate(CMGEncoder("somebody/dcid", audio="logmel", video="patches"), tasks)
"""

import tempfile
from pathlib import Path

import datasets
import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta

import cmg


class CMGEncoder(AbsEncoder):
    """Model for tasks on audio, video or both; `front_ends` are passed to `cmg.Encoder.features_of`."""

    def __init__(self, model_name, revision=None, device="cpu", **front_ends):
        self.encoder, self.front_ends = cmg.load(model_name, device, revision=revision), front_ends
        self.mteb_model_meta = ModelMeta.create_empty({"modalities": list(front_ends)})

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        """Vectors (clips, D) of audio or video, or their mean if the clips of the task have both."""
        clips, kinds = inputs.dataset, {"audio": datasets.Audio, "video": datasets.Video}
        modalities = [m for m in self.front_ends if m in clips.column_names]
        for modality in modalities:             # keep files undecoded; features_of decodes them
            clips = clips.cast_column(modality, kinds[modality](decode=False))
        return torch.stack([torch.stack([self.vector(m, clip[m]) for m in modalities]).mean(0) for clip in clips])

    def vector(self, modality, file):
        """Vector (D,) of one modality of a clip, given as a file or its bytes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(file["path"] or "clip")
            if file["bytes"] is not None:
                path = Path(folder) / path.name
                path.write_bytes(file["bytes"])
            features = self.encoder.features_of(path, **{modality: self.front_ends[modality]})
        return self.encoder.embed_clips(modality, features[modality])[0].cpu()
