#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "text/text_file.h"
#include "text_fixtures.h"

namespace jewel {
namespace {

namespace json = boost::json;

const json::object& goldens() {
  static const json::object kGoldens = [] {
    const auto text = read_text_file(JEWEL_SOURCE_DIR "/tests/data/text/templates.json", 1 << 26);
    return json::parse(text.value()).as_object();
  }();
  return kGoldens;
}

Result<std::string> render(std::string_view source, json::object variables) {
  auto chat_template = ChatTemplate::from_source(source, {});
  if (!chat_template.ok()) return chat_template.error();
  RenderOptions options;
  options.extra = std::move(variables);
  options.now = 1775000000;
  return chat_template->render({}, {}, options);
}

// What jinja2 in Transformers' setting printed (tools/goldens_text/capture_templates.py).
TEST(ChatTemplate, PrintsAsPythonDoes) {
  size_t compared = 0;
  for (const json::value& item : goldens().at("expressions").as_array()) {
    const std::string source(item.at("source").as_string());
    const auto text = render(source, goldens().at("variables").as_object());
    ++compared;
    if (item.at("text").is_null()) {
      EXPECT_FALSE(text.ok()) << source << " gave " << text.value();
    } else {
      EXPECT_EQ(text.ok() ? text.value() : "error: " + text.error().message, item.at("text").as_string())
          << source;
    }
  }
  EXPECT_GE(compared, 100u);
}

TEST(ChatTemplate, ConversationsEqualTheReference) {
  const auto chat_template = ChatTemplate::load(kDemoDir);
  ASSERT_TRUE(chat_template.ok()) << chat_template.error().message;
  size_t compared = 0;
  for (const json::value& item : goldens().at("conversations").as_array()) {
    RenderOptions options;
    options.extra = item.at("options").as_object();
    const auto text =
        chat_template->render(item.at("messages").as_array(), item.at("tools").as_array(), options);
    ASSERT_TRUE(text.ok()) << text.error().message;
    EXPECT_EQ(text.value(), item.at("text").as_string()) << json::serialize(item.at("messages"));
    ++compared;
  }
  EXPECT_GE(compared, 200u);
}

TEST(ChatTemplate, ErrorsNameTheLineAndTheReason) {
  const auto raised = render("a\nb\n{{ raise_exception('roles must alternate') }}", {});
  ASSERT_FALSE(raised.ok());
  EXPECT_EQ(raised.error().code, ErrorCode::kInvalid);
  EXPECT_EQ(raised.error().message, "chat template, line 3: roles must alternate");
  const auto broken = ChatTemplate::from_source("a\n{% if %}", {});
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().message.find("line 2"), std::string::npos) << broken.error().message;
  EXPECT_FALSE(ChatTemplate::from_source("\xFF", {}).ok());
}

TEST(ChatTemplate, EndlessRenderingIsStopped) {
  const auto text =
      render("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", {});
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().code, ErrorCode::kTooLarge);
  const auto recursion = render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", {});
  EXPECT_FALSE(recursion.ok());
}

TEST(ChatTemplate, DeepVariablesAreAnErrorOrText) {
  for (const int depth : {100, 130, 5000}) {
    json::value deep(1);
    for (int i = 0; i < depth; ++i) deep = json::value(json::array{std::move(deep)});
    const auto text = render("{{ deep }}{{ deep | tojson }}", json::object{{"deep", deep}});
    EXPECT_EQ(text.ok(), depth == 100) << depth;
  }
}

TEST(ChatTemplate, StrftimeNow) {
  setenv("TZ", "UTC", 1);
  tzset();
  const auto text = render(
      "{{ strftime_now('%Y-%m-%d %H:%M:%S %B %a') }}|{{ strftime_now('') }}|{{ strftime_now('%%') }}", {});
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_EQ(text.value(), "2026-03-31 23:33:20 March Tue||%");
}

TEST(ChatTemplate, FromTokenizerConfig) {
  const std::string dir = ::testing::TempDir() + "/jewel_template";
  ASSERT_EQ(std::system(("rm -rf '" + dir + "' && mkdir -p '" + dir + "'").c_str()), 0);
  const auto write = [&](const char* text) {
    std::FILE* file = std::fopen((dir + "/tokenizer_config.json").c_str(), "wb");
    std::fputs(text, file);
    std::fclose(file);
  };
  const auto load_and_render = [&]() -> Result<std::string> {
    JEWEL_ASSIGN(const ChatTemplate loaded, ChatTemplate::load(dir));
    return loaded.render({}, {}, {});
  };
  EXPECT_EQ(load_and_render().error().code, ErrorCode::kNotFound);
  write(
      R"({"bos_token": {"content": "<b>"}, "eos_token": "<e>", "pad_token": null, "chat_template": "{{ bos_token }}{{ eos_token }}{{ tools }}"})");
  EXPECT_EQ(load_and_render().value(), "<b><e>None");
  write(R"({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(load_and_render().value(), "d");
  write("{");
  EXPECT_FALSE(load_and_render().ok());
  write("[]");
  EXPECT_FALSE(load_and_render().ok());
}

}  // namespace
}  // namespace jewel
