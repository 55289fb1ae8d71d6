"""The systems, by the name that --system and checkpoint files know them by."""

from systems.codaar import CoDAAR
from systems.dcid import DCID
from systems.h_dcid import HDCID

SYSTEMS = {system.name: system for system in (DCID, HDCID, CoDAAR)}
