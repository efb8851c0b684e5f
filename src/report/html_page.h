// HtmlPage: a report as one HTML file that needs nothing else: styles and plots are inline, there are no
// scripts, and its Content-Security-Policy forbids any, so that text from a model stays text. Light or dark
// as the reader's system, from 320 px upwards.
//
//   HtmlPage page("jewel eval", "BF16 against FP8");
//   page.verdict(true, "Every category recovers at least 80 %");
//   page.section("Quality");
//   page.plot(interval_plot(…));
//   page.table({{"category"}, {"recovery", true}}, {{"shapes", "0.97"}});
//   write_file("eval.html", page.text());
//
// Every string given is plain text and is escaped here. One thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "report/result_file.h"
#include "report/svg_plot.h"

namespace jewel {

struct TableColumn {
  std::string title;
  bool number = false;  // right-aligned
};
using TableRow = std::vector<std::string>;

class HtmlPage {
 public:
  HtmlPage(std::string_view title, std::string_view subtitle);

  void verdict(bool good, std::string_view text);
  // A few figures that answer the reader's first question.
  struct Headline {
    std::string label, value, detail;
  };
  void headlines(const std::vector<Headline>& headlines);
  void section(std::string_view title);
  void paragraph(std::string_view text);
  void list(const std::vector<std::string>& items);
  void table(const std::vector<TableColumn>& columns, const std::vector<TableRow>& rows);
  // The same, folded away behind its summary.
  void folded_table(std::string_view summary, const std::vector<TableColumn>& columns,
                    const std::vector<TableRow>& rows);
  void plot(const Plot& plot);  // plots that follow each other stand side by side where there is room

  // All figures, how they were measured (machine, settings, ceilings, notes): the end of every report.
  void figures(const ResultFile& result);
  void method(const ResultFile& result);

  std::string text() const;  // the file

 private:
  void close_plots();

  std::string title_;
  std::string body_;
  bool in_plots_ = false;
};

// & < > " ' as entities; control characters other than white space as U+FFFD; bytes that are no UTF-8 too.
std::string html_text(std::string_view text);

}  // namespace jewel
