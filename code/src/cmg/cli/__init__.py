"""Command-line parsers of all scripts: `parse_pretrain`, `parse_downstream` and so on return checked `Options`.

Every setting is declared once (cmg/utils/settings.py), next to the code that uses it; those declared here are used by
the scripts. Paths come from configs/opts.py, as `LocalPaths`.
"""

from cmg.cli.options import (
    LocalPaths,
    Options,
    add_shared,
    auto_or_path,
    device,
    gpu_argument,
    local_paths,
    path_argument,
    root,
)
from cmg.cli.pretraining import affects_results, own_data_sizes, parse_pretrain, pretrain_parser
from cmg.cli.tasks import downstream_parser, parse_clip_retrieval, parse_downstream, parse_evaluate, parse_toc

__all__ = ["LocalPaths", "Options", "add_shared", "affects_results", "auto_or_path", "device", "downstream_parser",
           "gpu_argument", "local_paths", "own_data_sizes", "parse_clip_retrieval", "parse_downstream",
           "parse_evaluate", "parse_pretrain", "parse_toc", "path_argument", "pretrain_parser", "root"]
