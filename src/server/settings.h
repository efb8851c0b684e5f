// What a user asked for, read from the command line and from a --config file by vLLM's rules.
//
// The command line wins over the file; in both, _ and - are alike. false is honoured. Every key is kept with
// the place it was written at, unknown ones too, so that --check-config can speak about each line and a
// mistake can be named where it stands. Values are converted by the flag's kind; what cannot be converted is
// kept with a sentence that says why.
#pragma once

#include <boost/json/value.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/flags.h"

namespace jewel {

struct Setting {
  const Flag* flag = nullptr;  // nullptr: unknown
  std::string name;            // as written, with its prefix: "--max_num_seqs", "kv_cache_dtype", "--no-x"
  std::string origin;          // "command line" or "vllm_config.yaml:7"
  boost::json::value value;  // bool, int64, double, string, array of strings or any JSON, by the flag's kind;
                             // null in a file means: the default
  std::string problem;       // not empty: the value is no good, and why
};

class Settings {
 public:
  // The arguments after `serve`. Errors: a flag without its value, a file that cannot be read or parsed.
  static Result<Settings> read(std::span<const std::string> arguments);
  // The text of a file alone, for tests and fuzzers; `file` names it in origins.
  static Result<Settings> read_yaml(const std::string& text, const std::string& file);

  // In the order of precedence, the weakest first.
  const std::vector<Setting>& all() const { return all_; }
  // The one that counts, or nullptr.
  const Setting* find(std::string_view flag) const;

  // Typed reads of known flags; nullopt when not set (or null). The flag's kind must fit.
  std::optional<bool> boolean(std::string_view flag) const;
  std::optional<int64_t> integer(std::string_view flag) const;
  std::optional<double> number(std::string_view flag) const;
  std::optional<std::string> text(std::string_view flag) const;
  std::vector<std::string> texts(std::string_view flag) const;
  const boost::json::value* json(std::string_view flag) const;

  std::optional<std::string> model_argument;  // positional
  std::vector<std::string> extra_arguments;   // positionals after it
  bool check_config = false;
  bool help = false;

 private:
  Result<void> read_arguments(std::span<const std::string> arguments);
  Result<void> read_file(const std::string& path);
  Result<void> add_yaml(const std::string& text, const std::string& file);

  std::vector<Setting> all_;
};

// A setting of `flag` from words as they stand on a command line (one, or several for lists).
Setting convert_setting(const Flag& flag, std::span<const std::string> words);

}  // namespace jewel
