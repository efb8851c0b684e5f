#include "server/flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>
#include <utility>
#include <vector>

namespace jewel {
namespace {

using enum FlagKind;
using enum FlagUse;

constexpr std::string_view kOneGpu = "Jewel runs on one GPU or on the CPU";

constexpr auto kFlags = std::to_array<Flag>({
    // The model.
    {"model", kText, kUsed, "directory or name of the model; the positional argument wins"},
    {"tokenizer", kText, kUsed, "directory or name to read the tokenizer and the template from",
     "the model's"},
    {"revision", kText, kUsed, "branch, tag or commit of a named model", "main"},
    {"download-dir", kText, kUsed, "cache for named models", "the Hugging Face cache"},
    {"served-model-name", kTexts, kUsed, "names that requests may use; the first is echoed",
     "the model as given"},
    {"dtype", kText, kUsed, "activations: auto, bfloat16, float32", "auto"},
    {"quantization", kText, kMapped, "read from the checkpoint; fp8 or compressed-tensors are confirmed", "",
     "", "-q"},
    {"device", kText, kUsed, "auto, cuda, cuda:N or cpu", "auto"},
    {"lm-head-dtype", kText, kUsed, "auto (the checkpoint's) or fp8 (per row, made while loading)", "auto"},
    {"ple", kText, kUsed, "where the per-layer embedding table lives: auto, device, host", "auto"},
    {"prefill-activations", kText, kUsed, "auto (the checkpoint's), bf16 or fp8 (tensor cores, sm_89 and up)",
     "auto"},
    {"threads", kInt, kUsed, "CPU threads for the model", "all usable cores"},
    {"seed", kInt, kUsed, "seed of requests that bring none; absent: a fresh one each"},
    // Memory and scheduling.
    {"max-model-len", kTokens, kUsed, "longest prompt and answer together; auto or -1: what memory allows",
     "the model's"},
    {"gpu-memory-utilization", kNumber, kUsed, "share of the card that may be used", "0.92"},
    {"kv-cache-memory-bytes", kTokens, kUsed, "bytes for KV pages; overrides the share"},
    {"kv-cache-dtype", kText, kUsed, "auto (the checkpoint's), bfloat16, fp8, fp8_e4m3", "auto"},
    {"max-num-seqs", kInt, kUsed, "sequences that run together", "32 on CUDA, 4 on a CPU"},
    {"max-num-batched-tokens", kTokens, kUsed, "tokens in one step", "2048"},
    {"enable-chunked-prefill", kBool, kOnlyDefault, "prompts are always cut into chunks", "true", "true"},
    {"enable-prefix-caching", kBool, kUsed, "reuse KV pages of equal prefixes", "true"},
    {"prefix-cache-gib", kNumber, kUsed, "memory for cached prefixes beyond running sequences", "4"},
    {"exact-prefix", kBool, kUsed, "reuse only pages that prompts wrote, none that answers did", "false"},
    {"scheduling-policy", kText, kMapped,
     "fcfs or priority: one scheduler does both, by the request's priority", "fcfs"},
    {"max-num-queued-reqs", kInt, kUsed, "requests that may wait; beyond: 503", "1024"},
    // Requests.
    {"limit-mm-per-prompt", kJson, kUsed, R"(images per request: {"image": 4}; audio and video are 0)",
     "no limit"},
    {"mm-processor-kwargs", kJson, kUsed, R"(image budget: {"max_soft_tokens": 70|140|280|560|1120|"auto"})",
     "the model's"},
    {"generation-config", kText, kUsed,
     "sampling where a request says nothing: auto (the model's), vllm (none) or a directory", "auto"},
    {"override-generation-config", kJson, kUsed,
     R"(over that: {"temperature": 0.7}; max_new_tokens limits every answer)"},
    {"chat-template", kText, kUsed, "a file with a Jinja template, or the template itself", "the model's"},
    {"default-chat-template-kwargs", kJson, kUsed, R"(for example {"enable_thinking": true})"},
    {"max-logprobs", kInt, kUsed, "most alternatives a request may ask for (a GPU gives 64)", "20"},
    {"enable-prompt-tokens-details", kBool, kOnlyDefault, "usage always says cached and image tokens", "true",
     "true"},
    {"enable-force-include-usage", kBool, kUsed, "usage in every stream, asked or not", "false"},
    {"enable-auto-tool-choice", kBool, kOnlyDefault, "tools work without a flag", "true", "true"},
    {"tool-call-parser", kText, kOnlyDefault, "the model has one tool format", "gemma4", "gemma4"},
    {"reasoning-parser", kText, kOnlyDefault, "the model has one thinking format", "gemma4", "gemma4"},
    {"return-tokens-as-token-ids", kBool, kUsed, "logprobs name tokens as token_id:N", "false"},
    // Images from elsewhere.
    {"allowed-local-media-path", kText, kUsed, "directory that file:// images may come from", "none"},
    {"allowed-media-domains", kTexts, kUsed, "hosts that images may be fetched from; none: no fetching",
     "every public host"},
    {"media-io-kwargs", kJson, kIgnored, "about video, which is not served"},
    // The server.
    {"host", kText, kUsed, "address to listen on", "all"},
    {"port", kInt, kUsed, "port to listen on; 0: any that is free", "8000"},
    {"uds", kText, kUsed, "a Unix socket to listen on, in place of host and port"},
    {"root-path", kText, kUsed, "prefix of every route, behind a proxy"},
    {"api-key", kTexts, kUsed,
     "keys that clients must send; or the environment's JEWEL_API_KEY, VLLM_API_KEY"},
    {"protect-all", kBool, kUsed, "keys for every route but /health", "false"},
    {"ssl-keyfile", kText, kUsed, "TLS: private key"},
    {"ssl-certfile", kText, kUsed, "TLS: certificate chain"},
    {"ssl-ca-certs", kText, kUsed, "TLS: certificates that clients must be signed by"},
    {"ssl-cert-reqs", kInt, kUsed, "TLS: 0 none, 1 optional, 2 required", "0"},
    {"allowed-origins", kJson, kUsed, R"(CORS: a list, as ["https://a.example"])", "none"},
    {"allowed-methods", kJson, kUsed, "CORS", R"(["*"])"},
    {"allowed-headers", kJson, kUsed, "CORS", R"(["*"])"},
    {"allow-credentials", kBool, kUsed, "CORS", "false"},
    {"max-connections", kInt, kUsed, "open connections; beyond: 503", "4096"},
    {"max-requests-per-client", kInt, kUsed, "under way, by key or else by address; more: 429; 0: no limit",
     "0"},
    {"max-body-mib", kInt, kUsed, "largest request body", "64"},
    {"request-timeout", kNumber, kUsed, "seconds that a request may take; 0: no limit", "0"},
    {"drain-timeout", kNumber, kUsed, "seconds that running requests get after SIGTERM", "30"},
    {"idle-release", kText, kUsed,
     "seconds without requests after which the GPU is given back, and the next request waits for it; off, or "
     "auto (30 on a GPU)",
     "auto"},
    {"meter", kText, kUsed, "of joules: auto (the device's, where it can be read), none, nvml, rapl", "auto"},
    // Logs.
    {"enable-log-requests", kBool, kUsed, "a line for each request, without its text", "false"},
    {"log-format", kText, kUsed, "text or json", "text"},
    {"log-level", kText, kUsed, "debug, info, warning, error", "info"},
    {"uvicorn-log-level", kText, kMapped, "the same as --log-level"},
    {"disable-log-stats", kBool, kUsed, "no line with statistics every 10 s in which there was work",
     "false"},
    {"disable-uvicorn-access-log", kBool, kIgnored, "there is no access log unless --enable-log-requests"},
    {"disable-access-log-for-endpoints", kText, kIgnored,
     "there is no access log unless --enable-log-requests"},
    {"max-log-len", kInt, kIgnored, "prompts are never logged"},
    {"enable-log-outputs", kBool, kOnlyDefault, "answers are never logged", "false", "false"},
    // Accepted where they ask for what happens anyway.
    {"tensor-parallel-size", kInt, kOnlyDefault, kOneGpu, "1", "1", "-tp"},
    {"pipeline-parallel-size", kInt, kOnlyDefault, kOneGpu, "1", "1", "-pp"},
    {"data-parallel-size", kInt, kOnlyDefault, kOneGpu, "1", "1", "-dp"},
    {"api-server-count", kInt, kOnlyDefault, "one process serves", "1", "1"},
    {"stream-interval", kInt, kOnlyDefault, "every token is sent as it comes", "1", "1"},
    {"block-size", kInt, kOnlyDefault, "KV pages have 16 tokens", "16", "16"},
    {"enable-lora", kBool, kOnlyDefault, "adapters are not served", "false", "false"},
    {"enable-sleep-mode", kBool, kOnlyDefault, "see --idle-release", "false", "false"},
    {"runner", kText, kOnlyDefault, "the model generates text", "generate", "generate"},
    {"task", kText, kOnlyDefault, "the model generates text", "generate", "generate"},
    {"load-format", kText, kMapped, "safetensors, mapped; auto and safetensors are confirmed", "auto"},
    {"trust-request-chat-template", kBool, kOnlyDefault, "templates of requests are not run", "false",
     "false"},
    // Means to an end that is reached in another way here.
    {"enforce-eager", kBool, kIgnored, "nothing is compiled at start"},
    {"compilation-config", kJson, kIgnored, "nothing is compiled at start"},
    {"optimization-level", kText, kIgnored, "nothing is compiled at start", "", "", "-O"},
    {"performance-mode", kText, kIgnored, "there is one mode"},
    {"cudagraph-capture-sizes", kTexts, kIgnored, "graphs are captured when first needed"},
    {"max-cudagraph-capture-size", kInt, kIgnored, "graphs are captured when first needed"},
    {"attention-backend", kText, kIgnored, "the kernels are Jewel's own"},
    {"mm-encoder-attn-backend", kText, kIgnored, "the kernels are Jewel's own"},
    {"mm-encoder-tp-mode", kText, kIgnored, kOneGpu},
    {"kv-sharing-fast-prefill", kBool, kIgnored, "always on, and prompt_logprobs stay exact"},
    {"prefix-cache-retention-interval", kInt, kIgnored,
     "checkpoints are kept where a later request may resume"},
    {"prefix-caching-hash-algo", kText, kIgnored, "SHA-256"},
    {"async-scheduling", kBool, kIgnored, "always on"},
    {"long-prefill-token-threshold", kInt, kIgnored, "decode rows come first in every step"},
    {"max-num-partial-prefills", kInt, kIgnored, "decode rows come first in every step"},
    {"max-long-partial-prefills", kInt, kIgnored, "decode rows come first in every step"},
    {"disable-chunked-mm-input", kBool, kIgnored, "an image may be cut: its tokens are causal"},
    {"disable-cascade-attn", kBool, kIgnored, "there is none"},
    {"skip-mm-profiling", kBool, kIgnored, "there is no profiling run"},
    {"mm-processor-cache-gb", kNumber, kIgnored, "soft tokens are cached by the image's hash instead"},
    {"mm-processor-cache-type", kText, kIgnored, "soft tokens are cached by the image's hash instead"},
    {"mm-shm-cache-max-object-size-mb", kInt, kIgnored, "soft tokens are cached by the image's hash instead"},
    {"language-model-only", kBool, kMapped, R"(as limit-mm-per-prompt {"image": 0})", "false"},
    {"chat-template-content-format", kText, kIgnored, "the template's own"},
    {"structured-outputs-config", kJson, kIgnored, "grammars are llguidance's"},
    {"tokenizer-mode", kText, kIgnored, "there is one"},
    {"tokenizer-revision", kText, kIgnored, "the tokenizer comes with the model"},
    {"trust-remote-code", kBool, kIgnored, "no code is ever loaded from a model"},
    {"distributed-executor-backend", kText, kIgnored, kOneGpu},
    {"worker-cls", kText, kIgnored, kOneGpu},
    {"max-parallel-loading-workers", kInt, kIgnored, kOneGpu},
    {"safetensors-load-strategy", kText, kIgnored, "files are mapped"},
    {"enable-request-id-headers", kBool, kIgnored, "X-Request-Id is always answered"},
    {"enable-server-load-tracking", kBool, kIgnored, "/load always works"},
    {"enable-per-request-metrics", kBool, kIgnored, "timings are always answered"},
    {"fingerprint-mode", kText, kIgnored, "system_fingerprint is always answered"},
    {"logprobs-mode", kText, kOnlyDefault, "log-probabilities before penalties and temperature",
     "raw_logprobs", "raw_logprobs"},
    {"ssl-ciphers", kText, kIgnored, "OpenSSL's defaults"},
    {"enable-ssl-refresh", kBool, kOnlyDefault, "certificates are read at start", "false", "false"},
    {"max-num-queued-tokens", kTokens, kIgnored, "requests are counted: see --max-num-queued-reqs"},
    {"speculative-config", kJson, kIgnored, "no draft model: the answers are the same without"},
    {"kv-cache-dtype-skip-layers", kTexts, kOnlyDefault, "all layers store K and V alike", "none", "[]"},
    {"hf-overrides", kJson, kOnlyDefault, "the checkpoint's config.json is taken as it is", "none", "{}"},
    {"hf-config-path", kText, kOnlyDefault, "config.json comes with the model", "none", "none"},
    {"hf-token", kText, kOnlyDefault, "set HF_TOKEN: a flag is seen by everybody on the machine", "none",
     "none"},
    {"config-format", kText, kIgnored, "Transformers' config.json"},
    {"code-revision", kText, kIgnored, "no code is ever loaded from a model"},
    {"model-impl", kText, kIgnored, "there is one"},
    {"middleware", kTexts, kOnlyDefault, "no code of others runs in this server", "none", "[]"},
    {"logits-processors", kTexts, kOnlyDefault, "no code of others runs in this server", "none", "[]"},
    {"log-config-file", kText, kIgnored, "see --log-format and --log-level"},
    {"enable-tokenizer-info-endpoint", kBool, kOnlyDefault, "/tokenize works, /tokenizer_info does not",
     "false", "false"},
    {"enable-offline-docs", kBool, kIgnored, "/openapi.json alone is served"},
    {"enable-mm-embeds", kBool, kOnlyDefault, "pictures are taken as files, not as embeddings", "false",
     "false"},
    {"enable-prompt-embeds", kBool, kOnlyDefault, "prompts are taken as text or ids, not as embeddings",
     "false", "false"},
    {"response-role", kText, kOnlyDefault, "answers are the assistant's", "assistant", "assistant"},
    {"lora-modules", kTexts, kOnlyDefault, "adapters are not served", "none", "[]"},
    {"max-loras", kInt, kIgnored, "adapters are not served"},
    {"max-lora-rank", kInt, kIgnored, "adapters are not served"},
    {"enable-expert-parallel", kBool, kIgnored, "the model has no experts"},
    {"disable-custom-all-reduce", kBool, kIgnored, kOneGpu},
    {"cpu-offload-gb", kNumber, kIgnored, "see --ple, which puts the largest table into host memory"},
    {"enable-mfu-metrics", kBool, kIgnored, "see the bench command"},
    {"kv-transfer-config", kJson, kOnlyDefault, "KV pages stay in this process", "none", "{}"},
    {"kv-events-config", kJson, kOnlyDefault, "KV pages stay in this process", "none", "{}"},
    {"h11-max-incomplete-event-size", kInt, kIgnored, "see --max-body-mib"},
    {"h11-max-header-count", kInt, kIgnored, "headers are limited to 64 KiB"},
    {"disable-fastapi-docs", kBool, kIgnored, "/openapi.json alone is served"},
    // Gone from vLLM, still in people's files.
    {"disable-log-requests", kBool, kRetired, "requests are not logged unless --enable-log-requests"},
    {"guided-decoding-backend", kText, kRetired, "grammars are llguidance's"},
    {"max-seq-len-to-capture", kTokens, kRetired, "graphs are captured when first needed"},
    {"disable-mm-preprocessor-cache", kBool, kRetired, "soft tokens are cached by the image's hash"},
    {"calculate-kv-scales", kBool, kRetired, "scales come from the checkpoint, or are 1"},
    {"use-v2-block-manager", kBool, kRetired, "there is one"},
    {"num-scheduler-steps", kInt, kRetired, "the engine is always one step ahead"},
    {"swap-space", kNumber, kRetired, "preempted requests take up to 4 GiB of host memory"},
    {"rope-scaling", kJson, kRetired, "the checkpoint's config.json says it"},
    {"rope-theta", kNumber, kRetired, "the checkpoint's config.json says it"},
    {"disable-async-output-proc", kBool, kRetired, "output is always processed beside the steps"},
});

std::string with_dashes(std::string_view name) {
  std::string out(name);
  std::ranges::replace(out, '_', '-');
  return out;
}

// Levenshtein distance.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, substituted});
    }
  }
  return row.back();
}

}  // namespace

