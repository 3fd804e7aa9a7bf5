#!/usr/bin/env bash
# All committed figures but those of gates/, embedded.py and peers.py, made anew; prints Markdown tables. About an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
run() { echo; echo "\$ python $*"; echo; "$python" "$@"; }
run overhead.py
run journal.py
run span.py --seeds 2
run span.py --seeds 2 --presets default --hedge
run hedging.py
run learning.py --seeds 10
run learning.py --seeds 10 --presets paper --p 0.1 --mode useless
run learning.py --seeds 10 --presets paper --p 0.1 --mode harmful
for first in 0 40; do
  run learning.py --seeds 40 --first $first --presets default --p 0.1 --mode useless
  run learning.py --seeds 40 --first $first --presets default --p 0.1 --mode harmful
done
run learning.py --seeds 10 --first 40
run kills.py
run signals.py
run faults.py
run memory.py --seeds 8
run gateway.py
