// diff_stages: which stage of Jewel's forward pass first departs from the captured reference?
//
//   diff_stages MODEL [--case NAME] [--dtype float32|bf16] [--chunked] [--tolerance X] [--weights DIR]
//
// MODEL is a golden under tests/data/golden: e4b, e2b, demo. Without --case every stage is fed the
// reference's own input, so that each line stands alone; with --case (text, image, picture, long) the pass
// runs freely and a line holds all errors before it. --weights runs a checkpoint with the golden's shapes, to
// tell the loader's mistakes from the arithmetic's. Exit code 0 when nothing departs, 3 when something does,
// 1 when a file cannot be read, 2 on wrong usage.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "golden_run.h"

namespace jewel {
namespace {

struct Options {
  std::string model;
  std::string case_name;
  std::string dtype = "float32";
  bool chunked = false;
  double tolerance = 0;  // 0: by dtype
  std::string goldens = std::string(JEWEL_SOURCE_DIR) + "/tests/data/golden";
  std::string weights;  // a checkpoint to read; empty: draw them, or the demo model's own
  std::string demo = std::string(JEWEL_SOURCE_DIR) + "/models/jewel-demo";
};

int diff_stages(const Options& options) {
  const auto golden = GoldenFile::open(options.goldens, options.model);
  GoldenModel model;
  if (options.weights.empty()) {
    model = GoldenModel::of(*golden, options.demo);
  } else {
    auto checkpoint = Checkpoint::open(options.weights);
    if (!checkpoint.ok()) {
      fmt::print(stderr, "error: {}\n", checkpoint.error().message);
      return 1;
    }
    model.checkpoint = std::move(checkpoint.value());
  }
  const bool bf16 = options.dtype == "bf16";
  const auto backend = golden_backend(model.config(), model.weights(), bf16 ? DType::kBF16 : DType::kF32);
  const Chunking chunking = options.chunked ? Chunking::kAtKeptRows : Chunking::kWhole;
  const double tolerance = options.tolerance > 0 ? options.tolerance : bf16 ? 1e-2 : 1e-5;
  const StageTap tap = options.case_name.empty() ? run_fed(*backend, model.config(), *golden, chunking)
                                                 : run_case(*backend, model.config(), *golden,
                                                            golden->find_case(options.case_name), chunking);
  std::fputs(stage_table(tap.errors(), tolerance).c_str(), stdout);
  return worst_stage(tap.errors()).relative() <= tolerance ? 0 : 3;
}

}  // namespace
}  // namespace jewel

int main(int argc, char** argv) {
  jewel::Options options;
  CLI::App app("Says which stage of the forward pass first departs from the captured reference.");
  app.add_option("model", options.model, "a golden: e4b, e2b or demo")->required();
  app.add_option(
      "--case", options.case_name,
      "run this prompt freely: text, image, picture, long (default: feed each stage the reference's input)");
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"float32", "bf16"}))->capture_default_str();
  app.add_flag("--chunked", options.chunked, "cut the prompt at the kept rows (fed: token by token)");
  app.add_option("--tolerance", options.tolerance, "relative L2 (default: 1e-5 in float32, 1e-2 in bf16)");
  app.add_option("--goldens", options.goldens, "directory of the goldens")->capture_default_str();
  app.add_option("--weights", options.weights,
                 "read the weights from this directory instead of drawing them");
  app.add_option("--demo", options.demo, "the demo model's directory")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return jewel::diff_stages(options);
}
