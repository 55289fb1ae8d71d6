"""Compare our modules with golden numbers of the published programs, in float64.

    python code/tests/parity.py [--golden DIR]

One line per file and quantity group: worst relative error, tolerance, verdict. Files of unknown systems are skipped
with a warning. Exit code 1 if a number is off or a known file cannot be checked.
"""

import traceback
from pathlib import Path

import conftest  # noqa: F401  first: it puts the source folders on the path
import parity_avs
import parity_codaar
import parity_dcid
import parity_fcid_micu
import parity_features
import parity_manifests
import parity_oscmg
import parity_parts
from cmg.utils.errors import InputError, Parser, run
from golden_io import Check

HERE = Path(__file__).resolve().parent
CHECKS = {}
for module in (parity_manifests, parity_dcid, parity_fcid_micu, parity_codaar, parity_oscmg, parity_parts, parity_avs,
               parity_features):
    for stem, function in module.CHECKS.items():
        CHECKS.setdefault(stem, []).append(function)


def stems(folder):
    """Names of the golden files in a folder, without their endings, sorted."""
    return sorted({path.stem for path in Path(folder).iterdir() if path.suffix in (".npz", ".json")})


def compare(folder, stem):
    """All checks of one golden file; a file that cannot be read is one failed check."""
    results = []
    for check in CHECKS[stem]:
        try:
            results += check(Path(folder))
        except Exception as error:      # whatever is wrong with this file, the others are still to be checked
            traceback.print_exc()
            results.append(Check(stem, f"could not be checked: {type(error).__name__}: {error}"[:90], float("nan"), 0))
    return results


def main(argv=None):
    parser = Parser(prog="parity.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--golden", type=Path, default=HERE / "golden", metavar="DIR", help="folder of golden files")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    folder = parser.parse_args(argv).golden
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected golden files such as dcid_small.npz; name it by --golden")
    found = stems(folder)
    known = [stem for stem in found if stem in CHECKS]
    if not known:
        raise InputError(f"{folder}: holds no golden file that is known here; expected one of {', '.join(CHECKS)}")
    for stem in found:
        if stem not in CHECKS:
            print(f"{stem:24} not known here: skipped")
    results = []
    for stem in known:
        for result in compare(folder, stem):
            print(result, flush=True)
            results.append(result)
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
