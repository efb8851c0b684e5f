#include "hub/hub.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/parse.hpp>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "hub/download.h"
#include "hub/http.h"
#include "model/json_reader.h"
#include "text/text_file.h"

namespace jewel {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxListingBytes = 16 << 20;
constexpr size_t kMaxIndexBytes = 16 << 20;
constexpr double kLongestPauseS = 60;  // whatever a Retry-After says
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kSingleFile = "model.safetensors";

// What loading reads, beside the weights.
constexpr auto kSmallFiles = std::to_array<std::string_view>(
    {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
     "chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json",
     "special_tokens_map.json", kIndexFile});

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool is_on(std::string word) {
  std::ranges::transform(word, word.begin(), [](unsigned char c) { return std::toupper(c); });
  return word == "1" || word == "ON" || word == "YES" || word == "TRUE";
}

std::string token_from_environment(const fs::path& cache_root) {
  if (is_on(environment("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) return "";
  std::string token = environment("HF_TOKEN");
  if (token.empty()) token = environment("HUGGING_FACE_HUB_TOKEN");
  if (token.empty()) {
    const std::string path = environment("HF_TOKEN_PATH");
    auto text = read_text_file(path.empty() ? (cache_root.parent_path() / "token").string() : path, 4096);
    if (text.ok()) token = std::move(text).value();
  }
  std::erase_if(token, [](unsigned char c) { return c <= ' '; });
  return token;
}

// The names of the weight files that an index lists.
Result<std::vector<std::string>> shards_of(const fs::path& index) {
  JEWEL_ASSIGN(const std::string text, read_text_file(index.string(), kMaxIndexBytes));
  JEWEL_ASSIGN(const boost::json::object root, parse_json_object(text, index.filename().string()));
  std::vector<std::string> shards;
  if (const auto* map = root.if_contains("weight_map"); map && map->is_object()) {
    for (const auto& [tensor, file] : map->get_object()) {
      if (file.is_string()) shards.emplace_back(file.get_string());
    }
  }
  std::ranges::sort(shards);
  shards.erase(std::ranges::unique(shards).begin(), shards.end());
  if (shards.empty() || !std::ranges::all_of(shards, is_safe_repo_path)) {
    return invalid(fmt::format("{}: expected weight_map with the names of files", index.string()));
  }
  return shards;
}

struct Listing {
  std::string commit;
  std::vector<RepoFile> files;

  const RepoFile* find(std::string_view path) const {
    const auto it = std::ranges::find(files, path, &RepoFile::path);
    return it == files.end() ? nullptr : &*it;
  }
};

Result<Listing> parse_listing(std::string_view text, const std::string& model) {
  JEWEL_ASSIGN(const boost::json::object root, parse_json_object(text, "the hub's answer about " + model));
  Listing listing;
  if (const auto* sha = root.if_contains("sha"); sha && sha->is_string()) listing.commit = sha->get_string();
  if (!is_commit(listing.commit)) {
    return unavailable(fmt::format("the hub's answer about {}: expected 'sha' with a commit", model));
  }
  const auto* siblings = root.if_contains("siblings");
  if (!siblings || !siblings->is_array()) {
    return unavailable(fmt::format("the hub's answer about {}: expected 'siblings' with its files", model));
  }
  for (const boost::json::value& item : siblings->get_array()) {
    const auto* object = item.if_object();
    const auto* path = object ? object->if_contains("rfilename") : nullptr;
    if (!path || !path->is_string() || !is_safe_repo_path(path->get_string())) continue;
    RepoFile file{.path = std::string(path->get_string())};
    if (const auto* size = object->if_contains("size"); size && size->is_int64())
      file.bytes = size->get_int64();
    if (const auto* id = object->if_contains("blobId"); id && id->is_string())
      file.git_sha1 = id->get_string();
    if (const auto* lfs = object->if_contains("lfs"); lfs && lfs->is_object()) {
      const auto* sha256 = lfs->get_object().if_contains("sha256");
      if (sha256 && sha256->is_string()) file.sha256 = sha256->get_string();
    }
    if (file.usable()) listing.files.push_back(std::move(file));
  }
  return listing;
}

// What the hub's refusal means for the person at the keyboard.
Error refusal(const HttpResponse& response, const std::string& name, const HubOptions& options) {
  const std::string code = response.header("x-error-code");
  const std::string page = fmt::format("{}/{}", options.endpoint, name);
  const std::string_view token_hint = options.token.empty() ? "set HF_TOKEN to a token that may read it"
                                                            : "HF_TOKEN is set; check that it may read it";
  if (code == "GatedRepo") {
    return not_found(
        fmt::format("{} is gated: accept its conditions at {}, then {}", name, page, token_hint));
  }
  if (code == "RevisionNotFound") {
    return not_found(fmt::format("{} has no revision '{}'; see {}", name, options.revision, page),
                     "revision");
  }
  if (code == "RepoNotFound" || response.status == 401 || response.status == 403 || response.status == 404) {
    return not_found(fmt::format("{} was not found at {}: check the name; if it is private, {}", name,
                                 options.endpoint, token_hint));
  }
  if (response.status == 429) {
    return unavailable(
        fmt::format("{} asks for patience (too many requests); try again later", options.endpoint));
  }
  return unavailable(fmt::format("{} answered with status {} when asked about {}; try again later",
                                 options.endpoint, response.status, name));
}

// Of an answer that asks for patience, as seconds; else `otherwise`.
double pause_after(const HttpResponse& response, double otherwise) {
  const std::string text = response.header("retry-after");
  double seconds = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), seconds);
  const bool good = read.ec == std::errc() && read.ptr == text.data() + text.size() && seconds >= 0;
  return good ? std::min(seconds, kLongestPauseS) : otherwise;
}

Result<Listing> list_files(const std::string& name, const HubOptions& options) {
  std::string body;
  HttpRequest request = hub_request(options);
  request.url = fmt::format("{}/api/models/{}/revision/{}?blobs=true", options.endpoint, name,
                            url_escaped(options.revision, false));
  request.total_timeout_s = 60;
  request.on_body = [&](std::span<const char> part) {
    body.append(part.data(), part.size());
    return body.size() <= kMaxListingBytes;
  };
  double pause = options.first_retry_s;
  for (int attempt = 0;; ++attempt) {
    body.clear();
    JEWEL_ASSIGN(const HttpResponse response, http_get(request));
    if (response.stopped) return unavailable(fmt::format("the hub's answer about {} is too long", name));
    if (response.status == 200) return parse_listing(body, name);
    const bool in_trouble = response.status == 429 || response.status >= 500;
    if (!in_trouble || attempt >= options.retries) return refusal(response, name, options);
    if (options.note)
      options.note(
          fmt::format("{} answered with status {}; trying again", options.endpoint, response.status));
    std::this_thread::sleep_for(std::chrono::duration<double>(pause_after(response, pause)));
    pause *= 2;
  }
}

Result<FoundModel> not_there_and_offline(const std::string& name, const HubCache& cache) {
  return unavailable(
      fmt::format("{} is not in {}, and HF_HUB_OFFLINE forbids downloading it; unset it, or copy the "
                  "model there",
                  name, cache.root().string()));
}

}  // namespace

HubOptions HubOptions::from_environment() {
  HubOptions options;
  options.cache_root = HubCache::default_root();
  options.endpoint = environment("HF_ENDPOINT");
  if (options.endpoint.empty()) options.endpoint = "https://huggingface.co";
  while (options.endpoint.ends_with('/')) options.endpoint.pop_back();
  options.token = token_from_environment(options.cache_root);
  options.offline = is_on(environment("HF_HUB_OFFLINE")) || is_on(environment("TRANSFORMERS_OFFLINE"));
  return options;
}

bool is_complete_model(const fs::path& directory, bool with_weights) {
  std::error_code error;
  const auto there = [&](std::string_view file) { return fs::is_regular_file(directory / file, error); };
  if (!there("config.json") || !there("tokenizer.json")) return false;
  if (!with_weights) return true;
  if (!there(kIndexFile)) return there(kSingleFile);
  const auto shards = shards_of(directory / kIndexFile);
  return shards.ok() && std::ranges::all_of(*shards, there);
}

Result<FoundModel> find_model(const std::string& directory_or_name, const HubOptions& options) {
  std::error_code error;
  if (fs::is_directory(directory_or_name, error)) return FoundModel{.directory = directory_or_name};
  if (fs::exists(directory_or_name, error)) {
    return invalid(fmt::format("{}: found a file, expected a model's directory or name", directory_or_name));
  }
  if (!is_model_name(directory_or_name) || directory_or_name.starts_with('.')) {
    return not_found(fmt::format("{}: no such directory", directory_or_name));
  }
  const HubCache cache(options.cache_root);
  if (const auto commit = cache.commit_of(directory_or_name, options.revision)) {
    const fs::path snapshot = cache.snapshot(directory_or_name, *commit);
    if (is_complete_model(snapshot, options.with_weights))
      return FoundModel{.directory = snapshot.string(), .commit = *commit};
  }
  if (options.offline) return not_there_and_offline(directory_or_name, cache);
  return pull_model(directory_or_name, options);
}

Result<FoundModel> pull_model(const std::string& name, const HubOptions& options) {
  if (!is_model_name(name)) {
    return invalid(
        fmt::format("'{}' is not a model's name; expected one such as google/gemma-4-E4B-it", name));
  }
  if (!is_safe_repo_path(options.revision)) {
    return invalid(fmt::format("revision: found '{}', expected a branch, tag or commit", options.revision),
                   "revision");
  }
  const HubCache cache(options.cache_root);
  if (options.offline) {
    const auto commit = cache.commit_of(name, options.revision);
    if (!commit || !is_complete_model(cache.snapshot(name, *commit), options.with_weights))
      return not_there_and_offline(name, cache);
    return FoundModel{.directory = cache.snapshot(name, *commit).string(), .commit = *commit};
  }
  JEWEL_ASSIGN(const Listing listing, list_files(name, options));
  Downloader downloader(cache, name, listing.commit, options);

  std::vector<RepoFile> small;
  for (const std::string_view path : kSmallFiles) {
    if (const RepoFile* file = listing.find(path)) small.push_back(*file);
  }
  if (!listing.find("config.json") || !listing.find("tokenizer.json")) {
    return not_found(
        fmt::format("{} has no config.json or no tokenizer.json: it is not a model in Transformers' "
                    "format",
                    name));
  }
  std::vector<RepoFile> weights;
  if (options.with_weights && !listing.find(kIndexFile)) {
    const RepoFile* single = listing.find(kSingleFile);
    if (!single) return not_found(fmt::format("{} has no safetensors weights", name));
    weights.push_back(*single);
    downloader.expect(weights);
  }
  downloader.expect(small);
  JEWEL_TRY(downloader.fetch(small));
  if (options.with_weights && weights.empty()) {
    JEWEL_ASSIGN(const std::vector<std::string> shards,
                 shards_of(cache.snapshot(name, listing.commit) / kIndexFile));
    for (const std::string& shard : shards) {
      const RepoFile* file = listing.find(shard);
      if (!file)
        return not_found(
            fmt::format("{}: its index names {}, and the repository has no such file", name, shard));
      weights.push_back(*file);
    }
    downloader.expect(weights);
  }
  JEWEL_TRY(downloader.fetch(weights));
  JEWEL_TRY(cache.write_ref(name, options.revision, listing.commit));
  return FoundModel{.directory = cache.snapshot(name, listing.commit).string(), .commit = listing.commit};
}

}  // namespace jewel
