"""Published names of MICU's tensors: DCID's. The jigsaw has none; nobody saves it but we."""

from systems.dcid_names import PARTS

__all__ = ["PARTS"]
