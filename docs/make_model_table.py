"""Write src/patchform/model_table.json: every backbone in numbers, made from the backbones themselves.

python docs/make_model_table.py            # writes; some minutes, as every variant is built and counted on no device
python docs/make_model_table.py --check    # writes nothing; exit code 1 and the names where the table is another
"""

import argparse
import dataclasses
import json
import sys

from patchform import lookup, model_table
from patchform.commands.models import counted
from patchform.model_table import ModelRow


def text(rows: list[ModelRow]) -> str:
    """A row a line."""
    return "[\n" + ",\n".join(json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in rows) + "\n]\n"


def differing(rows: list[ModelRow], table: dict[str, ModelRow]) -> list[str]:
    """Names that either lacks or has otherwise, and that the order differs."""
    own = {row.name: row for row in rows}
    names = [name for name in {**own, **table} if own.get(name) != table.get(name)]
    return names or ([] if list(own) == list(table) else ["the order of the rows"])


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table, write nothing")
    check = parser.parse_args().check
    rows = [counted(name) for name in lookup.backbones()]
    if not check:
        model_table.FILE.write_text(text(rows), encoding="utf-8")
        return 0
    if names := differing(rows, model_table.rows()):
        print(f"python docs/make_model_table.py: the table is another for {', '.join(names)}", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
