#!/bin/sh
# One question with curl: the whole answer, then the same as a stream of events.
set -eu
base=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
key="Authorization: Bearer ${OPENAI_API_KEY:-none}"

curl -sS --fail-with-body "$base/chat/completions" -H "$key" -H 'Content-Type: application/json' --data '{
  "messages": [{"role": "user", "content": "Who are you?"}],
  "temperature": 0,
  "max_tokens": 100
}'
echo

curl -sSN --fail-with-body "$base/chat/completions" -H "$key" -H 'Content-Type: application/json' --data '{
  "messages": [{"role": "user", "content": "Who are you?"}],
  "temperature": 0,
  "max_tokens": 100,
  "stream": true,
  "stream_options": {"include_usage": true}
}'
