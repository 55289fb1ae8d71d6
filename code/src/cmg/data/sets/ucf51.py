"""UCF-101 clips of the 51 classes with audio; video and audio of the same clips (open-set task, ICCV 2025)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmg.data.clips import Clips, Paths
from cmg.data.csv import class_indices, first_rows, read_classes, read_table
from cmg.data.labels import single_event

CLASSES = (             # label order of the published list
    "PlayingCello", "UnevenBars", "FrisbeeCatch", "CliffDiving", "FrontCrawl", "BasketballDunk",
    "FieldHockeyPenalty", "BoxingPunchingBag", "HammerThrow", "CricketBowling", "PlayingDhol", "Hammering",
    "ApplyLipstick", "HandStandPushups", "HandstandWalking", "PlayingFlute", "MoppingFloor", "PlayingDaf",
    "PlayingSitar", "ApplyEyeMakeup", "BlowingCandles", "Typing", "BrushingTeeth", "CricketShot", "Rafting",
    "BodyWeightSquats", "BlowDryHair", "Bowling", "WallPushups", "TableTennisShot", "Archery", "BandMarching",
    "WritingOnBoard", "BalanceBeam", "IceDancing", "HeadMassage", "LongJump", "Haircut", "FloorGymnastics",
    "SkyDiving", "Shotput", "CuttingInKitchen", "SoccerPenalty", "ShavingBeard", "Surfing", "ParallelBars",
    "Knitting", "SumoWrestling", "BabyCrawling", "BoxingSpeedBag", "StillRings")


class UCF51(Clips):
    """All clips of the list; every second is foreground.

    Args:
        paths: name -> Path of "categories" (label = line), "csv" (category, video_id), "audio", "video".
        modalities: from "audio" and "video".
        on_bad_clip, reading (in_memory, seconds, padding): see `Clips`.
    Raises:
        InputError: an invalid list, unknown class, missing or bad clips.
    """

    def __init__(self, paths: Paths, modalities: Sequence[str] = ("audio", "video"), *, on_bad_clip: str = "error",
                 **reading: Any) -> None:
        classes = read_classes(paths["categories"])
        table = read_table(paths["csv"], ("category", "video_id"))
        rows = first_rows(paths["csv"], table["video_id"], on_bad_clip)
        index = np.array(class_indices(paths["csv"], [table["category"][row] for row in rows], classes,
                                       paths["categories"]))
        super().__init__("UCF51", modalities, [table["video_id"][row] for row in rows],
                         {m: paths[m] for m in modalities}, classes=classes,
                         labels=single_event(index, np.ones((len(index), 1)), len(classes)),
                         on_bad_clip=on_bad_clip, **reading)
