#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"

namespace jewel {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

class Log : public testing::Test {
 protected:
  void SetUp() override { testing::internal::CaptureStderr(); }
  void TearDown() override {
    set_log_json(false);
    set_log_level("info");
  }
  static std::string written() {
    log().flush();
    return testing::internal::GetCapturedStderr();
  }
};

TEST_F(Log, StaysOnOneLineAsText) {
  log().warn("a name of {}", "the\nclient's \x1b[31m\x7f\r own");
  log_event("request",
            {{"path", std::string("/x\ny")}, {"status", int64_t{200}}, {"whole", true}, {"seconds", 0.5}});
  log().debug("not said");
  EXPECT_EQ(written(),
            "warning: a name of the\\nclient's \\x1b[31m\\x7f\\x0d own\n"
            "info: request path=/x\\ny status=200 whole=true seconds=0.5\n");
}

TEST_F(Log, IsJsonWhateverItCarries) {
  set_log_json(true);
  log().error("quote \" backslash \\ line\n tab\t bell\a del\x7f bad \xff\xc0\x80 cut \xe2\x82 good €𝄞 end");
  log_event("request", {{"path", std::string("\"\n\xed\xa0\x80")},
                        {"status", int64_t{-1}},
                        {"whole", false},
                        {"seconds", 1e300 * 1e300}});
  const std::string lines = written();
  EXPECT_THAT(
      lines, HasSubstr(R"("level":"error","message":"quote \" backslash \\ line\u000a tab\u0009 )"
                       R"(bell\u0007 del\u007f bad )"
                       "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD cut \xEF\xBF\xBD\xEF\xBF\xBD good €𝄞 end\"}\n"));
  EXPECT_THAT(lines, HasSubstr(R"("message":"request","path":"\"\u000a)"
                               "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
                               R"(","status":-1,"whole":false,"seconds":null})"));
  EXPECT_THAT(lines, MatchesRegex("\\{\"time\":\"20[0-9-]+T[0-9:]+\\.[0-9]+Z\",(.|\n)*"));
}

TEST_F(Log, ObeysItsLevel) {
  EXPECT_FALSE(set_log_level("loud"));
  EXPECT_TRUE(set_log_level("error"));
  log().warn("no");
  log_event("no", {});
  EXPECT_EQ(written(), "");
}

}  // namespace
}  // namespace jewel
