"""Recognize a cut copy of a published VGGSound list by its content.

An early upload of the data package held a 40k list cut to about 20,000 clips: DCID pretrained on it reaches 41 instead
of 52 percent on AVE, audio to video. The lists themselves are not part of this project, so a sketch of each stands
here, the smallest hashes of its rows. Of any other list, the hashes up to the largest of these tell which share of the
published list it holds, and whether it holds anything else (bottom-k sketch; with 128 hashes, give or take 4 percent).
"""

import hashlib
from dataclasses import dataclass

LEAST = 8                       # hashes from which on a share is told; a list of a few hundred rows has fewer


@dataclass(frozen=True)
class Sketch:
    """The smallest hashes of a list's rows."""

    name: str
    rows: int
    hashes: frozenset[int]

    @classmethod
    def read(cls, name: str, rows: int, text: str) -> "Sketch":
        """From hashes of eight hexadecimal digits each, blanks between them or not."""
        digits = "".join(text.split())
        return cls(name, rows, frozenset(int(digits[i:i + 8], 16) for i in range(0, len(digits), 8)))


def row_hash(category: str, video_id: str) -> int:
    """32 bits of the SHA-256 of a row without its split."""
    return int(hashlib.sha256(f"{category},{video_id}".encode()).hexdigest()[:8], 16)


def warn_of_cut(categories: list[str], ids: list[str], known: "tuple[Sketch, ...] | None" = None) -> str | None:
    """A line about a list that is a part of a published one; None for a whole one and for lists of other clips.

    Args:
        categories, ids: of the list's rows, as cmg.data.sets.vggsound.read_list gives them.
        known: the published lists, the smallest first.
    """
    hashes = {row_hash(*row) for row in zip(categories, ids)}
    for sketch in known or PUBLISHED:
        below = {one for one in hashes if one <= max(sketch.hashes)}
        shared = below & sketch.hashes
        if len(below) < LEAST or len(shared) < 0.9 * len(below):
            continue                                                # other clips
        if len(shared) > 0.98 * len(sketch.hashes):
            return None
        return (f"a part of the published {sketch.name} list: {len(ids):,} of its {sketch.rows:,} clips; an early "
                "upload of the data package was cut to 20k, with which AVE reaches 41 instead of 52 percent: get the "
                "current one, unless you left clips out yourself")
    return None


PUBLISHED = (
    Sketch.read("40k", 40801, """
        0001309a 0005f204 00082640 000923ef 00098a35 000c6408 000d0350 000d59ab 000dc023 000e742f 000f1a28 000f5f01
        00129c5b 00153de2 0015ed08 0016c6d7 0017acca 00182875 00183628 00196071 001b5d30 001c65e4 001dc82a 001f2d89
        001fabd2 001fdaeb 00205a93 00212ea1 0021aa9e 00229684 0024bf02 00275d6a 002b104b 002c9ce9 002c9f0a 002ee50a
        002f0ce3 0030f0aa 0032b34a 00353248 0036aa05 0037fbc5 003ad848 003ae400 003b7e7b 003ca389 003e4ea2 003f147a
        0041b38d 00423ece 0043a53b 00441993 004504f1 0045d3a8 0045e1de 00471236 0047505e 004a40a9 004ee056 004f7d26
        0050a139 0050ed6d 005144d1 0051fe92 0052d08f 0053d2fa 005445b2 00547e1f 0054d4fe 0055f2e4 00564ea5 0056d04e
        005ab091 005b585d 005d6c89 005f5864 005ffc2b 00603fd6 00620d3b 0064ce62 0065d628 0067358f 00678712 006896eb
        0069a759 006aa2bb 006aedd5 006cc889 006d522a 00735e82 007801d7 0079e19b 007bb8cb 00813f2c 0081aa8c 00857e49
        0086443f 0088624c 0088b919 008c2a60 008d9308 009059c4 009061c6 00917ca8 009218bc 009277ad 00932ace 009436b2
        0095204e 0095eca2 0095f5e2 00971803 00992119 00994f14 009aa301 009dda1e 009de2f6 009df6a3 009ec237 009faa9a
        00a02dcf 00a2bf65 00a2f0e1 00a4fa82 00a552be 00a89894 00ac22ab 00ac6b1f
    """),
    Sketch.read("90k", 87323, """
        000029d6 0001309a 0001f34e 00020b15 0005ed2c 0005f204 00066fc9 0006e397 0007aefb 00082640 00089fe2 0008ba70
        0008d53d 000923ef 00098a35 000b64b1 000c6408 000cfdb2 000d0350 000d4c49 000d876f 000dc023 000f1a28 000f5f01
        00129c5b 001369c3 001400b0 00146c96 00153de2 0015ed08 0016c6d7 0017acca 00182875 00183628 0018a63e 00197d61
        001b2b81 001b5d30 001c3e7b 001c65e4 001cc70b 001dc82a 001e1a15 001e6d2f 001f2d89 001fabd2 001fdaeb 00205a93
        00212ea1 002161a1 0021aa9e 00229684 00247279 0024bf02 00255385 002582c4 0026787c 00274588 00275d6a 00277adf
        002aeee5 002c9ce9 002c9f0a 002d096f 002d32d4 002e1647 002ee50a 002f0ce3 002f2940 002f5c74 002fb1bd 0030f0d0
        0031b24f 0032741e 0032b34a 00335004 00342709 0034d5ca 003574aa 0036aa05 00371b58 0037548a 0037fbc5 00381802
        003864a7 003a2f15 003ad848 003ae400 003b7e7b 003d9833 003e4ea2 003e764a 003e8e3e 003f147a 003fdd0a 0040295b
        0041b38d 00423ece 0042834e 0043a53b 004504f1 00458e75 0045aca1 0045d3a8 0045e1de 0046c113 0047505e 00476120
        00484247 00488357 0049d124 004a1237 004a40a9 004a4c27 004b5a71 004becc5 004df187 004e6b04 004ee056 004f7d26
        0050a139 00511fe1 005144d1 0051fe92 0052cc54 0052d08f 0053d2fa 005445b2
    """),
)
