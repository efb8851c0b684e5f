// Whatever is wrong with the input: exit code 1, one line on stderr that says what and where, nothing on
// stdout.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/run_program.h"

namespace jewel {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const std::string kDemo = JEWEL_SOURCE_DIR "/models/jewel-demo";

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// A copy of the demo model to break.
class BrokenModel {
 public:
  BrokenModel() {
    std::string pattern = (fs::temp_directory_path() / "jewel_broken_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
    fs::copy(kDemo, path_, fs::copy_options::recursive);
  }
  ~BrokenModel() { fs::remove_all(path_); }
  BrokenModel(const BrokenModel&) = delete;
  BrokenModel& operator=(const BrokenModel&) = delete;

  fs::path file(const std::string& name) const { return path_ / name; }
  std::string path() const { return path_.string(); }

  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
  }

  // Replaces text by text of any length in a JSON file; by the same length in the header of the weights.
  void replace(const std::string& name, std::string_view from, std::string_view to) const {
    std::string bytes = read(file(name));
    const size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write(name, bytes.replace(at, from.size(), to));
  }

 private:
  fs::path path_;
};

void expect_one_line_error(const std::vector<std::string>& arguments, const std::string& says) {
  const ProgramOutput output = run_program(arguments);
  EXPECT_EQ(output.exit_code, 1) << output.err;
  EXPECT_EQ(output.out, "");
  EXPECT_THAT(output.err, testing::StartsWith("jewel: error: "));
  EXPECT_THAT(output.err, HasSubstr(says));
  EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 1) << output.err;
}

void expect_refused(const BrokenModel& model, const std::string& says) {
  expect_one_line_error({"run", model.path(), "Hi"}, says);
}

TEST(BadModel, Directory) {
  expect_one_line_error({"run", "/nonexistent", "Hi"}, "/nonexistent: no such directory");
  expect_one_line_error({"inspect", "/nonexistent"}, "/nonexistent: no such directory");
}

TEST(BadModel, TruncatedWeights) {
  const BrokenModel model;
  const auto size = fs::file_size(model.file("model.safetensors"));
  for (const uintmax_t keep : {size - 1, size / 2, uintmax_t{100}, uintmax_t{7}, uintmax_t{0}}) {
    fs::resize_file(model.file("model.safetensors"), keep);
    expect_refused(model, "model.safetensors");
  }
}

TEST(BadModel, LyingHeader) {
  {
    const BrokenModel model;
    model.replace("model.safetensors", "\"dtype\":\"BF16\"", "\"dtype\":\"BF61\"");
    expect_refused(model, "BF61");
  }
  {
    const BrokenModel model;
    model.replace("model.safetensors", "\"data_offsets\":[0,", "\"data_offsets\":[1,");
    expect_refused(model, "model.safetensors: tensor '");
  }
}

TEST(BadModel, MissingTensor) {
  const BrokenModel model;
  model.replace("model.safetensors", "model.language_model.layers.0.mlp.up_proj.weight",
                "model.language_model.layers.0.mlp.xx_proj.weight");
  expect_refused(model, "tensor 'model.language_model.layers.0.mlp.up_proj.weight' is missing");
}

TEST(BadModel, WrongShape) {
  const BrokenModel model;
  model.replace("config.json", "\"hidden_size\": ", "\"hidden_size\": 64");  // another multiple of 64
  expect_refused(model, "found shape");
}

TEST(BadModel, WrongArchitecture) {
  const BrokenModel model;
  model.replace("config.json", "\"Gemma4ForConditionalGeneration\"", "\"LlamaForCausalLM\"");
  expect_refused(model, "LlamaForCausalLM");
}

TEST(BadModel, CorruptJson) {
  for (const std::string name :
       {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json"}) {
    const BrokenModel model;
    const std::string bytes = read(model.file(name));
    model.write(name, bytes.substr(0, bytes.size() / 2));
    expect_refused(model, name);
    model.write(name, "[]");
    expect_refused(model, name);
  }
}

TEST(BadModel, BrokenTemplate) {
  const BrokenModel model;
  model.write("chat_template.jinja", "{% if %}");
  expect_refused(model, "chat template, line 1");
}

class BadImage : public testing::Test {
 protected:
  BadImage() {
    std::string pattern = (fs::temp_directory_path() / "jewel_image_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~BadImage() override { fs::remove_all(path_); }

  void expect_image_refused(const std::string& bytes, const std::string& says) {
    const std::string file = (path_ / "image").string();
    std::ofstream(file, std::ios::binary) << bytes;
    expect_one_line_error({"run", kDemo, "--image", file, "What is this?"}, says);
  }

  fs::path path_;
};

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

TEST_F(BadImage, Empty) {
  expect_image_refused("", "image");
}
TEST_F(BadImage, UnsupportedFormat) {
  expect_image_refused("%PDF-1.7\n", "PDF");
  expect_image_refused("hello", "expected JPEG, PNG, WebP, GIF or BMP");
}

// A PNG header that promises 20,000 x 20,000 pixels; its checksums are right, its data is not there.
TEST_F(BadImage, Bomb) {
  const std::string png = std::string("\x89PNG\r\n\x1a\n", 8) + big_endian(13) + "IHDR" + big_endian(20000) +
                          big_endian(20000) + std::string("\x08\x02\x00\x00\x00", 5) +
                          big_endian(0x6c12d16e) + big_endian(0) + "IDAT" + big_endian(0x35af061e);
  expect_image_refused(png, "20000");
}

TEST_F(BadImage, MissingFile) {
  expect_one_line_error({"run", kDemo, "--image", "/nonexistent.png", "Hi"}, "/nonexistent.png");
}

TEST_F(BadImage, Budget) {
  const std::string bmp =
      std::string("BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0", 30) +
      std::string(24, '\0') + std::string("\xff\0\0\0", 4);
  const std::string file = (path_ / "dot.bmp").string();
  std::ofstream(file, std::ios::binary) << bmp;
  expect_one_line_error({"run", kDemo, "--image", file, "--image-tokens", "100", "Hi"}, "max_soft_tokens");
  const ProgramOutput good = run_program({"run", kDemo, "--image", file, "--max-tokens", "2", "Hi"});
  EXPECT_EQ(good.exit_code, 0) << good.err;
}

TEST(BadPrompt, OverTheLimit) {
  expect_one_line_error({"run", kDemo, "--max-model-len", "64", "--max-tokens", "60", "Hi there"},
                        "the limit is 64");
  std::string novel;
  for (int i = 0; i < 9000; ++i) novel += "word ";
  expect_one_line_error({"run", kDemo, novel}, "the limit is");
}

}  // namespace
}  // namespace jewel
