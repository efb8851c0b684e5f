// The gate at work: the demo model's FP8 keeps what its BF16 can, and a deliberately broken quantization does
// not.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json/array.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "checkpoint/quantizer.h"
#include "cli/run_program.h"
#include "eval/eval_run.h"
#include "model/dtype.h"
#include "model/json_reader.h"
#include "report/html_page.h"

namespace jewel {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const std::string kDemo = JEWEL_SOURCE_DIR "/models/jewel-demo";
const std::string kSuite = JEWEL_SOURCE_DIR "/models/heldout/suite.jsonl";
constexpr int kTasksOfEach = 3;  // of ten: a minute under sanitizers, seconds without

enum class Rows : uint8_t { kAll, kEverySecond };

// Multiplies the scales of FP8 weights of some layers in place: a quantizer's bug, as it would be on disk.
void scale_layers(const fs::path& checkpoint, const std::vector<int>& layers, Rows rows, float factor) {
  std::fstream file(checkpoint / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof(header_bytes));
  std::string text(header_bytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  const auto header = parse_json_object(text, "header");
  ASSERT_TRUE(header.ok());
  int changed = 0;
  for (const auto& [name, tensor] : *header) {
    for (const int layer : layers) {
      const std::string part = ".language_model.layers." + std::to_string(layer) + ".";
      if (std::string(name).find(part) == std::string::npos || !std::string(name).ends_with(".weight_scale"))
        continue;
      ASSERT_EQ(tensor.at("dtype").as_string(), "BF16");
      const auto begin = tensor.at("data_offsets").at(0).to_number<uint64_t>();
      std::vector<uint16_t> scales(tensor.at("shape").at(0).to_number<size_t>());
      const auto bytes = static_cast<std::streamsize>(scales.size() * sizeof(uint16_t));
      file.seekg(static_cast<std::streamoff>(8 + header_bytes + begin));
      file.read(reinterpret_cast<char*>(scales.data()), bytes);
      for (size_t row = rows == Rows::kAll ? 0 : 1; row < scales.size(); row += rows == Rows::kAll ? 1 : 2)
        scales[row] = f32_to_bf16(bf16_to_f32(scales[row]) * factor);
      file.seekp(static_cast<std::streamoff>(8 + header_bytes + begin));
      file.write(reinterpret_cast<const char*>(scales.data()), bytes);
      ++changed;
    }
  }
  ASSERT_GE(changed, 3 * static_cast<int>(layers.size()));
}

std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class DemoEval : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder() = fs::temp_directory_path() / ("jewel_eval_" + std::to_string(::getpid()));
    fs::create_directories(folder());
    ASSERT_NO_FATAL_FAILURE(quantize(fp8(), {}));
  }
  static void quantize(const std::string& to, const QuantizeOptions& options) {
    const std::atomic<bool> cancel = false;
    const auto done = quantize_checkpoint(
        kDemo, to, options, false, cancel, [](std::string_view, size_t, size_t) {},
        [](const QuantizeReport&, const std::string&) -> Result<std::string> { return std::string("test"); });
    ASSERT_TRUE(done.ok()) << done.error().message;
  }
  static void TearDownTestSuite() { fs::remove_all(folder()); }
  static fs::path& folder() {
    static fs::path path;
    return path;
  }
  static std::string fp8() { return (folder() / "fp8").string(); }

  static EvalSettings settings(const std::string& candidate) {
    EvalSettings out{.base = kDemo, .candidate = candidate, .suite_file = kSuite, .most_tasks = kTasksOfEach};
    out.base_options.engine = out.candidate_options.engine = eval_engine_options();
    out.answers.max_tokens = 64;
    return out;
  }
  static Result<EvalOutcome> run(const EvalSettings& settings) {
    const std::atomic<bool> cancel = false;
    return run_eval(settings, cancel, [](std::string_view, size_t, size_t) {});
  }
};

TEST_F(DemoEval, Fp8PassesTheGate) {
  const EvalSettings how = settings(fp8());
  const auto outcome = run(how);
  ASSERT_TRUE(outcome.ok()) << outcome.error().message;
  ASSERT_TRUE(outcome->recovery);
  EXPECT_EQ(outcome->recovery->categories.size(), 6U);
  EXPECT_TRUE(outcome->passes()) << eval_text(*outcome, 0.8);
  for (const CategoryRecovery& row : outcome->recovery->categories) {
    EXPECT_GE(row.base.score, 0.5) << row.category << ": the base must be able to do what is recovered";
    EXPECT_GT(row.base.mean_output_tokens.value_or(0), 1) << row.category;
    EXPECT_EQ(row.base.cut_off, 0) << row.category;
  }
  const ResultFile result = eval_result(how, *outcome);
  ASSERT_NE(result.find("recovery: all"), nullptr);
  EXPECT_EQ(result.details.at("tasks").as_array().size(), 6U * kTasksOfEach);
  EXPECT_THAT(eval_page(*outcome, result), HasSubstr("✓ passed"));
}

