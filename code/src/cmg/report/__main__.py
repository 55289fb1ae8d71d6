"""`python -m cmg.report RUN...` writes report.html about one run, or several side by side; `--environment` prints what
a bug report should include about this machine."""

from pathlib import Path

from cmg.utils.errors import Parser, run


def main(argv=None):
    parser = Parser(prog="python -m cmg.report", description="One page about one or more runs, for any browser.")
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN",
                        help="folders of runs, each searched with all folders below it; differences are to the first")
    parser.add_argument("--out", type=Path, default=None, help="the page (default: report.html in the first RUN)")
    parser.add_argument("--pool", action="store_true",
                        help="checkpoints of one file name, such as seed*/DCID-model-5.pt, are one run: mean and "
                             "standard deviation over them")
    parser.add_argument("--environment", action="store_true",
                        help="print versions, processor, GPUs and commit, for bug reports, and end")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    options = parser.parse_args(argv)
    if options.environment:
        from cmg.report.environment import environment  # here and below, because --help needs none of it
        print(environment())
        return
    if not options.runs:
        parser.error("at least one RUN is expected: a folder with results.jsonl or metrics.jsonl")
    from cmg.report import page
    print(page.write(options.runs, options.out or options.runs[0] / "report.html", pool=options.pool))


if __name__ == "__main__":
    run(main)
