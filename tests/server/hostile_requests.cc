#include "server/hostile_requests.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "api/answers.h"
#include "client/data_url.h"
#include "server/openai/openapi.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

using Answer = HostileRequest::Answer;

constexpr std::string_view kTooMany = "1000000000";  // tokens
constexpr std::string_view kChat = "/v1/chat/completions";

std::string repeated(std::string_view text, size_t times) {
  std::string out;
  out.reserve(text.size() * times);
  for (size_t i = 0; i < times; ++i) out += text;
  return out;
}

std::string nested(std::string_view open, std::string_view inner, std::string_view close, size_t depth) {
  return repeated(open, depth) + std::string(inner) + repeated(close, depth);
}

bool has_field(const ApiBody& body, std::string_view name) {
  for (const auto& fields : body.fields) {
    for (const ApiField& field : fields) {
      if (field.name == name) return true;
    }
  }
  return false;
}

// The body's example without its last brace, asking for too many tokens where tokens can be asked for.
std::string beginning_of(const ApiBody& body) {
  std::string text(body.example.substr(0, body.example.rfind('}')));
  for (const std::string_view name : {"max_output_tokens", "max_tokens"}) {
    if (!has_field(body, name)) continue;
    text += fmt::format(",\"{}\":{}", name, kTooMany);
    break;
  }
  return text;
}

// Only where an answer of a million tokens would be asked for is a refusal certain.
Answer answer_of(const ApiOperation& operation) {
  return operation.answer == "Tokens" || operation.answer == "DetokenizedText" ||
                 operation.answer == "TokenCount"
             ? Answer::kNoCrash
             : Answer::kRefusal;
}

void for_each_body(const std::function<void(const ApiOperation&, const ApiBody&)>& visit) {
  for (const ApiOperation& operation : api_operations()) {
    for (const ApiBody& body : api_bodies()) {
      if (body.name == operation.body || body.name == operation.other_body) visit(operation, body);
    }
  }
}

std::string chat_with(std::string_view more) {
  return post_bytes(std::string(kChat),
                    fmt::format(R"({{"messages":[{{"role":"user","content":"Who are you?"}}],)"
                                R"("max_tokens":{},{}}})",
                                kTooMany, more));
}

std::string chat_about(std::string_view image_url) {
  return post_bytes(std::string(kChat),
                    fmt::format(R"({{"max_tokens":{},"messages":[{{"role":"user","content":[)"
                                R"({{"type":"image_url","image_url":{{"url":"{}"}}}}]}}]}})",
                                kTooMany, image_url));
}

std::string big_endian(uint32_t number) {
  return {static_cast<char>(number >> 24), static_cast<char>(number >> 16), static_cast<char>(number >> 8),
          static_cast<char>(number)};
}

uint32_t crc32(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xEDB88320U : 0);
  }
  return ~crc;
}

std::string png_chunk(std::string_view type, std::string_view data) {
  const std::string body = std::string(type) + std::string(data);
  return big_endian(static_cast<uint32_t>(data.size())) + body + big_endian(crc32(body));
}

std::string png(uint32_t width, uint32_t height, std::string_view chunks) {
  const std::string header = big_endian(width) + big_endian(height) + std::string("\x08\x02\0\0\0", 5);
  return "\x89PNG\r\n\x1a\n" + png_chunk("IHDR", header) + std::string(chunks) + png_chunk("IEND", "");
}

std::string jpeg_of_size(uint16_t width, uint16_t height) {
  const auto two = [](uint16_t n) { return std::string{static_cast<char>(n >> 8), static_cast<char>(n)}; };
  return std::string("\xFF\xD8\xFF\xC0\x00\x11\x08", 7) + two(height) + two(width) +
         std::string("\x03\x01\x22\x00\x02\x11\x00\x03\x11\x00\xFF\xD9", 12);
}

std::string numbered(size_t count, const std::function<std::string(size_t)>& item) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += (i == 0 ? "" : ",") + item(i);
  return out;
}

}  // namespace

