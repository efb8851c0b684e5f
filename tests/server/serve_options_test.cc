// What settings come to, and what --check-config says of them.
#include "server/serve_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace jewel {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Settings settings_of(const std::string& yaml) {
  auto settings = Settings::read_yaml(yaml, "vllm_config.yaml");
  EXPECT_TRUE(settings.ok());
  return std::move(settings).value();
}

ServeOptions options_of(const std::string& yaml) {
  auto options = serve_options(settings_of(yaml));
  EXPECT_TRUE(options.ok()) << (options.ok() ? "" : options.error().message);
  return options.ok() ? std::move(options).value() : ServeOptions();
}

std::string mistake_of(const std::string& yaml) {
  const auto options = serve_options(settings_of("model: m\n" + yaml));
  EXPECT_FALSE(options.ok()) << yaml;
  return options.ok() ? "" : options.error().message;
}

// The published configuration, key by key.
constexpr char kPublished[] = R"(model: MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized
tokenizer: MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized
dtype: bfloat16
max_model_len: 4096
gpu_memory_utilization: 0.90
kv_cache_dtype: fp8
limit_mm_per_prompt:
  image: 1
enable_chunked_prefill: true
enable_prefix_caching: true
max_num_seqs: 32
disable_log_requests: true
)";

TEST(ServeOptions, ThePublishedFileWorks) {
  const ServeOptions options = options_of(kPublished);
  EXPECT_EQ(options.model, "MPSAIResilienceChallenge/gemma4-e4b-it-mps-optimized");
  EXPECT_EQ(options.tokenizer, options.model);
  EXPECT_EQ(options.served_model_names, std::vector<std::string>{options.model});
  EXPECT_EQ(options.dtype, "bfloat16");
  EXPECT_EQ(options.max_model_len, 4096);
  EXPECT_DOUBLE_EQ(options.gpu_memory_utilization, 0.90);
  EXPECT_EQ(options.kv_cache_dtype, "fp8");
  EXPECT_EQ(options.max_images, 1);
  EXPECT_TRUE(options.enable_prefix_caching);
  EXPECT_EQ(options.max_num_seqs, 32);
  ASSERT_EQ(options.warnings.size(), 1u);
  EXPECT_THAT(options.warnings[0], HasSubstr("disable_log_requests"));
}

TEST(ServeOptions, MistakesNameTheLineAndTheFix) {
  EXPECT_THAT(mistake_of("max_num_seq: 4"), HasSubstr("did you mean max-num-seqs?"));
  EXPECT_THAT(mistake_of("max_num_seqs: 0"), HasSubstr("vllm_config.yaml:2): found 0, expected 1 to 4096"));
  EXPECT_THAT(mistake_of("dtype: float16"), HasSubstr("bfloat16"));
  EXPECT_THAT(mistake_of("tensor_parallel_size: 2"), HasSubstr("only 1 is possible"));
  EXPECT_THAT(mistake_of("kv_cache_dtype: int4"), HasSubstr("expected one of auto"));
  EXPECT_THAT(mistake_of("mm_processor_kwargs: {max_soft_tokens: 100}"),
              HasSubstr("70, 140, 280, 560, 1120"));
  EXPECT_THAT(mistake_of("limit_mm_per_prompt: {image: -1}"), HasSubstr("image: found -1"));
  EXPECT_THAT(mistake_of("ssl_keyfile: a"), HasSubstr("--ssl-certfile"));
  EXPECT_THAT(mistake_of("enable_chunked_prefill: false"), HasSubstr("only true"));
  EXPECT_THAT(mistake_of("zzzz: 1"), Not(HasSubstr("did you mean")));
}

TEST(ServeOptions, EveryMistakeIsToldAtOnce) {
  const std::string text = mistake_of("prot: 1\nmax_num_seqs: many\n");
  EXPECT_THAT(text, HasSubstr("prot"));
  EXPECT_THAT(text, HasSubstr("many"));
}

TEST(ServeOptions, HarmlessKeysAreAccepted) {
  const ServeOptions options = options_of(
      "model: m\ntensor_parallel_size: 1\nenforce_eager: true\nseed: 7\nallowed_media_domains: none\n"
      "tool_call_parser: gemma4\nmm_processor_kwargs: {max_soft_tokens: auto}\n");
  EXPECT_EQ(options.seed, 7u);
  ASSERT_TRUE(options.allowed_media_domains);
  EXPECT_TRUE(options.allowed_media_domains->empty());
  EXPECT_TRUE(options.image_budget && options.image_budget->automatic);
}

TEST(CheckConfig, SpeaksOfEveryLine) {
  const ConfigReport good = check_config(settings_of(kPublished));
  EXPECT_TRUE(good.good) << good.text;
  EXPECT_EQ(std::count(good.text.begin(), good.text.end(), '\n'), 11);
  EXPECT_THAT(good.text, HasSubstr("vllm_config.yaml:11"));

  const ConfigReport bad =
      check_config(settings_of("model: m\nmax_num_seq: 4\napi_key: [s3cret]\nport: x\n"));
  EXPECT_FALSE(bad.good);
  EXPECT_THAT(bad.text, HasSubstr("did you mean max-num-seqs?"));
  EXPECT_THAT(bad.text, HasSubstr("wrong    expected an integer, found 'x'"));
  EXPECT_THAT(bad.text, Not(HasSubstr("null")));
  EXPECT_THAT(bad.text, Not(HasSubstr("s3cret")));

  // Said in the line of the setting, also where only its range or its word is wrong.
  const ConfigReport ranges =
      check_config(settings_of("model: m\nport: 70000\nquantization: awq\nzzzz: 1\n"));
  EXPECT_FALSE(ranges.good);
  EXPECT_THAT(ranges.text, HasSubstr("unknown  to Jewel and to vLLM"));
  const ConfigReport range = check_config(settings_of("model: m\nport: 70000\nquantization: awq\n"));
  EXPECT_FALSE(range.good);
  EXPECT_THAT(range.text, HasSubstr("wrong    found 70000, expected 0 to 65535"));
  EXPECT_THAT(range.text, HasSubstr("wrong    found 'awq', expected"));
  EXPECT_EQ(std::count(range.text.begin(), range.text.end(), '\n'), 3) << range.text;
  EXPECT_THAT(check_config(settings_of("port: 1\n")).text, HasSubstr("no model"));
}

TEST(Flags, NamesAreDistinctAndDescribed) {
  for (const Flag& flag : serve_flags()) {
    EXPECT_EQ(find_flag(flag.name), &flag) << flag.name;
    EXPECT_TRUE(flag.use != FlagUse::kOnlyDefault || !flag.only.empty()) << flag.name;
    EXPECT_FALSE(flag.note.empty()) << flag.name;
  }
  EXPECT_THAT(flags_help(), HasSubstr("--kv-cache-dtype"));
}

TEST(ServeOptions, IdleRelease) {
  EXPECT_FALSE(options_of("model: m").idle_release_s);
  EXPECT_FALSE(options_of("model: m\nidle-release: auto").idle_release_s);  // what pays on the device
  EXPECT_EQ(options_of("model: m\nidle-release: off").idle_release_s, 0);
  EXPECT_EQ(options_of("model: m\nidle-release: 0").idle_release_s, 0);
  EXPECT_EQ(options_of("model: m\nidle_release: 12.5").idle_release_s, 12.5);
  for (const char* wrong : {"soon", "-1", "1e9", "nan", "30s"})
    EXPECT_THAT(mistake_of(std::string("idle-release: ") + wrong), HasSubstr("off or auto")) << wrong;
}

}  // namespace
}  // namespace jewel