std::span<const Flag> serve_flags() {
  return kFlags;
}

const Flag* find_flag(std::string_view name) {
  const std::string wanted = with_dashes(name);
  const auto it = std::ranges::find(kFlags, wanted, &Flag::name);
  return it == kFlags.end() ? nullptr : &*it;
}

std::string_view closest_flag(std::string_view name) {
  const std::string wanted = with_dashes(name);
  if (wanted.size() < 3) return {};
  const size_t most = std::max<size_t>(2, wanted.size() / 4);
  std::string_view best;
  size_t least = most + 1;
  for (const Flag& flag : kFlags) {
    // Two texts are at least as far apart as their lengths, and foreign keys may be long.
    const size_t longer = std::max(wanted.size(), flag.name.size());
    if (longer - std::min(wanted.size(), flag.name.size()) >= least) continue;
    const size_t distance = edit_distance(wanted, flag.name);
    if (distance >= least) continue;
    least = distance;
    best = flag.name;
  }
  return best;
}

std::string flags_help() {
  std::string out = "Flags (in a --config file: the same names without the dashes, _ or - alike):\n";
  const auto add = [&](const Flag& flag) {
    std::string left = fmt::format("  --{}", flag.name);
    if (flag.kind == kJson) left += " JSON";
    if (flag.kind == kTexts) left += " A…";
    if (flag.kind == kInt || flag.kind == kTokens || flag.kind == kNumber) left += " N";
    if (flag.kind == kText) left += " X";
    fmt::format_to(std::back_inserter(out), "{:<38} {}", left, flag.note);
    if (!flag.fallback.empty()) fmt::format_to(std::back_inserter(out), " [{}]", flag.fallback);
    out += '\n';
  };
  for (const Flag& flag : kFlags) {
    if (flag.use == kUsed) add(flag);
  }
  out += "\nvLLM's flags that need no action here are accepted: --check-config says what becomes of each.\n";
  return out;
}

}  // namespace jewel