void hostile_json(const Visit& visit) {
  std::vector<std::string> texts = {"",
                                    " ",
                                    "null",
                                    "true",
                                    "7",
                                    "\"x\"",
                                    "[]",
                                    "[{}]",
                                    "{",
                                    "}",
                                    "{]",
                                    "{}}",
                                    "{\"a\"}",
                                    "{\"a\":}",
                                    "{\"a\":1,}",
                                    "{,}",
                                    "{a:1}",
                                    "{'a':1}",
                                    "{\"a\":01}",
                                    "{\"a\":+1}",
                                    "{\"a\":.5}",
                                    "{\"a\":1.}",
                                    "{\"a\":1e}",
                                    "{\"a\":0x10}",
                                    "{\"a\":NaN}",
                                    "{\"a\":Infinity}",
                                    "{\"a\":tru}",
                                    "{\"a\":\"\\x\"}",
                                    "{\"a\":\"\\u12\"}",
                                    "{\"a\":\"\n\"}",
                                    "{\"a\":\"unended}",
                                    "{} {}",
                                    "{}\x01",
                                    "//c\n{}",
                                    "{\"a\":1}/**/",
                                    "\xEF\xBB\xBF{}",
                                    "a=1&b=2",
                                    "<xml/>",
                                    std::string("{}\0", 3),
                                    std::string("\0{}", 3),
                                    std::string("{\"a\0\":1}", 8),
                                    "{\"a\":" + std::string(100'000, '1') + "x}"};
  for (const std::string_view bad :
       {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\x80", "\xF0\x80\x80\x80"}) {
    texts.push_back(fmt::format("{{\"a\":\"{}\"}}", bad));
    texts.push_back(fmt::format("{{\"{}\":1}}", bad));
  }
  for (const size_t depth : {size_t{129}, size_t{1000}, size_t{100'000}, size_t{1'000'000}}) {
    texts.push_back("{\"a\":" + nested("[", "", "]", depth) + "}");
    texts.push_back("{\"a\":" + nested("{\"a\":", "1", "}", depth) + "}");
    texts.push_back("{\"a\":" + repeated("[", depth));
  }
  texts.push_back("{\"a\":[" + repeated("0,", 3'000'000) + "0]}");
  texts.push_back("{\"a\":[" + repeated("{},", 1'500'000) + "{}]}");
  for_each_body([&](const ApiOperation& operation, const ApiBody& /*body*/) {
    for (size_t i = 0; i < texts.size(); ++i) {
      // The large ones once: every route reads its body by the same lines.
      if (texts[i].size() > 50'000 && operation.path != kChat) continue;
      visit({.name = fmt::format("{} is no JSON: {}", operation.path, texts[i].substr(0, 40)),
             .bytes = post_bytes(std::string(operation.path), texts[i])});
    }
    visit({.name = fmt::format("{}: empty object", operation.path),
           .bytes = post_bytes(std::string(operation.path), "{}")});
  });
}

void hostile_fields(const Visit& visit) {
  const auto values = std::to_array<std::string>({"-1",
                                                  "0",
                                                  "-9223372036854775809",
                                                  "18446744073709551616",
                                                  "2147483648",
                                                  "1e308",
                                                  "1e999",
                                                  "-1e999",
                                                  "0.1",
                                                  "1e-400",
                                                  "true",
                                                  R"("")",
                                                  R"("x")",
                                                  R"("\u0000")",
                                                  R"("\ud800")",
                                                  "[]",
                                                  "[null]",
                                                  "[[[]]]",
                                                  "[-1]",
                                                  R"(["",""])",
                                                  "{}",
                                                  R"({"":null})",
                                                  R"({"type":7})",
                                                  R"([{"type":"function"}])",
                                                  "\"" + std::string(20'000, 'x') + "\""});
  for_each_body([&](const ApiOperation& operation, const ApiBody& body) {
    const std::string beginning = beginning_of(body);
    for (const auto& fields : body.fields) {
      for (const ApiField& field : fields) {
        const bool is_limit = field.name.starts_with("max_") && field.name.ends_with("tokens");
        for (const std::string& value : values) {
          visit({.name = fmt::format("{} {}: {}", operation.path, field.name, value.substr(0, 40)),
                 .bytes = post_bytes(std::string(operation.path),
                                     fmt::format("{},\"{}\":{}}}", beginning, field.name, value)),
                 .answer = is_limit ? Answer::kNoCrash : answer_of(operation)});
        }
      }
    }
  });
}

void hostile_values(const Visit& visit) {
  const auto chat = [&](const std::string& name, const std::string& more) {
    visit({.name = name, .bytes = chat_with(more)});
  };
  const auto messages = [&](const std::string& name, const std::string& list) {
    visit({.name = "messages: " + name,
           .bytes = post_bytes(std::string(kChat),
                               fmt::format(R"({{"max_tokens":{},"messages":{}}})", kTooMany, list))});
  };
  const std::string bomb =
      "((((((((((a{1,100}){1,100}){1,100}){1,100}){1,100}){1,100}){1,100}){1,100}){1,100})";
  for (const std::string& regex :
       {std::string("("), std::string("[a-"), std::string("a{1000000000}"), bomb, repeated("(", 50'000),
        repeated("(a|", 5000) + "b" + repeated(")", 5000), std::string("(a*)*b"), std::string("\\\\p{Nope}"),
        std::string("(?=a)"), std::string("(a)\\\\1"), repeated("a?", 3000) + repeated("a", 3000),
        std::string("[\\\\u0000-\\\\uffff]{4000}")}) {
    chat("regex " + regex.substr(0, 40), fmt::format(R"("structured_outputs":{{"regex":"{}"}})", regex));
  }
  for (const std::string& grammar :
       {std::string("start:"), std::string("start: start"), std::string("start: a"),
        std::string("%ignore /("), std::string("start: \\\"a\\\"~1000000000"), repeated("start: a\\n", 5000),
        repeated("(", 20'000), std::string("start: %json {"), std::string("root ::= root root | \\\"\\\""),
        std::string("x")}) {
    chat("grammar " + grammar.substr(0, 40),
         fmt::format(R"("structured_outputs":{{"grammar":"{}"}})", grammar));
  }
  for (const std::string& schema :
       {std::string(R"({"type":7})"),
        std::string(R"({"type":"nope"})"),
        std::string(R"({"$ref":"#"})"),
        std::string(R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}})"),
        std::string(R"({"$ref":"https://example.org/schema.json"})"),
        std::string(R"({"$ref":"file:///etc/passwd"})"),
        std::string(R"({"type":"string","pattern":"(a{1000}){1000}"})"),
        std::string(R"({"type":"string","minLength":1000000000})"),
        std::string(R"({"type":"array","minItems":1000000000})"),
        std::string(R"({"type":"array","maxItems":-1})"),
        std::string(R"({"minimum":1e400,"type":"number"})"),
        std::string(R"({"enum":[]})"),
        std::string(R"({"allOf":7})"),
        std::string(R"({"type":"integer","multipleOf":0})"),
        std::string(R"({"type":"integer","minimum":9,"maximum":1})"),
        "{\"enum\":[" + numbered(20'000, [](size_t i) { return std::to_string(i); }) + "]}",
        "{\"anyOf\":[" + numbered(3000, [](size_t i) { return fmt::format("{{\"const\":\"{}\"}}", i); }) +
            "]}",
        "{\"properties\":{" +
            numbered(3000, [](size_t i) { return fmt::format("\"p{}\":{{\"type\":\"string\"}}", i); }) + "}}",
        nested(R"({"properties":{"a":)", "{}", "}}", 40),
        nested(R"({"items":)", "{}", "}", 100),
        nested(R"({"not":)", "{}", "}", 50)}) {
    const std::string format = fmt::format(
        R"("response_format":{{"type":"json_schema","json_schema":{{"name":"x","schema":{}}}}})", schema);
    chat("schema " + schema.substr(0, 40), format);
    chat(
        "tool of schema " + schema.substr(0, 40),
        fmt::format(
            R"("tool_choice":"required","tools":[{{"type":"function","function":{{"name":"f","parameters":{}}}}}])",
            schema));
  }
  for (const std::string& tool :
       {std::string("7"), std::string("{}"), std::string(R"({"type":"function"})"),
        std::string(R"({"type":"function","function":{}})"),
        std::string(R"({"type":"function","function":{"name":""}})"),
        std::string(R"({"type":"function","function":{"name":7}})"),
        std::string(R"({"type":"function","function":{"name":"a b\"}<|turn>"}})"),
        std::string(R"({"type":"code_interpreter"})"),
        std::string(R"({"type":"function","function":{"name":"f","parameters":7}})"),
        R"({"type":"function","function":{"name":")" + std::string(100'000, 'n') + "\"}}"}) {
    for (const char* choice : {"auto", "required"})
      chat("tool " + tool.substr(0, 40), fmt::format(R"("tools":[{}],"tool_choice":"{}")", tool, choice));
  }
  const std::string same_tool = R"({"type":"function","function":{"name":"f"}})";
  chat("one tool twice", fmt::format(R"("tools":[{},{}],"tool_choice":"required")", same_tool, same_tool));
  chat("4,000 tools", fmt::format(R"("tool_choice":"required","tools":[{}])", numbered(4000, [](size_t i) {
                                    return fmt::format(R"({{"type":"function","function":{{"name":"f{}"}}}})",
                                                       i);
                                  })));
  chat(
      "a tool that is not there",
      R"("tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","function":{"name":"g"}})");
  chat("20,000 stops",
       fmt::format(R"("stop":[{}])", numbered(20'000, [](size_t) { return std::string("\"x\""); })));
  chat("a stop of a megabyte", "\"stop\":\"" + std::string(1 << 20, 's') + '"');
  chat("50,000 biases", fmt::format(R"("logit_bias":{{{}}})",
                                    numbered(50'000, [](size_t i) { return fmt::format("\"{}\":1", i); })));
  chat("100,000 unknown fields", numbered(100'000, [](size_t i) { return fmt::format("\"f{}\":{}", i, i); }));
  chat("one field 100,000 times", numbered(100'000, [](size_t i) { return fmt::format("\"n\":{}", i); }));
  chat("messages twice", R"("messages":5)");
  chat("messages again, worse", R"("messages":[{"role":"user","content":[{"type":"image_url"}]}])");
  chat("a name of a megabyte", "\"" + std::string(1 << 20, 'k') + "\":1");
  chat("template arguments",
       R"("chat_template_kwargs":{"messages":7,"tools":7,"bos_token":{},"enable_thinking":[[]]})");
  chat("128 choices", R"("n":128,"stream":true)");
  messages("100,000", "[" + numbered(100'000, [](size_t) {
                        return std::string(R"({"role":"user","content":"x"})");
                      }) + "]");
  messages("4 MB of one letter", R"([{"role":"user","content":")" + std::string(4 << 20, 'a') + "\"}]");
  messages("4 MB of spaces", R"([{"role":"user","content":")" + std::string(4 << 20, ' ') + "\"}]");
  messages("control characters",
           R"([{"role":"user","content":")" + repeated("\\u0000\\u001b\\u202e", 1000) + "\"}]");
  messages("lone surrogates", R"([{"role":"user","content":"\ud800 \udfff"}])");
  messages("many marks on one letter",
           R"([{"role":"user","content":"a)" + repeated("\xCC\x81", 20'000) + "\"}]");
  messages("typed control tokens",
           R"([{"role":"user","content":")" + repeated("<|turn><turn|><|image|><|tool_call>", 500) + "\"}]");
  for (
      const char* list :
      {"7",
       "{}",
       "[7]",
       "[null]",
       "[[]]",
       "[{}]",
       R"([{"role":7}])",
       R"([{"role":"user","content":7}])",
       R"([{"role":"user","content":{"type":"text"}}])",
       R"([{"role":"user","content":[7]}])",
       R"([{"role":"user","content":[{"type":"text"}]}])",
       R"([{"role":"user","content":[{"type":"text","text":7}]}])",
       R"([{"role":"user","content":[{"type":"image_url","image_url":7}]}])",
       R"([{"role":"assistant","tool_calls":7}])",
       R"([{"role":"assistant","tool_calls":[7]}])",
       R"([{"role":"assistant","tool_calls":[{"function":7}]}])",
       R"([{"role":"assistant","tool_calls":[{"function":{"name":7,"arguments":7}}]}])",
       R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}])",
       R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"[]"}}]}])",
       R"([{"role":"tool","content":"x"}])",
       R"([{"role":"tool","tool_call_id":7,"content":7}])",
       R"([{"role":"system","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}])"}) {
    messages(list, list);
  }
}

void hostile_pictures(const Visit& visit) {
  const auto picture = [&](const std::string& name, const std::string& url) {
    visit({.name = "picture: " + name, .bytes = chat_about(url)});
  };
  for (const char* url : {"",
                          "x",
                          "data:",
                          "data:,",
                          "data:image/png",
                          "data:image/png;base64",
                          "data:image/png;base64,",
                          "data:image/png;base64,=",
                          "data:image/png;base64,A",
                          "data:image/png;base64,AA",
                          "data:image/png;base64,AAA",
                          "data:image/png;base64,A===",
                          "data:image/png;base64,AB==",
                          "data:image/png;base64,AAAA=AAA",
                          "data:image/png;base64,AA*A",
                          "data:image/png;base64,AAAA\\nAAAA",
                          "data:image/png;base64,%41%41%41%41",
                          "data:image/png;base64,\\u0000\\u0000",
                          "data:text/html;base64,AAAA",
                          "data:image/svg+xml;base64,PHN2Zy8+",
                          "data:image/png;charset=x;base64,AAAA",
                          "DATA:IMAGE/PNG;BASE64,AAAA",
                          "javascript:alert(1)",
                          "file:///etc/passwd",
                          "file://localhost/etc/passwd",
                          "http://127.0.0.1:1/x.png",
                          "http://[::1]:1/x.png",
                          "http://169.254.169.254/latest/meta-data",
                          "http://0/",
                          "http://localhost:1/",
                          "https://10.0.0.1/x.png",
                          "http://",
                          "http://user:secret@127.0.0.1/",
                          "http://127.0.0.1:99999/",
                          "ftp://127.0.0.1/x",
                          "gopher://x"}) {
    picture(url, url);
  }
  const auto png_url = [](const std::string& bytes) { return "data:image/png;base64," + base64(bytes); };
  const std::string whole = read_file("models/examples/word.png");
  for (size_t part = 0; part < 60; ++part)
    picture(fmt::format("cut at {}/60", part), png_url(whole.substr(0, whole.size() * part / 60)));
  std::mt19937 random(7);  // NOLINT(cert-msc51-cpp): the same corpus every time
  for (int i = 0; i < 100; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 8; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
    picture(fmt::format("flipped {}", i), png_url(bytes));
  }
  for (const uint32_t side : {0U, 1U, 20'000U, 65'535U, 1'000'000U, 0x7FFFFFFFU, 0xFFFFFFFFU}) {
    picture(fmt::format("a PNG of {0}x{0} without pixels", side), png_url(png(side, side, "")));
    picture(fmt::format("a PNG of {}x1 and a wrong stream", side),
            png_url(png(side, 1, png_chunk("IDAT", "xxxx"))));
    picture(fmt::format("a PNG of 1x{}", side),
            png_url(png(1, side, png_chunk("IDAT", std::string("\x78\x9c\x03\x00\x00\x00\x00\x01", 8)))));
  }
  picture("a million chunks", png_url(png(8, 8, repeated(png_chunk("tEXt", ""), 100'000))));
  picture("a chunk that claims 2 GB", png_url("\x89PNG\r\n\x1a\n" + big_endian(0x7FFFFFFF) + "IHDR"));
  for (const uint16_t side : {uint16_t{0}, uint16_t{1}, uint16_t{65'500}, uint16_t{65'535}})
    picture(fmt::format("a JPEG of {0}x{0} without pixels", side),
            "data:image/jpeg;base64," + base64(jpeg_of_size(side, side)));
  picture(
      "a GIF of 65535x65535",
      "data:image/gif;base64," + base64(std::string("GIF89a\xff\xff\xff\xff\x80\x00\x00\x00\x00\x00\xff\xff"
                                                    "\xff,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x00;",
                                                    33)));
  picture("a BMP of 2^31 rows",
          "data:image/bmp;base64," +
              base64(std::string("BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\xff\xff\xff\x7f\xff\xff\xff\x7f"
                                 "\x01\0\x18\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                                 54)));
  picture(
      "a WebP of 16384x16384",
      "data:image/webp;base64," +
          base64(std::string("RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0\0\0\0\0", 34)));
  std::string many;
  for (int i = 0; i < 300; ++i)
    many += (i == 0 ? "" : ",") +
            std::string(R"({"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}})");
  visit(
      {.name = "300 pictures",
       .bytes = post_bytes(std::string(kChat),
                           fmt::format(R"({{"max_tokens":{},"messages":[{{"role":"user","content":[{}]}}]}})",
                                       kTooMany, many))});
}

void hostile_http(const Visit& visit) {
  const auto raw = [&](const std::string& name, std::string bytes) {
    visit({.name = "HTTP: " + name, .bytes = std::move(bytes), .answer = Answer::kRaw});
  };
  const auto refused = [&](const std::string& name, std::string bytes) {
    visit({.name = "HTTP: " + name, .bytes = std::move(bytes)});
  };
  const std::string smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
  // A second request stands behind the first one's body, wherever that may end.
  const auto framed = [&](const std::string& headers, const std::string& body, Answer answer = Answer::kOne) {
    visit({.name = fmt::format("HTTP: framing {} {}", headers.substr(0, 80), body.substr(0, 40)),
           .bytes = "POST /tokenize HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n" + body + smuggled,
           .answer = answer});
  };
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  const std::string no_chunk = "0\r\n\r\n";
  framed("Content-Length: 2\r\n" + chunked, no_chunk);
  framed(chunked + "Content-Length: 2\r\n", no_chunk);
  framed("Content-Length: 2\r\nContent-Length: 3\r\n", "{}");
  framed("Content-Length: 2\r\nContent-Length: 2\r\n", "{}");
  for (const char* length : {"+2", "-1", "0x2", "2 2", "2,3", "2, 2", "", " ", "1e1", "18446744073709551616",
                             "99999999999999999999999", "two", "2;", "\v2"})
    framed(fmt::format("Content-Length: {}\r\n", length), "{}");
  for (const char* coding : {"xchunked", "chunked, identity", "identity", "gzip", "gzip, chunked",
                             "chunked, chunked", "\"chunked\"", "chunked;q=1", ",chunked", ""})
    framed(fmt::format("Transfer-Encoding: {}\r\n", coding), no_chunk);
  framed(chunked + "Transfer-Encoding: identity\r\n", no_chunk);
  framed("Transfer-Encoding : chunked\r\n", no_chunk);
  framed(" " + chunked, no_chunk);
  framed("X: y\r\n " + chunked, no_chunk);
  framed("X: y\n" + chunked, no_chunk);
  framed("X: y\r" + chunked, no_chunk);
  for (const char* chunk : {"-1\r\n", "FFFFFFFFFFFFFFFFF\r\n", "8000000000000000\r\n", "FFFFFFFFFFFFFFFF\r\n",
                            "0x2\r\n{}\r\n0\r\n\r\n", "2\r\n{}0\r\n\r\n", "2\n{}\n0\n\n", "g\r\n", "\r\n",
                            "2\r\n{}\r\n0\r\nX Y\r\n\r\n"})
    framed(chunked, chunk);
  // These are strange and clear.
  framed("Transfer-Encoding: Chunked \r\n", no_chunk, Answer::kRaw);
  framed("Transfer-Encoding: \tchunked\r\n", no_chunk, Answer::kRaw);
  framed(chunked, "2 \r\n{}\r\n0\r\n\r\n", Answer::kRaw);
  framed(chunked, "2;\r\n{}\r\n0\r\n\r\n", Answer::kRaw);
  framed(chunked, "2;" + std::string(200'000, 'e') + "\r\n{}\r\n0\r\n\r\n", Answer::kRaw);
  framed(chunked, "2\r\n{}\r\n0\r\n" + repeated("T: t\r\n", 50'000) + "\r\n", Answer::kRaw);
  const auto head = [&](const std::string& name, const std::string& line,
                        const std::string& headers = "Host: x\r\n") {
    raw(name, line + "\r\n" + headers + "\r\n");
  };
  for (const char* line : {"GET",
                           "GET ",
                           "GET /version",
                           "GET  /version HTTP/1.1",
                           "GET /version HTTP/9.9",
                           "GET /version HTTP/1.",
                           "GET /version HTTP/1.10",
                           "GET /version http/1.1",
                           "/version GET HTTP/1.1",
                           "GET /ver sion HTTP/1.1",
                           "GET \x01 HTTP/1.1",
                           "G\x80T / HTTP/1.1",
                           "GET * HTTP/1.1",
                           "CONNECT x:1 HTTP/1.1",
                           "TRACE / HTTP/1.1",
                           "GET http:// HTTP/1.1",
                           "GET //////version HTTP/1.1",
                           "GET /../../etc/passwd HTTP/1.1",
                           "GET /%00 HTTP/1.1",
                           "GET /v1/models/%2e%2e%2f HTTP/1.1",
                           "PRI * HTTP/2.0",
                           "",
                           "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                           "SSH-2.0-x",
                           "EHLO x",
                           "{\"messages\":[]}"})
    head(fmt::format("line '{}'", line), line);
  for (const std::string& headers : std::vector<std::string>{
           "", "Host: x\r\nHost: y\r\n", "Host x\r\n", ": x\r\n",
           "Host: x\r\nA\x01"
           "B: c\r\n",
           "Host: x\r\nA: b\x01\r\n", std::string("Host: x\r\nA: b\0c\r\n", 17), "Host: x\r\nA: b\rc\r\n",
           "Host: x\r\n\tfolded\r\n", "Host: x\r\nExpect: 200-ok\r\n",
           "Host: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", "Host: x\r\nAuthorization: Bearer\r\n",
           "Host: x\r\nX-Request-Id: a\tb\r\n"})
    head("headers " + headers, "GET /nothing HTTP/1.1", headers);
  refused("a URI of 70 kB", "GET /" + std::string(70'000, 'u') + " HTTP/1.1\r\nHost: x\r\n\r\n");
  refused("a method of 70 kB", std::string(70'000, 'M') + " / HTTP/1.1\r\nHost: x\r\n\r\n");
  refused("a header of 1 MB",
          "GET /version HTTP/1.1\r\nHost: x\r\nA: " + std::string(1 << 20, 'h') + "\r\n\r\n");
  refused("a header's name of 1 MB",
          "GET /version HTTP/1.1\r\nHost: x\r\n" + std::string(1 << 20, 'h') + ": a\r\n\r\n");
  refused("100,000 headers", "GET /version HTTP/1.1\r\nHost: x\r\n" + repeated("A: b\r\n", 100'000) + "\r\n");
  refused("a header that never ends", "GET /version HTTP/1.1\r\nHost: x\r\nA: " + std::string(4 << 20, 'h'));
  refused("a body of 1 TB", "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n");
  refused("a body above the limit",
          "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8388609\r\n\r\n");
  refused("chunks above the limit",
          "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n900000\r\n" +
              std::string(9 << 20, ' '));
  for (const char* path : {"/", "/v1", "/v1/", "/v1/chat", "/v1/chat/completions/x", "/v2/models",
                           "/engines/", "/engines/x/y/v1/models", "/admin", "/.env", "/v1/models/../../x",
                           "/V1/MODELS", "/v1/fine_tuning/jobs", "/v1/embeddings"}) {
    for (const char* method : {"GET", "POST", "PUT", "DELETE", "PATCH"})
      refused(fmt::format("{} {}", method, path),
              fmt::format("{} {} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", method, path));
  }
  std::mt19937 random(11);  // NOLINT(cert-msc51-cpp): the same corpus every time
  for (int i = 0; i < 200; ++i) {
    std::string noise(1 + random() % 600, '\0');
    for (char& c : noise) c = static_cast<char>(random());
    visit({.name = fmt::format("HTTP: noise {}", i), .bytes = noise, .answer = Answer::kNoise});
  }
  const std::string good =
      post_bytes("/tokenize", R"({"prompt":"x","add_special_tokens":"no"})", "X-Y: z\r\n");
  for (int i = 0; i < 300; ++i) {
    std::string bytes = good;
    for (size_t k = 0; k <= random() % 4; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
    visit({.name = fmt::format("HTTP: flipped {}", i), .bytes = bytes, .answer = Answer::kNoise});
  }
}

}  // namespace jewel
