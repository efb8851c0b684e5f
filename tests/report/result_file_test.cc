#include "report/result_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <cmath>
#include <limits>

namespace jewel {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

ResultFile small_result() {
  ResultFile result = begin_result("jewel bench, a test");
  result.settings = {{"requests", 12}};
  result.figures = {{.name = "decode",
                     .value = 45.5,
                     .unit = "tok/s",
                     .ceiling = 60.25,
                     .n = 5,
                     .spread = Spread{44, 46.5, "min to max"}},
                    {.name = "energy of a request", .unit = "J", .note = "no meter"}};
  return result;
}

TEST(ResultFile, SaysWhenWhereAndWhat) {
  const ResultFile result = begin_result("x");
  EXPECT_THAT(result.date, ::testing::MatchesRegex("20[0-9][0-9]-[01][0-9]-[0-3][0-9]"));
  EXPECT_EQ(result.version, JEWEL_VERSION);
  EXPECT_THAT(result.machine, HasSubstr("cores"));
  EXPECT_EQ(result.energy_method, "none");
}

TEST(ResultFile, HasTheAgreedShape) {
  const boost::json::object object = as_json(small_result());
  for (const char* key : {"what", "date", "version", "machine", "settings", "ceilings", "figures"})
    EXPECT_TRUE(object.contains(key)) << key;
  const boost::json::object& first = object.at("figures").as_array().at(0).as_object();
  for (const char* key : {"name", "value", "unit", "ceiling", "n", "spread"})
    EXPECT_TRUE(first.contains(key)) << key;
  EXPECT_EQ(object.at("energy").at("method").as_string(), "none");
  EXPECT_TRUE(object.at("figures").at(1).at("value").is_null()) << "what was not measured has no number";
}

TEST(ResultFile, ComesBackFromItsJson) {
  const ResultFile before = small_result();
  const auto after = result_from_json(as_json(before), "a.json");
  ASSERT_TRUE(after.ok()) << after.error().message;
  EXPECT_EQ(as_json(*after), as_json(before));
  ASSERT_NE(after->find("decode"), nullptr);
  EXPECT_EQ(after->find("decode")->spread->high, 46.5);
  EXPECT_EQ(after->find("nothing"), nullptr);
}

TEST(ResultFile, WrongJsonIsNamed) {
  const auto none = result_from_json({{"what", "x"}}, "a.json");
  ASSERT_FALSE(none.ok());
  EXPECT_THAT(none.error().message, HasSubstr("a.json: figures"));
  const auto number = result_from_json({{"figures", boost::json::array{3}}}, "a.json");
  ASSERT_FALSE(number.ok());
  EXPECT_THAT(number.error().message, HasSubstr("figures[0]"));
}

TEST(ResultFile, NanIsNoMeasurement) {
  ResultFile result = small_result();
  result.figures[0].value = std::numeric_limits<double>::quiet_NaN();
  result.figures[0].ceiling = std::numeric_limits<double>::infinity();
  const auto first = as_json(result).at("figures").at(0);
  EXPECT_TRUE(first.at("value").is_null());
  EXPECT_TRUE(first.at("ceiling").is_null());
  EXPECT_EQ(value_text(result.figures[0]), "not measured");
}

TEST(ResultFileDeathTest, JoulesWithoutAMeterAreRefused) {
  for (const char* unit : {"J", "J/token", "J per request", "Wh", "W"}) {
    ResultFile result = small_result();
    result.figures[1].value = 3;
    result.figures[1].unit = unit;
    EXPECT_DEATH((void)as_json(result), "nothing measured them") << unit;
    result.energy_method = "nvml";
    EXPECT_EQ(as_json(result).at("figures").at(1).at("value").as_double(), 3);
  }
}

TEST(Csv, QuotesAndDisarmsFormulas) {
  ResultFile result = small_result();
  result.figures[0].name = "=HYPERLINK(\"http://x\")";
  result.figures[0].note = "a \"quoted\", note";
  const std::string csv = as_csv(result);
  EXPECT_THAT(csv, StartsWith("name,value,unit,ceiling,n,spread_low"));
  EXPECT_THAT(csv, HasSubstr("\"'=HYPERLINK(\"\"http://x\"\")\",45.5,\"tok/s\",60.25,5,44,46.5,\"min to "
                             "max\",\"a \"\"quoted\"\", note\"\r\n"));
  EXPECT_THAT(csv, HasSubstr("\"energy of a request\",,\"J\",,0,,,\"\",\"no meter\"\r\n"));
}

TEST(NumberText, IsForPeople) {
  EXPECT_EQ(number_text(0), "0");
  EXPECT_EQ(number_text(1234567), "1,234,567");
  EXPECT_EQ(number_text(-1234), "-1,234");
  EXPECT_EQ(number_text(-123), "-123");
  EXPECT_EQ(number_text(1234.5), "1,234");
  EXPECT_EQ(number_text(123.45), "123.5");
  EXPECT_EQ(number_text(12.345), "12.35");
  EXPECT_EQ(number_text(0.0012345), "0.00123");
}

}  // namespace
}  // namespace jewel
