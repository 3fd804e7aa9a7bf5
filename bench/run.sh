#!/usr/bin/env bash
# All committed figures, made anew; prints Markdown tables. About fifteen minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
"$python" learning.py --seeds 10
echo
"$python" learning.py --seeds 10 --p 0.1 --mode useless
echo
"$python" learning.py --seeds 10 --p 0.1 --mode harmful
