"""From nothing to a cross-modal result: demo data, pretraining, every downstream task, table, pictures and report.

A classifier that was trained on telephone tones recognises handwritten digits for which it never saw a label.
"""

from configs.opts import PLACES
from demo_data import demo_tree
from errors import run
from walkthrough import arguments, walk


def main(argv=None):
    walk("demo", arguments("demo", __doc__), lambda own, root: demo_tree.build(root, PLACES), argv)


if __name__ == "__main__":
    run(main)
