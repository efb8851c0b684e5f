#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <fstream>

#include "cli/run_program.h"

namespace jewel {
namespace {

using ::testing::HasSubstr;
namespace json = boost::json;

const std::string kDemo = JEWEL_SOURCE_DIR "/models/jewel-demo";

TEST(Usage, HelpAndVersion) {
  const ProgramOutput help = run_program({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("run"));
  EXPECT_THAT(help.out, HasSubstr("inspect"));
  EXPECT_EQ(run_program({"run", "--help"}).exit_code, 0);
  EXPECT_THAT(run_program({"--version"}).out, HasSubstr("jewel 0."));
}

TEST(Usage, MistakesAreTwo) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {},
           {"walk"},
           {"run"},
           {"run", kDemo, "--no-such-flag", "Hi"},
           {"run", kDemo, "--max-tokens", "0", "Hi"},
           {"run", kDemo, "--max-tokens", "many", "Hi"},
           {"run", kDemo, "--temperature", "-1", "Hi"},
           {"inspect", kDemo, "--tokens", "a", "--render", "/dev/null"},
       }) {
    const ProgramOutput output = run_program(arguments);
    EXPECT_EQ(output.exit_code, 2) << testing::PrintToString(arguments);
    EXPECT_EQ(output.out, "");
    EXPECT_NE(output.err, "");
  }
}

json::object run_json(std::vector<std::string> arguments, const std::string& input = {}) {
  arguments.insert(arguments.begin(), {"run", kDemo, "--json", "--quiet"});
  const ProgramOutput output = run_program(arguments, input);
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_EQ(output.err, "");
  return json::parse(output.out).as_object();
}

TEST(Run, JsonHasTheAgreedShape) {
  const json::object answer =
      run_json({"--meter", "none", "--temperature", "0", "--max-tokens", "8", "Who are you?"});
  for (const char* key :
       {"text", "reasoning", "tool_calls", "finish_reason", "token_ids", "usage", "timings"}) {
    EXPECT_TRUE(answer.contains(key)) << key;
  }
  const json::object& usage = answer.at("usage").as_object();
  const auto completion = usage.at("completion_tokens").as_int64();
  EXPECT_EQ(static_cast<int64_t>(answer.at("token_ids").as_array().size()), completion);
  EXPECT_EQ(usage.at("total_tokens").as_int64(), usage.at("prompt_tokens").as_int64() + completion);
  EXPECT_EQ(usage.at("prompt_tokens_details").as_object().at("cached_tokens").as_int64(), 0);
  EXPECT_FALSE(usage.contains("energy")) << "no meter, no joules";
  for (const char* key :
       {"load_s", "queue_s", "image_s", "ttft_s", "decode_s", "prompt_tok_s", "decode_tok_s"}) {
    EXPECT_TRUE(answer.at("timings").as_object().contains(key)) << key;
  }
}

TEST(Run, PromptFromStdinIsTheSamePrompt) {
  const json::object argument = run_json({"--temperature", "0", "--max-tokens", "8", "Hello"});
  const json::object piped = run_json({"--temperature", "0", "--max-tokens", "8"}, "Hello\n");
  EXPECT_EQ(argument.at("token_ids"), piped.at("token_ids"));
  EXPECT_EQ(argument.at("usage"), piped.at("usage"));
}

TEST(Run, SameSeedSameText) {
  const std::vector<std::string> hot = {"--temperature", "1.5", "--top-k",      "0",
                                        "--top-p",       "1",   "--max-tokens", "24"};
  const auto with_seed = [&](const std::string& seed, const std::string& threads) {
    std::vector<std::string> arguments = hot;
    arguments.insert(arguments.end(), {"--seed", seed, "--threads", threads, "Tell me something"});
    return run_json(arguments).at("token_ids");
  };
  const json::value first = with_seed("7", "1");
  EXPECT_EQ(first, with_seed("7", "2"));
  bool differs = false;
  for (const char* seed : {"8", "9", "10"}) differs |= with_seed(seed, "1") != first;
  EXPECT_TRUE(differs);
}

TEST(Run, StreamsTheAnswerToStdoutAndTheStatisticsToStderr) {
  const ProgramOutput output =
      run_program({"run", kDemo, "--temperature", "0", "--max-tokens", "16", "Who are you?"});
  EXPECT_EQ(output.exit_code, 0);
  EXPECT_THAT(output.err, HasSubstr("tok/s"));
  const json::object same = run_json({"--temperature", "0", "--max-tokens", "16", "Who are you?"});
  EXPECT_EQ(output.out, std::string(same.at("text").as_string()) + "\n");
}

TEST(Inspect, TablesAndJson) {
  const ProgramOutput table = run_program({"inspect", kDemo});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("bytes per token"));
  const ProgramOutput output = run_program({"inspect", kDemo, "--json"});
  const json::object inventory = json::parse(output.out).as_object();
  int64_t parameters = 0;
  for (const auto& [name, part] : inventory.at("parts").as_object())
    parameters += part.as_object().at("parameters").as_int64();
  EXPECT_EQ(parameters, inventory.at("total").as_object().at("parameters").as_int64());
}

TEST(Inspect, TokensAndRendering) {
  const ProgramOutput tokens = run_program({"inspect", kDemo, "--tokens", "<bos>Hi", "--json"});
  EXPECT_EQ(tokens.exit_code, 0) << tokens.err;
  EXPECT_EQ(json::parse(tokens.out).as_object().at("token_ids").as_array().at(0).as_int64(), 2);

  char path[] = "/tmp/jewel_render_XXXXXX";
  ::close(::mkstemp(path));
  std::ofstream(path) << R"({"messages": [{"role": "user", "content": "Hi there"}]})";
  const ProgramOutput rendered = run_program({"inspect", kDemo, "--render", path});
  EXPECT_EQ(rendered.out, "<bos><|turn>user\nHi there<turn|>\n<|turn>model\n") << rendered.err;
  ::unlink(path);
}

}  // namespace
}  // namespace jewel
