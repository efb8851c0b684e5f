#include "bench/set_file.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "bench/request_set.h"
#include "client/data_url.h"
#include "image/decode.h"
#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr int kDefaultMaxTokens = 256;

class SetFile {
 public:
  explicit SetFile(const std::string& path)
      : path_(path), folder_(std::filesystem::path(path).parent_path()) {}

  Result<std::vector<json::object>> read() {
    std::ifstream stream(path_);
    if (!stream) return not_found(fmt::format("{}: cannot be opened", path_), "set");
    std::vector<json::object> bodies;
    std::string line;
    size_t bytes = 0;
    for (int number = 1; std::getline(stream, line); ++number) {
      bytes += line.size();
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      where_ = fmt::format("{}:{}", path_, number);
      JEWEL_ASSIGN(json::object body, parse_json_object(line, where_));
      JEWEL_ASSIGN(body, body.contains("messages") ? chat_body(std::move(body)) : short_form(body));
      bodies.push_back(std::move(body));
      if (bodies.size() > kMaxSetLines || bytes + picture_bytes_ > kMaxSetBytes) {
        return too_large(
            fmt::format("{}: more than {} requests or {} MiB", where_, kMaxSetLines, kMaxSetBytes >> 20),
            "set");
      }
    }
    if (bodies.empty()) return invalid(fmt::format("{}: holds no request", path_), "set");
    return bodies;
  }

 private:
  Result<json::object> chat_body(json::object body) {
    for (const char* ours : {"model", "stream", "stream_options"}) body.erase(ours);
    if (!body["messages"].is_array())
      return invalid(fmt::format("{}: messages: expected a list of messages", where_), "set");
    for (json::value& message : body["messages"].get_array()) {
      json::value* content = message.is_object() ? message.get_object().if_contains("content") : nullptr;
      if (content == nullptr || !content->is_array()) continue;
      for (json::value& part : content->get_array()) {
        boost::system::error_code none;
        json::value* url = part.find_pointer("/image_url/url", none);
        if (url == nullptr || !url->is_string()) continue;
        JEWEL_ASSIGN(*url, address_of(std::string(url->get_string())));
      }
    }
    return body;
  }

  Result<json::object> short_form(const json::object& line) {
    JsonReader reader(line, where_);
    const std::string prompt = reader.optional_string("prompt", "");
    const std::string system = reader.optional_string("system", "");
    const auto max_tokens =
        reader.optional_int("max_tokens", kDefaultMaxTokens, 1, std::numeric_limits<int>::max());
    std::vector<std::string> images;
    if (reader.present("image")) images.push_back(reader.optional_string("image", ""));
    if (const json::array* list = reader.optional_array("images")) {
      for (const json::value& image : *list) {
        if (!image.is_string()) return invalid(fmt::format("{}: images: expected texts", where_), "set");
        images.emplace_back(image.get_string());
      }
    }
    if (reader.failed()) return reader.error();
    if (!reader.present("prompt"))
      return invalid(fmt::format("{}: found neither \"messages\" nor \"prompt\"", where_), "set");
    json::object body = line;  // temperature, seed, ignore_eos … go along
    for (const char* ours :
         {"prompt", "system", "image", "images", "model", "stream", "stream_options", "id"})
      body.erase(ours);
    json::value content = json::string(prompt);
    if (!images.empty()) {
      json::array parts;
      for (const std::string& image : images) {
        JEWEL_ASSIGN(const json::string address, address_of(image));
        parts.push_back(json::object{{"type", "image_url"}, {"image_url", {{"url", address}}}});
      }
      parts.push_back(json::object{{"type", "text"}, {"text", prompt}});
      content = std::move(parts);
    }
    json::array messages;
    if (!system.empty()) messages.push_back(json::object{{"role", "system"}, {"content", system}});
    messages.push_back(json::object{{"role", "user"}, {"content", std::move(content)}});
    body["messages"] = std::move(messages);
    body["max_tokens"] = max_tokens;
    return body;
  }

  Result<json::string> address_of(const std::string& image) {
    if (image.starts_with("data:") || image.starts_with("http://") || image.starts_with("https://"))
      return json::string(image);
    const std::filesystem::path file = folder_ / image;
    std::ifstream stream(file, std::ios::binary);
    if (!stream) return not_found(fmt::format("{}: {} cannot be opened", where_, file.string()), "set");
    std::string bytes(ImageLimits{}.max_bytes + 1, '\0');
    stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    bytes.resize(static_cast<size_t>(stream.gcount()));
    if (bytes.size() > ImageLimits{}.max_bytes) {
      return too_large(
          fmt::format("{}: {} has more than {} bytes", where_, file.string(), ImageLimits{}.max_bytes),
          "set");
    }
    picture_bytes_ += bytes.size() * 4 / 3;
    return json::string(data_url(bytes));
  }

  std::string path_;
  std::filesystem::path folder_;
  std::string where_;
  size_t picture_bytes_ = 0;
};

}  // namespace

Result<std::vector<json::object>> read_set_file(const std::string& path) {
  return SetFile(path).read();
}

}  // namespace jewel
