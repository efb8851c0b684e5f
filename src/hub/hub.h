// A model's name → a directory with its files.
//
//   find_model("models/jewel-demo")       a directory is itself
//   find_model("google/gemma-4-E4B-it")   the Hugging Face cache's snapshot, downloaded if it is not there
//
// Downloads bring only the files that Jewel reads, several at a time, into the cache's own layout
// (hub/cache.h), so that other tools find them and nothing is downloaded twice. A cut download goes on where
// it stopped; a file is checked against the hub's checksum before it gets its name; two processes that want
// the same file share one download.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "hub/cache.h"

namespace jewel {

struct DownloadProgress {
  int64_t done_bytes = 0;  // of the files that were missing, parts from earlier tries included
  int64_t total_bytes = 0;
  int done_files = 0;
  int total_files = 0;
};

struct HubOptions {
  std::filesystem::path cache_root;
  std::string endpoint;  // "https://huggingface.co"
  std::string token;     // empty: none
  bool offline = false;
  std::string revision = "main";
  bool with_weights = true;  // false: the small files alone, of a model whose tokenizer is wanted
  int parallel_files = 4;
  int retries = 5;                                        // of a cut connection, for each file
  double first_retry_s = 0.5;                             // then twice as long each time
  std::function<void(const DownloadProgress&)> progress;  // one call at a time, any thread
  std::function<void(const std::string&)> note;           // a sentence for the person who waits
  const std::atomic<bool>* cancelled = nullptr;

  // HF_HUB_CACHE, HF_HOME, HF_ENDPOINT, HF_TOKEN (or the token file of `hf auth login`), HF_HUB_OFFLINE.
  static HubOptions from_environment();
};

struct FoundModel {
  std::string directory;
  std::string commit;  // empty for a plain directory
};

// A complete snapshot in the cache is taken as it is, without asking the hub (pull_model asks).
// Errors: kInvalid for what is neither a directory nor a name, kNotFound, kUnavailable; each says what to do.
Result<FoundModel> find_model(const std::string& directory_or_name, const HubOptions& options);

// Asks the hub for the revision's commit and brings what is missing of it.
Result<FoundModel> pull_model(const std::string& name, const HubOptions& options);

// Every file that loading needs is there; without weights, every file that a tokenizer needs.
bool is_complete_model(const std::filesystem::path& directory, bool with_weights = true);

}  // namespace jewel
