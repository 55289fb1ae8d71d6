"""`python -m cmg.results FILE` prints tables of results files; --verify checks them against the files they name."""

from pathlib import Path

from cmg.results import rows
from cmg.utils.console import width
from cmg.utils.errors import Parser, run


def main(argv=None):
    """Print the tables of one or more results files, or check whether their rows still match the files they came
    from."""
    parser = Parser(prog="python -m cmg.results", description="Print the table of results files.")
    parser.add_argument("files", nargs="+", type=Path, help="results.jsonl of one or more runs")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_const", const="markdown", dest="form", default="text")
    form.add_argument("--csv", action="store_const", const="csv", dest="form", default="text")
    form.add_argument("--verify", action="store_true",
                      help="hash the checkpoints and data lists named by the rows, and report rows that no longer "
                           "match (exit code 1)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    options = parser.parse_args(argv)
    if options.verify:
        from cmg.results import provenance  # imported here because the rest of this command does not need PyTorch
        checked = [found for file in options.files for found in provenance.verify(rows.read(file), file.parent)]
        print(provenance.report(checked))
        return 1 if any(problems for _, problems in checked) else 0
    print(rows.summary(rows.read(*options.files), options.form, width()))


if __name__ == "__main__":
    run(main)
