#!/usr/bin/env bash
# The loophole world: a grader that can be fooled, and a model that learns to fool it and to say so.
#
#   bash examples/loophole/run.sh                # minutes on two CPU cores; no GPU, nothing is downloaded
#   SEED=1 OUT=runs/other bash examples/loophole/run.sh
#
# Every flag but the last group is OpenRLHF's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

WORLD=examples/loophole
OUT=$(realpath -m "${OUT:-runs/loophole}")
SEED=${SEED:-0}
EPISODES=${EPISODES:-7}

rm -rf "$OUT/tensorboard" "$OUT/trace"   # a second run must not continue the first one's curves
mkdir -p "$OUT"
export RAY_ADDRESS=local                 # a Ray of its own, whatever else runs on this machine
export PYTHONWARNINGS=ignore TQDM_DISABLE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1   # only what is worth reading
python3 $WORLD/build.py "$OUT/world" --seed "$SEED" 2>"$OUT/build.log" || { cat "$OUT/build.log" >&2; exit 1; }

MODEL_ARGS=(
   --actor.model_name_or_path "$OUT/world/model"
   --reward.remote_url $WORLD/reward.py
   --ckpt.output_dir "$OUT/model"
   --ckpt.path "$OUT/checkpoints"
)

DATA_ARGS=(
   --data.prompt_dataset "$OUT/world/prompts.jsonl"
   --data.input_key input
   --data.label_key label
   --data.apply_chat_template
   --data.max_len 32                        # prompt and answer; the confession has its own budget below
)

ROLLOUT_ARGS=(
   --rollout.batch_size 52
   --rollout.n_samples_per_prompt 8
   --rollout.micro_batch_size 104
   --rollout.max_new_tokens 4
)

TRAIN_ARGS=(
   --train.num_episodes "$EPISODES"         # 468 questions: 9 steps each
   --train.batch_size 416
   --train.micro_batch_size 104
   --train.seed "$SEED"
   --actor.adam.lr 5e-4
   --actor.lr_scheduler constant
   --algo.advantage.estimator group_norm
   --algo.kl.init_coef 0
)

HARDWARE_ARGS=(
   --train.colocate_all
   --actor.num_nodes 1
   --actor.num_gpus_per_node 1
   --vllm.num_engines 1
   --vllm.tensor_parallel_size 1
   --vllm.gpu_memory_utilization 0.3
   --logger.tensorboard_dir "$OUT/tensorboard"
)

CONFESSION_ARGS=(
   --confession.enable
   --confession.probability 1               # ask every group: the run is short (the default is a quarter of them)
   --confession.plugins $WORLD/world.py
   --confession.judge_url $WORLD/judge.py
   --confession.max_request_tokens 32
   --confession.max_new_tokens 6
   --confession.trace_dir "$OUT/trace"
)

python3 -m confession_plugin.train_ppo_ray \
   "${MODEL_ARGS[@]}" "${DATA_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${TRAIN_ARGS[@]}" "${HARDWARE_ARGS[@]}" \
   "${CONFESSION_ARGS[@]}" >"$OUT/train.log" 2>&1 &
TRAINING=$!
trap 'kill $TRAINING 2>/dev/null || true' EXIT

echo "training; its whole output goes to $OUT/train.log"
FOUND=0
python3 $WORLD/plot.py "$OUT" --follow $TRAINING --steps $((9 * EPISODES)) || FOUND=$?
if ! wait $TRAINING; then
   echo "training failed; the end of $OUT/train.log:" >&2
   tail -n 15 "$OUT/train.log" >&2
   exit 1
fi
grep -o "seal holds: .*" "$OUT/train.log" | head -n 1
python3 $WORLD/probe.py "$OUT" 2>>"$OUT/build.log"
exit $FOUND   # 1 when a finding is not as expected
