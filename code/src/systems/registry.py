"""The systems, by the name that --system and checkpoint files know them by."""

from systems.codaar import CoDAAR
from systems.dcid import DCID
from systems.fcid import FCID
from systems.h_dcid import HDCID
from systems.micu import MICU

SYSTEMS = {system.name: system for system in (DCID, HDCID, FCID, MICU, CoDAAR)}
