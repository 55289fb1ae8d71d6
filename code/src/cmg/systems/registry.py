"""The systems, by the names used by --system and in checkpoint files."""

from cmg.systems.codaar import CoDAAR
from cmg.systems.dcid import DCID
from cmg.systems.fcid import FCID
from cmg.systems.h_dcid import HDCID
from cmg.systems.micu import MICU

SYSTEMS = {system.name: system for system in (DCID, HDCID, FCID, MICU, CoDAAR)}
