#include "model/json_text.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

namespace jewel {
namespace {

const boost::json::value kValue =
    boost::json::parse(R"({"a": 1e-6, "b": [1, 2.5, 3.0], "c": {}, "d": {"e": null, "f": "x\n"}, "g": []})");

TEST(JsonText, Line) {
  EXPECT_EQ(json_line(kValue), R"({"a":1e-06,"b":[1,2.5,3.0],"c":{},"d":{"e":null,"f":"x\n"},"g":[]})");
}

TEST(JsonText, PrettyReadsBackAsTheSame) {
  const std::string text = pretty_json(kValue);
  EXPECT_EQ(boost::json::parse(text), kValue);
  EXPECT_TRUE(text.starts_with("{\n  \"a\": 1e-06,\n  \"b\": [\n    1,\n"));
  EXPECT_TRUE(text.ends_with("\n}\n"));
}

}  // namespace
}  // namespace jewel
