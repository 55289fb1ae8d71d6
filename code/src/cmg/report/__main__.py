"""`python -m cmg.report RUN...` writes report.html about one run, or several side by side; `--environment` prints the
machine information to include in a bug report."""

from pathlib import Path

from cmg.utils.errors import Parser, run


def main(argv=None):
    parser = Parser(prog="python -m cmg.report", description="Write an HTML page about one or more runs.")
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN",
                        help="folders of runs, searched recursively; differences are relative to the first")
    parser.add_argument("--out", type=Path, default=None, help="the page (default: report.html in the first RUN)")
    parser.add_argument("--pool", action="store_true",
                        help="treat checkpoints with the same file name, such as seed*/DCID-model-5.pt, as seeds of "
                             "one run and show mean and standard deviation")
    parser.add_argument("--environment", action="store_true",
                        help="print versions, processor, GPUs and commit for bug reports, and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    options = parser.parse_args(argv)
    if options.environment:
        from cmg.report.environment import environment  # imported here and below because --help does not need it
        print(environment())
        return
    if not options.runs:
        parser.error("expected at least one RUN: a folder with results.jsonl or metrics.jsonl")
    if options.out and options.out.suffix not in (".html", ".htm"):
        parser.error(f"--out {options.out}: expected the name of an HTML page, such as report.html")
    from cmg.report import page
    print(page.write(options.runs, options.out or options.runs[0] / "report.html", pool=options.pool))


if __name__ == "__main__":
    run(main)
