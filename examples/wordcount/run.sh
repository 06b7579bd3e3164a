#!/usr/bin/env bash
# The word-count task with confessions, on the GPUs of one node.  Every flag but the last group is OpenRLHF's own.
#
#   bash examples/wordcount/serve.sh &                                    # GPUs 4 to 7: grader and judge
#   CUDA_VISIBLE_DEVICES=0,1,2,3 bash examples/wordcount/run.sh [further flags; the last one wins]
#   MODEL=Qwen/Qwen3-8B GPUS=4 OUT=runs/wordcount STEPS=100 SEED=0
#   JUDGE_URL=examples/wordcount/judge.py     the judge that counts, instead of a server
#   STOCK=1                                   the host alone
#   ... --confession.coef 0                   just ask: judged and logged, not trained
#   ... --confession.coef 0 --confession.request_path examples/wordcount/verify.txt     the baseline to beat
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}
MODEL=${MODEL:-Qwen/Qwen3-8B}
GPUS=${GPUS:-4}
OUT=$(realpath -m "${OUT:-runs/wordcount}")
STEPS=${STEPS:-100}
JUDGE_URL=${JUDGE_URL:-http://127.0.0.1:8002/v1}
export GRADER_URL=${GRADER_URL:-http://127.0.0.1:8001/v1} GRADER_MODEL=${GRADER_MODEL:-Qwen/Qwen3-1.7B}
export RAY_ADDRESS=${RAY_ADDRESS:-local}   # a Ray of its own; RAY_ADDRESS=auto joins a running one
mkdir -p "$OUT"
"$PYTHON" "$HERE/build.py" "$OUT/data" --count $((STEPS * 64))

MODEL_ARGS=(
   --actor.model_name_or_path "$MODEL"
   --reward.remote_url "$HERE/reward.py"
   --ckpt.output_dir "$OUT/model"
   --ckpt.path "$OUT/checkpoints"
)
DATA_ARGS=(
   --data.prompt_dataset "$OUT/data/prompts.jsonl"
   --data.input_key input
   --data.label_key label
   --data.apply_chat_template
   --data.max_len 2048
)
ROLLOUT_ARGS=(
   --rollout.batch_size 64
   --rollout.n_samples_per_prompt 8
   --rollout.max_new_tokens 1024
)
TRAIN_ARGS=(
   --train.batch_size 512
   --train.micro_batch_size 4
   --rollout.micro_batch_size 8
   --train.num_episodes 1
   --train.seed "${SEED:-0}"
   --actor.adam.lr 1e-6
   --actor.lr_scheduler constant
   --algo.advantage.estimator group_norm
   --algo.kl.init_coef 0
   --ds.zero_stage 3
   --ds.param_dtype bf16
   --ds.packing_samples
   --actor.gradient_checkpointing_enable
)
HARDWARE_ARGS=(
   --train.colocate_all
   --vllm.enable_sleep
   --ds.enable_sleep
   --actor.num_nodes 1
   --actor.num_gpus_per_node "$GPUS"
   --ref.num_nodes 1
   --ref.num_gpus_per_node "$GPUS"
   --vllm.num_engines "$GPUS"
   --vllm.tensor_parallel_size 1
   --vllm.gpu_memory_utilization 0.6
   --vllm.enable_prefix_caching
   --vllm.sync_backend nccl
   --logger.tensorboard_dir "$OUT/tensorboard"
)
CONFESSION_ARGS=()
if [ -z "${STOCK:-}" ]; then
   CONFESSION_ARGS=(
      --confession.enable
      --confession.probability "${PROBABILITY:-1}"   # the small reproduction asks every rollout, the paper a quarter
      --confession.judge_url "$JUDGE_URL"
      --confession.max_new_tokens 1024
      --confession.trace_dir "$OUT/trace"
   )
   case $JUDGE_URL in *.py) ;; *) CONFESSION_ARGS+=(--confession.judge_model "${JUDGE_MODEL:-Qwen/Qwen3-8B}") ;; esac
fi

exec "$PYTHON" -m confession_plugin.train_ppo_ray \
   "${MODEL_ARGS[@]}" "${DATA_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${TRAIN_ARGS[@]}" "${HARDWARE_ARGS[@]}" \
   "${CONFESSION_ARGS[@]}" "$@"
