#!/usr/bin/env bash
# The loophole world in TRL's GRPOTrainer: the same world, plugin, judge and findings as run.sh.
#
#   bash examples/loophole/run_trl.sh            # minutes on two CPU cores; no GPU, nothing is downloaded
#   SEED=1 OUT=runs/other bash examples/loophole/run_trl.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

WORLD=examples/loophole
OUT=$(realpath -m "${OUT:-runs/loophole-trl}")
SEED=${SEED:-0}
STEPS=${STEPS:-63}

rm -rf "$OUT/tensorboard" "$OUT/trace"   # a second run must not continue the first one's curves
mkdir -p "$OUT"
export PYTHONWARNINGS=ignore TRANSFORMERS_NO_ADVISORY_WARNINGS=1   # only what is worth reading
python3 $WORLD/build.py "$OUT/world" --seed "$SEED" 2>"$OUT/build.log" || { cat "$OUT/build.log" >&2; exit 1; }

OMP_NUM_THREADS=1 python3 $WORLD/train_trl.py "$OUT" --seed "$SEED" --steps "$STEPS" >"$OUT/train.log" 2>&1 &
TRAINING=$!
trap 'kill $TRAINING 2>/dev/null || true' EXIT

echo "training; its whole output goes to $OUT/train.log"
FOUND=0
python3 $WORLD/plot.py "$OUT" --follow $TRAINING --steps "$STEPS" || FOUND=$?
if ! wait $TRAINING; then
   echo "training failed; the end of $OUT/train.log:" >&2
   tail -n 15 "$OUT/train.log" >&2
   exit 1
fi
grep -o "seal holds: .*" "$OUT/train.log" | head -n 1
python3 $WORLD/probe.py "$OUT" 2>>"$OUT/build.log"
exit $FOUND   # 1 when a finding is not as expected
