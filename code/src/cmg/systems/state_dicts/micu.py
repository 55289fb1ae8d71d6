"""Published names of MICU's tensors: DCID's. The jigsaw has none; nobody saves it but we."""

from cmg.systems.state_dicts.dcid import PARTS

__all__ = ["PARTS"]
