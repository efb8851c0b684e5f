// A --config file, to settings, to options, and to what --check-config says of it. The two must agree: what
// the check calls good starts, and what it does not call good does not.
#include <algorithm>
#include <string>

#include "base/check.h"
#include "server/serve_options.h"
#include "server/settings.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace jewel;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const Result<Settings> settings = Settings::read_yaml(text, "fuzz.yaml");
  if (!settings.ok()) {
    JEWEL_CHECK(settings.error().message.find("fuzz.yaml") != std::string::npos, "the file is not named: {}",
                settings.error().message);
    return 0;
  }
  const Result<ServeOptions> options = serve_options(*settings);
  const ConfigReport report = check_config(*settings);
  JEWEL_CHECK(options.ok() == report.good, "options: {}; check:\n{}",
              options.ok() ? "good" : options.error().message, report.text);
  const auto lines = static_cast<size_t>(std::ranges::count(report.text, '\n'));
  JEWEL_CHECK(lines >= settings->all().size(), "{} lines for {} settings", lines, settings->all().size());
  if (!options.ok()) {
    JEWEL_CHECK(!options.error().message.empty(), "an error without a message");
    return 0;
  }
  JEWEL_CHECK(!options->served_model_names.empty(), "a server without a name for its model");
  JEWEL_CHECK(options->port >= 0 && options->port <= 65535, "port {}", options->port);
  JEWEL_CHECK(options->max_num_seqs.value_or(1) >= 1 && options->max_num_batched_tokens >= 1,
              "nothing could run");
  return 0;
}