// Every second output channel of three layers is six times too large. The command says so to people (table,
// page), to programs (JSON) and to scripts (exit code 3), each time with the categories' names.
TEST_F(DemoEval, BrokenScalesFailAndTheCategoryIsNamed) {
  const fs::path broken = folder() / "broken";
  ASSERT_NO_FATAL_FAILURE(quantize(broken.string(), {.strategy = ScaleStrategy::kChannel}));
  ASSERT_NO_FATAL_FAILURE(scale_layers(broken, {2, 3, 4}, Rows::kEverySecond, 6));
  const fs::path suite = folder() / "without-pictures.jsonl";
  {
    std::ofstream out(suite);
    std::ifstream in(kSuite);
    for (std::string line; std::getline(in, line);) {
      if (line.find("\"images\": []") != std::string::npos) out << line << '\n';
    }
  }
  const std::string out = (folder() / "out").string();
  const auto eval = [&](const std::string& candidate) {
    return run_program(
        {"eval", kDemo, candidate, "--suite", suite.string(), "--max-tokens", "64", "--quiet", "--out", out});
  };
  const ProgramOutput good = eval(fp8());
  EXPECT_EQ(good.exit_code, 0) << good.err << good.out;
  EXPECT_THAT(good.out, HasSubstr("passed: every category recovers at least 80.0 %"));

  const ProgramOutput bad = eval(broken.string());
  EXPECT_EQ(bad.exit_code, 3) << bad.err << bad.out;
  const auto result = parse_json_object(text_of(out + "/eval.json"), "eval.json");
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_FALSE(result->at("details").at("passed").as_bool());
  const std::string verdict(result->at("details").at("verdict").as_string());
  EXPECT_THAT(verdict, HasSubstr("the gate is 80.0 % in every category: "));
  EXPECT_THAT(verdict, HasSubstr("tools recovers "));
  EXPECT_THAT(verdict, HasSubstr("small talk recovers "));
  EXPECT_THAT(bad.out, HasSubstr("failed: " + verdict));
  const std::string page = text_of(out + "/eval.html");
  EXPECT_THAT(page, HasSubstr("✗ failed"));
  EXPECT_THAT(page, HasSubstr(html_text(verdict)));
}

// A factor common to all channels of a product changes next to nothing: what follows each product of a layer
// is an RMS norm (of q, k and v, behind attention, behind the MLP), which takes it out again; only the bend
// of the gate's GELU sees it. So this is no broken quantization, and the gate is right to let it pass.
TEST_F(DemoEval, AFactorCommonToAllChannelsIsNormedAway) {
  const fs::path scaled = folder() / "scaled";
  fs::copy(fp8(), scaled);
  ASSERT_NO_FATAL_FAILURE(scale_layers(scaled, {2, 5, 8}, Rows::kAll, 1.5F));
  const fs::path text = folder() / "scaled.txt";
  std::ofstream(text) << "There are 3 circles. The triangle is green. The word is \"violin\".\n";
  EvalSettings how = settings(fp8());
  how.suite_file.clear();
  how.text_file = text.string();
  const auto fp8_from_bf16 = run(how);
  how.base = fp8();
  how.candidate = scaled.string();
  const auto scaled_from_fp8 = run(how);
  ASSERT_TRUE(fp8_from_bf16.ok() && scaled_from_fp8.ok());
  EXPECT_GT(scaled_from_fp8->divergence->mean_kl, 0);
  EXPECT_LT(scaled_from_fp8->divergence->mean_kl, fp8_from_bf16->divergence->mean_kl);
}

// A model does not diverge from itself; FP8 does a little; broken scales do more; what 20 tokens tell is
// never more than the whole vocabulary tells.
TEST_F(DemoEval, DivergenceIsExactInProcessAndBoundedElsewhere) {
  const fs::path text = folder() / "text.txt";
  std::ofstream(text) << "There are 3 circles. The triangle is green.\nThe word is \"violin\". What can you "
                         "do? I can read words and numbers in pictures.\n";
  EvalSettings how = settings(kDemo);
  how.suite_file.clear();
  how.text_file = text.string();
  const auto self = run(how);
  ASSERT_TRUE(self.ok()) << self.error().message;
  ASSERT_TRUE(self->divergence);
  EXPECT_TRUE(self->divergence->exact);
  EXPECT_GT(self->divergence->tokens, 30);
  EXPECT_LT(self->divergence->mean_kl, 1e-6);
  EXPECT_EQ(self->divergence->agreement, 1);
  EXPECT_NEAR(self->divergence->base_perplexity, self->divergence->candidate_perplexity, 1e-6);

  how.candidate = fp8();
  const auto exact = run(how);
  how.logits = Logits::kTop;
  const auto bound = run(how);
  ASSERT_TRUE(exact.ok() && bound.ok());
  EXPECT_TRUE(exact->divergence->exact);
  EXPECT_FALSE(bound->divergence->exact);
  EXPECT_GT(exact->divergence->mean_kl, 1e-6);
  EXPECT_LE(bound->divergence->mean_kl, exact->divergence->mean_kl * 1.001 + 1e-6);
  EXPECT_GT(bound->divergence->mean_kl, 0.3 * exact->divergence->mean_kl)
      << "20 of 512 tokens hold most of the probability";
  EXPECT_DOUBLE_EQ(bound->divergence->candidate_perplexity, exact->divergence->candidate_perplexity);
}

TEST_F(DemoEval, ConversationsWithPicturesDiverge) {
  EvalSettings how = settings(fp8());
  how.suite_file.clear();
  how.logits = Logits::kTop;
  const fs::path few = folder() / "few.jsonl";
  std::ofstream(few) << R"({"prompt":"What does it say?","images":[")" JEWEL_SOURCE_DIR
                        R"(/models/heldout/read-a-word-00.jpg"]})"
                     << "\n";
  how.text_file = few.string();
  const auto outcome = run(how);
  ASSERT_TRUE(outcome.ok()) << outcome.error().message;
  EXPECT_GT(outcome->divergence->tokens, 5);
  EXPECT_LT(outcome->divergence->tokens, 40) << "the picture's places are not counted";
}

}  // namespace
}  // namespace jewel
