"""Count the lines of code of Python files, excluding blank lines, comments and docstrings.

    python code/benchmarks/count_lines.py [FOLDER ...]       default: code/src and code/AVSBench_downstream
"""

import argparse
import ast
import io
import tokenize
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
NOT_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
            tokenize.ENCODING)


def code_lines(source: str) -> int:
    """Number of lines of Python `source` without blank lines, comments and docstrings."""
    lines = {line for token in tokenize.generate_tokens(io.StringIO(source).readline)
             if token.type not in NOT_CODE for line in range(token.start[0], token.end[0] + 1)}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[CODE / "src", CODE / "AVSBench_downstream"])
    folders = parser.parse_args(argv).folders
    total = 0
    for folder in folders:
        counts = {path: code_lines(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}
        print(f"{sum(counts.values()):7,}  {folder}  ({len(counts)} files)")
        total += sum(counts.values())
    print(f"{total:7,}  total")


if __name__ == "__main__":
    main()
