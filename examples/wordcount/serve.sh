#!/usr/bin/env bash
# The two servers of the word-count recipe, on the GPUs that GRADER_GPUS and JUDGE_GPUS name.  Ends with Ctrl-C.
#
#   bash examples/wordcount/serve.sh
#   GRADER_GPUS=4,5 JUDGE_GPUS=6,7 GRADER_MODEL=Qwen/Qwen3-1.7B JUDGE_MODEL=Qwen/Qwen3-8B   # these are the defaults
set -euo pipefail
GRADER_GPUS=${GRADER_GPUS:-4,5}
JUDGE_GPUS=${JUDGE_GPUS:-6,7}
gpus() { awk -F, '{print NF}' <<<"$1"; }

PROCESSES=()
trap 'kill "${PROCESSES[@]}" 2>/dev/null || true' EXIT

CUDA_VISIBLE_DEVICES=$GRADER_GPUS vllm serve "${GRADER_MODEL:-Qwen/Qwen3-1.7B}" --port "${GRADER_PORT:-8001}" \
   --data-parallel-size "$(gpus "$GRADER_GPUS")" --max-model-len 4096 &
PROCESSES+=($!)
CUDA_VISIBLE_DEVICES=$JUDGE_GPUS vllm serve "${JUDGE_MODEL:-Qwen/Qwen3-8B}" --port "${JUDGE_PORT:-8002}" \
   --data-parallel-size "$(gpus "$JUDGE_GPUS")" --max-model-len 16384 &
PROCESSES+=($!)
wait -n   # when one of them ends, so does the other
