#include "report/html_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace jewel {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(HtmlText, EscapesWhatAModelMayWrite) {
  EXPECT_EQ(html_text("<script>alert('x')</script> & \"y\""),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;y&quot;");
  EXPECT_EQ(html_text(std::string_view("a\0b\x1b[31m\x7f", 9)),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD[31m\xEF\xBF\xBD");
  EXPECT_EQ(html_text("\xff\xfe"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(html_text("Größe 東京\n"), "Größe 東京\n");
}

// Every way into the page is tried with the same hostile text.
TEST(HtmlPage, HostileTextStaysText) {
  const std::string evil = "\"><img src=x onerror=alert(1)></title></style><script>1</script>";
  HtmlPage page(evil, evil);
  page.verdict(false, evil);
  page.headlines({{evil, evil, evil}});
  page.section(evil);
  page.paragraph(evil);
  page.list({evil});
  page.table({{evil}, {evil, true}}, {{evil, evil}});
  page.folded_table(evil, {{evil}}, {{evil}});
  page.plot(line_plot(evil, {.title = evil}, {.title = evil}, {{evil, {{1, 2}, {2, 3}}}, {evil, {{1, 1}}}}));
  page.plot(distribution_plot(evil, {.title = evil}, {{evil, {1, 2, 3}}, {evil, {}}}));
  page.plot(stacked_bars(evil, evil, {evil, evil}, {{evil, {1, 2}}}));
  page.plot(roofline_plot({evil, 1e12, 1e11, {{evil, 2, 1e11}, {evil, 200, 5e11}}}));
  page.plot(interval_plot(evil, evil, {{evil, 0.9, 0.8, 1.0, true}, {evil, std::nullopt}}, 0.8));
  ResultFile result = begin_result(evil);
  result.settings = {{evil, evil}};
  result.ceilings = {{evil, evil}};
  result.notes = {evil};
  result.figures = {{.name = evil, .value = 1, .unit = evil, .spread = Spread{0, 1, evil}, .note = evil}};
  page.figures(result);
  page.method(result);
  const std::string html = page.text();
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("<img")));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(html, HasSubstr("default-src 'none'"));
  EXPECT_EQ(html.find("</title>"), html.rfind("</title>", html.find("<style>")));
}

TEST(HtmlPage, NeedsNothingFromOutside) {
  HtmlPage page("a", "b");
  page.plot(line_plot("p", {.title = "x"}, {.title = "y"}, {{"s", {{0, 1}, {1, 2}}}}));
  const std::string html = page.text();
  for (const char* outside : {"http:", "https:", "src=", "@import", "url("})
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  EXPECT_THAT(html, HasSubstr("prefers-color-scheme:dark"));
  EXPECT_THAT(html, HasSubstr("name=\"viewport\""));
}

TEST(Plots, SayWhenThereIsNothing) {
  for (const Plot& plot :
       {line_plot("p", {.title = "x"}, {.title = "y"}, {{"s", {{kNan, 1}}}}),
        distribution_plot("p", {.title = "x"}, {{"s", {}}}),
        stacked_bars("p", "J", {"prefill"}, {{"bf16", {kNan}}}), roofline_plot({"p", 0, 0, {}}),
        interval_plot("p", "x", {{"a", std::nullopt}}, 0.8)}) {
    EXPECT_THAT(plot.svg, HasSubstr("nothing was measured"));
    EXPECT_EQ(plot.table.size(), 1U) << "a head and no rows";
  }
}

TEST(Plots, NeverDrawWhatIsNoNumber) {
  const double huge = std::numeric_limits<double>::max();
  for (const Plot& plot :
       {line_plot("p", {.title = "x"}, {.title = "y"},
                  {{"s", {{0, 1}, {kNan, 2}, {1, kNan}, {2, INFINITY}, {3, 4}}}}),
        line_plot("p", {.title = "x", .scale = Scale::kLog}, {.title = "y", .scale = Scale::kLog},
                  {{"s", {{0, 1}, {-1, 2}, {1, 0}, {10, 100}}}}),
        line_plot("one point", {.title = "x"}, {.title = "y", .from_zero = true}, {{"s", {{5, 5}}}}),
        line_plot("equal", {.title = "x"}, {.title = "y"}, {{"s", {{0, 0}, {0, 0}}}}),
        line_plot("one decade", {.title = "x", .scale = Scale::kLog}, {.title = "y"},
                  {{"s", {{1, 1}, {1, 2}}}}),
        distribution_plot("p", {.title = "ms", .scale = Scale::kLog}, {{"s", {0, 1, 2, kNan}}}),
        stacked_bars("p", "J", {"a", "b"}, {{"x", {1, kNan}}, {"y", {-1, 2}}}),
        roofline_plot({"p", 1e12, 1e11, {{"a", 0, 1}, {"b", 2, kNan}, {"c", 3, 1e11}}}),
        interval_plot("p", "x", {{"a", 1.0, 1.0, 1.0, true}}, std::nullopt),
        line_plot("huge", {.title = "x"}, {.title = "y"}, {{"s", {{0, -huge / 4}, {1, huge / 4}}}})}) {
    EXPECT_THAT(plot.svg, Not(HasSubstr("nan"))) << plot.title;
    EXPECT_THAT(plot.svg, Not(HasSubstr("inf"))) << plot.title;
  }
}

TEST(Plots, DistributionSaysItsPercentiles) {
  std::vector<double> values;
  for (int i = 1; i <= 101; ++i) values.push_back(i);
  const Plot plot = distribution_plot("latency", {.title = "ms"}, {{"fp8", values}});
  ASSERT_EQ(plot.table.size(), 2U);
  EXPECT_EQ(plot.table[1], (std::vector<std::string>{"fp8", "101", "51", "91", "100", "101"}));
}

TEST(Plots, ManyPointsStaySmall) {
  Series power{"power", {}};
  for (int i = 0; i < 100000; ++i) power.points.emplace_back(i * 0.02, 100 + (i % 7));
  EXPECT_LT(line_plot("power", {.title = "s"}, {.title = "W", .from_zero = true}, {power}).svg.size(),
            20000U);
}

}  // namespace
}  // namespace jewel
