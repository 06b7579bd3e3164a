#!/usr/bin/env bash
# The reports world on the product's default path: built-in request, the paper's report, a judge server with the
# built-in rubric and three ratings.  Every flag but the last group is OpenRLHF's own.
#
#   python3 examples/reports/build.py runs/reports/world
#   WORLD=runs/reports/world OUT=runs/reports/run bash examples/reports/run.sh [further flags; the last one wins]
#   STEPS=30 SEED=0 PROMPTS=16 LR=7e-4 PORT=8123 JUDGE="--false-accept 0.2" STOCK=1
#
# With another model behind the same protocol, change --confession.judge_url and --confession.judge_model.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}
WORLD=$(realpath "${WORLD:?folder that build.py made}")
OUT=$(realpath -m "${OUT:?folder for the run}")
STEPS=${STEPS:-30}
PROMPTS=${PROMPTS:-16}
PORT=${PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
mkdir -p "$OUT"
rm -rf "$OUT/tensorboard" "$OUT/trace"   # a second run must not continue the first one's curves
export RAY_ADDRESS=local                 # a Ray of its own, whatever else runs on this machine
export PYTHONWARNINGS=ignore TQDM_DISABLE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 HF_HUB_OFFLINE=1

PROCESSES=()
trap 'kill "${PROCESSES[@]}" 2>/dev/null || true' EXIT

JUDGE_URL=${JUDGE_URL:-}
CONFESSION_ARGS=()
if [ -z "${STOCK:-}" ]; then   # STOCK=1: without --confession.enable this is the host alone
   if [ -z "$JUDGE_URL" ]; then
      # shellcheck disable=SC2086  # several flags in one variable
      "$PYTHON" "$HERE/judge.py" --port "$PORT" ${JUDGE:-} >"$OUT/judge.log" 2>&1 &
      PROCESSES+=($!)
      JUDGE_URL=http://127.0.0.1:$PORT/v1
      for _ in $(seq 100); do
         "$PYTHON" -c "import socket; socket.create_connection(('127.0.0.1', $PORT), 1)" 2>/dev/null && break
         sleep 0.2
      done
   fi
   CONFESSION_ARGS=(
      --confession.enable
      --confession.probability 1
      --confession.judge_url "$JUDGE_URL"
      --confession.judge_model rule
      --confession.max_request_tokens 64
      --confession.max_new_tokens 96
      --confession.trace_dir "$OUT/trace"
   )
fi

"$PYTHON" -m confession_plugin.train_ppo_ray \
   --actor.model_name_or_path "$WORLD/model" \
   --reward.remote_url "$HERE/reward.py" \
   --ckpt.output_dir "$OUT/model" --ckpt.path "$OUT/checkpoints" \
   --data.prompt_dataset "$WORLD/prompts.jsonl" --data.input_key input --data.label_key label \
   --data.apply_chat_template --data.max_len 48 --data.max_samples $((STEPS * PROMPTS)) \
   --rollout.batch_size "$PROMPTS" --rollout.n_samples_per_prompt 8 --rollout.micro_batch_size 128 \
   --rollout.max_new_tokens 7 \
   --train.num_episodes 1 --train.batch_size $((PROMPTS * 8)) --train.micro_batch_size 64 --train.seed "${SEED:-0}" \
   --actor.adam.lr "${LR:-7e-4}" --actor.lr_scheduler constant \
   --algo.advantage.estimator group_norm --algo.kl.init_coef 0 \
   --train.colocate_all --actor.num_nodes 1 --actor.num_gpus_per_node 1 --vllm.num_engines 1 \
   --vllm.tensor_parallel_size 1 --vllm.gpu_memory_utilization 0.3 \
   --logger.tensorboard_dir "$OUT/tensorboard" \
   "${CONFESSION_ARGS[@]}" "$@" >"$OUT/train.log" 2>&1 &
TRAINING=$!
PROCESSES+=("$TRAINING")
wait "$TRAINING" || { status=$?; tail -n 5 "$OUT/train.log" >&2; exit "$status"; }
