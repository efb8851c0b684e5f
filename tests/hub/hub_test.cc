// Downloads from a hub that cuts, lies, redirects and refuses, into the Hugging Face cache's layout.
#include "hub/hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>

#include "hub/http.h"
#include "hub/stand_in_hub.h"

namespace jewel {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string random_bytes(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::string out(n, '\0');
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

std::map<std::string, HubFile> repository() {
  return {{"config.json", {.bytes = "{}"}},
          {"tokenizer.json", {.bytes = random_bytes(100'000, 1), .lfs = true}},
          {"model.safetensors", {.bytes = random_bytes(3'000'000, 2), .lfs = true}},
          {"README.md", {.bytes = "not needed"}},
          {"original/consolidated.pth", {.bytes = "not needed", .lfs = true}}};
}

class HubTest : public ::testing::Test {
 protected:
  HubTest()
      : root_(fs::path(::testing::TempDir()) /
              ("jewel_hub_" + std::to_string(::getpid()) + "_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(root_);
  }
  ~HubTest() override { fs::remove_all(root_); }

  HubOptions options(const StandInHub& hub) {
    HubOptions options;
    options.cache_root = root_;
    options.endpoint = hub.endpoint();
    options.retries = 3;
    options.first_retry_s = 0.01;
    options.progress = [this](const DownloadProgress& progress) {
      const std::scoped_lock lock(mutex_);
      progress_ = progress;
    };
    return options;
  }

  fs::path snapshot() const { return root_ / "models--org--model" / "snapshots" / StandInHub::kCommit; }
  fs::path blobs() const { return root_ / "models--org--model" / "blobs"; }
  void expect_complete(const std::map<std::string, HubFile>& files) const {
    for (const auto& [name, file] : files) {
      if (name == "README.md" || name.starts_with("original")) {
        EXPECT_FALSE(fs::exists(snapshot() / name)) << name;
        continue;
      }
      EXPECT_TRUE(fs::is_symlink(snapshot() / name)) << name;
      EXPECT_EQ(read(snapshot() / name), file.bytes) << name;
    }
  }

  fs::path root_;
  std::mutex mutex_;
  DownloadProgress progress_;
};

TEST_F(HubTest, BringsWhatIsNeededInTheCachesLayout) {
  StandInHub hub(repository());
  const auto found = find_model(StandInHub::kModel, options(hub));
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_EQ(found->directory, snapshot().string());
  expect_complete(repository());
  EXPECT_EQ(read(root_ / "models--org--model" / "refs" / "main"), StandInHub::kCommit);
  EXPECT_TRUE(fs::exists(blobs() / sha256_hex(repository()["model.safetensors"].bytes)));
  EXPECT_TRUE(fs::exists(blobs() / git_sha1_hex("{}")));
  EXPECT_EQ(fs::read_symlink(snapshot() / "config.json"), fs::path("../../blobs") / git_sha1_hex("{}"));
  EXPECT_EQ(progress_.done_bytes, progress_.total_bytes);
  EXPECT_EQ(progress_.done_files, 3);

  // The second time nobody is asked.
  const size_t before = hub.seen().size();
  EXPECT_TRUE(find_model(StandInHub::kModel, options(hub)).ok());
  EXPECT_EQ(hub.seen().size(), before);
}

TEST_F(HubTest, ShardsAreThoseOfTheIndex) {
  auto files = repository();
  files.erase("model.safetensors");
  files["a-00001.safetensors"] = {.bytes = random_bytes(1000, 3), .lfs = true};
  files["a-00002.safetensors"] = {.bytes = random_bytes(1000, 4), .lfs = true};
  files["model.safetensors.index.json"] = {
      .bytes =
          R"({"weight_map": {"x": "a-00001.safetensors", "y": "a-00002.safetensors", "z": "a-00001.safetensors"}})"};
  StandInHub hub(files);
  ASSERT_TRUE(find_model(StandInHub::kModel, options(hub)).ok());
  expect_complete(files);
  EXPECT_EQ(progress_.done_files, 5);

  files["model.safetensors.index.json"].bytes = R"({"weight_map": {"x": "../../evil"}})";
  StandInHub evil(files);
  fs::remove_all(root_);
  EXPECT_FALSE(find_model(StandInHub::kModel, options(evil)).ok());
}

TEST_F(HubTest, ACutDownloadGoesOnWhereItStopped) {
  StandInHub hub(repository());
  hub.set_fault("model.safetensors", {.cut_after = 1'000'000, .cuts = 2});
  ASSERT_TRUE(find_model(StandInHub::kModel, options(hub)).ok());
  expect_complete(repository());
  std::vector<std::string> ranges;
  for (const auto& seen : hub.seen()) {
    if (seen.path.ends_with("model.safetensors")) ranges.push_back(seen.range);
  }
  EXPECT_THAT(ranges, ::testing::ElementsAre("", "bytes=1000000-", "bytes=2000000-"));
  EXPECT_EQ(progress_.done_bytes, progress_.total_bytes);
}

TEST_F(HubTest, WhatAnEarlierRunLeftIsUsed) {
  StandInHub hub(repository());
  hub.set_fault("model.safetensors", {.cut_after = 0, .cuts = 1000});
  auto patient = options(hub);
  const std::string bytes = repository()["model.safetensors"].bytes;
  const fs::path part = blobs() / (sha256_hex(bytes) + ".incomplete");
  fs::create_directories(blobs());
  std::ofstream(part, std::ios::binary) << bytes.substr(0, 500'000);
  const auto cut = find_model(StandInHub::kModel, patient);
  ASSERT_FALSE(cut.ok());
  EXPECT_THAT(cut.error().message, HasSubstr("run the same command again"));
  EXPECT_EQ(fs::file_size(part), 500'000u);
  hub.set_fault("model.safetensors", {});
  ASSERT_TRUE(find_model(StandInHub::kModel, patient).ok());
  expect_complete(repository());
}

TEST_F(HubTest, AServerWithoutRangesStartsAgain) {
  StandInHub hub(repository());
  hub.set_fault("model.safetensors", {.cut_after = 1000, .cuts = 1, .ignore_range = true});
  ASSERT_TRUE(find_model(StandInHub::kModel, options(hub)).ok());
  expect_complete(repository());
  EXPECT_EQ(progress_.done_bytes, progress_.total_bytes);
}

TEST_F(HubTest, WrongBytesAndWrongLengthsAreNotBelieved) {
  StandInHub hub(repository());
  hub.set_fault("model.safetensors", {.wrong_bytes = true});
  hub.set_fault("tokenizer.json", {.extra_bytes = 100});
  ASSERT_TRUE(find_model(StandInHub::kModel, options(hub)).ok());
  expect_complete(repository());
  EXPECT_EQ(progress_.done_bytes, progress_.total_bytes);
}

TEST_F(HubTest, TheTokenStaysWithTheHub) {
  StandInHub hub(repository());
  hub.needs_token = true;
  hub.redirect_to_other = true;
  const auto without = find_model(StandInHub::kModel, options(hub));
  ASSERT_FALSE(without.ok());
  EXPECT_THAT(without.error().message, HasSubstr("HF_TOKEN"));
  auto with = options(hub);
  with.token = StandInHub::kToken;
  ASSERT_TRUE(find_model(StandInHub::kModel, with).ok());
  expect_complete(repository());
  bool other = false;
  for (const auto& seen : hub.seen()) {
    if (seen.port == hub.port()) continue;
    other = true;
    EXPECT_FALSE(seen.token) << seen.path;
  }
  EXPECT_TRUE(other);
}

TEST_F(HubTest, RefusalsSayWhatToDo) {
  StandInHub hub(repository());
  auto wanted = options(hub);
  const auto message = [&](const std::string& name) {
    const auto found = find_model(name, wanted);
    EXPECT_FALSE(found.ok());
    return found.ok() ? std::string() : found.error().message;
  };
  EXPECT_THAT(message("org/other"), HasSubstr("was not found"));
  EXPECT_THAT(message("./nowhere"), HasSubstr("no such directory"));
  EXPECT_THAT(message("a/b/c"), HasSubstr("no such directory"));
  wanted.revision = "nope";
  EXPECT_THAT(message(StandInHub::kModel), HasSubstr("no revision 'nope'"));
  wanted.revision = "../x";
  EXPECT_FALSE(find_model(StandInHub::kModel, wanted).ok());
  wanted.revision = "main";
  hub.gated = true;
  EXPECT_THAT(message(StandInHub::kModel), HasSubstr("gated"));
  wanted.offline = true;
  EXPECT_THAT(message(StandInHub::kModel), HasSubstr("HF_HUB_OFFLINE"));
  wanted.offline = false;
  wanted.endpoint = "http://127.0.0.1:1";
  EXPECT_THAT(message(StandInHub::kModel), HasSubstr("127.0.0.1:1"));
}

TEST_F(HubTest, ATroubledServerIsAskedAgain) {
  StandInHub hub(repository());
  hub.set_fault("config.json", {.status = 503, .times = 2});
  ASSERT_TRUE(find_model(StandInHub::kModel, options(hub)).ok());
  expect_complete(repository());
}

TEST_F(HubTest, AServerThatThrottlesIsWaitedFor) {
  StandInHub hub(repository());
  hub.throttle_first = 3;
  ASSERT_TRUE(find_model(StandInHub::kModel, options(hub)).ok());
  expect_complete(repository());
  hub.throttle_first = 1000;
  const auto refused = pull_model(StandInHub::kModel, options(hub));
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("too many requests"));
}

TEST_F(HubTest, AListingThatLiesIsNotBelieved) {
  StandInHub hub(repository());
  hub.listed_bytes = {{"model.safetensors", 2'000'000}};
  const auto shorter = find_model(StandInHub::kModel, options(hub));
  ASSERT_FALSE(shorter.ok());
  EXPECT_THAT(shorter.error().message, HasSubstr("more bytes came than the 2000000 that the hub lists"));
  hub.listed_bytes = {{"model.safetensors", 3'000'100}};
  const auto longer = find_model(StandInHub::kModel, options(hub));
  ASSERT_FALSE(longer.ok());
  EXPECT_THAT(longer.error().message, HasSubstr("3000000 of 3000100 bytes came"));
  EXPECT_FALSE(fs::exists(snapshot() / "model.safetensors"));
  hub.listed_bytes.clear();
  ASSERT_TRUE(find_model(StandInHub::kModel, options(hub)).ok());
  expect_complete(repository());
}

// Before anything of it is brought.
TEST_F(HubTest, AFileThatDoesNotFitOnTheDiskIsRefused) {
  StandInHub hub(repository());
  hub.listed_bytes = {{"model.safetensors", int64_t{1} << 50}};
  const auto found = find_model(StandInHub::kModel, options(hub));
  ASSERT_FALSE(found.ok());
  EXPECT_THAT(found.error().message, HasSubstr("free some space, or point HF_HUB_CACHE at another disk"));
  for (const auto& seen : hub.seen()) EXPECT_FALSE(seen.path.ends_with("model.safetensors")) << seen.path;
}

TEST_F(HubTest, TwoAtOnceShareOneDownload) {
  StandInHub hub(repository());
  const auto pull = [&] { EXPECT_TRUE(pull_model(StandInHub::kModel, options(hub)).ok()); };
  std::thread other(pull);
  pull();
  other.join();
  int transfers = 0;
  for (const auto& seen : hub.seen()) transfers += seen.path.ends_with("model.safetensors") ? 1 : 0;
  EXPECT_EQ(transfers, 1);
  expect_complete(repository());
}

TEST_F(HubTest, RevisionsAndCommits) {
  StandInHub hub(repository());
  auto wanted = options(hub);
  wanted.revision = "refs/pr/1";
  ASSERT_TRUE(find_model(StandInHub::kModel, wanted).ok());
  EXPECT_EQ(read(root_ / "models--org--model" / "refs" / "refs" / "pr" / "1"), StandInHub::kCommit);
  wanted.revision = StandInHub::kCommit;
  wanted.offline = true;
  EXPECT_TRUE(find_model(StandInHub::kModel, wanted).ok());
}

TEST(Http, AddressesCanBeRefused) {
  StandInHub hub(repository());
  HttpRequest request;
  request.url = hub.endpoint() + "/org/model/resolve/" + StandInHub::kCommit + "/config.json";
  EXPECT_FALSE(http_get(request).ok()) << "http:// needs allow_http";
  request.allow_http = true;
  EXPECT_EQ(http_get(request)->status, 200);
  request.allow_address = [](const sockaddr*) { return false; };
  const auto refused = http_get(request);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("not one that may be connected to"));
}

TEST(HubNames, OnlySafeOnes) {
  EXPECT_TRUE(is_model_name("google/gemma-4-E4B-it"));
  EXPECT_TRUE(is_model_name("gpt2"));
  for (const char* bad : {"", "/", "a/", "/a", "a/b/c", "../a", "a/..", "a b", "a\nb"})
    EXPECT_FALSE(is_model_name(bad)) << bad;
  EXPECT_TRUE(is_safe_repo_path("a/b.json"));
  for (const char* bad : {"", "/a", "a//b", "../a", "a/../b", "a/.", "a\\b", "a\nb"})
    EXPECT_FALSE(is_safe_repo_path(bad)) << bad;
}

}  // namespace
}  // namespace jewel
