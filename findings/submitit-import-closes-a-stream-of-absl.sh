#!/usr/bin/env bash
# Importing submitit closes a file that belongs to the program, if absl was imported before. submitit sets up logging with
# dictConfig when it is imported, and dictConfig closes all handlers that there are. absl's handler, which TensorBoard brings
# along, then closes its stream, unless that is sys.stderr or sys.stdout at this moment: so where absl was imported while
# sys.stderr was another file, as under pytest or redirect_stderr, that file is closed, and the next who writes to it gets
# "I/O operation on closed file". Importing submitit before absl closes nothing.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "submitit==1.5.4" "absl-py==2.5.1"
cd "$work"
cat > order.py <<'P'
import contextlib
import importlib
import importlib.metadata
import sys

with open("mine.txt", "w") as mine:
    for name in sys.argv[1:]:
        with contextlib.redirect_stderr(mine):
            if name == "absl":
                importlib.import_module("absl.logging")
        if name == "submitit":
            importlib.import_module("submitit")
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("submitit", "absl-py")), end="; ")
    print(f"{' then '.join(sys.argv[1:])}: the file is {'closed' if mine.closed else 'open'}")
P
first=$(env/bin/python order.py absl submitit); second=$(env/bin/python order.py submitit absl)
printf '%s\n%s\n' "$first" "$second"
[[ $first == *"file is closed" && $second == *"file is open" ]]
