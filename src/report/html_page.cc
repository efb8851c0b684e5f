#include "report/html_page.h"

#include <fmt/format.h>

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "model/json_text.h"
#include "text/utf8.h"

namespace jewel {

namespace json = boost::json;

namespace {

// Colours of series: told apart in light and dark and by the colour-blind (blue, orange, green, purple,
// yellow, grey of different lightness); lines differ by dashes too.
constexpr std::string_view kStyle = R"css(
:root{color-scheme:light dark;--paper:#fff;--card:#f6f7f9;--ink:#16191d;--soft:#59636e;--rule:#d8dde3;--good:#17783a;--bad:#b3261e;
--c0:#2f6fd0;--c1:#d9720b;--c2:#178a63;--c3:#8250c4;--c4:#b38a00;--c5:#7a828c}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1d2127;--ink:#e8eaed;--soft:#a2abb6;--rule:#363d46;--good:#5fce86;--bad:#ff8f85;
--c0:#78aaf5;--c1:#f5a04c;--c2:#4fc79c;--c3:#bb97f0;--c4:#e0bf45;--c5:#9aa3ad}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;padding:20px 16px 48px;max-width:1080px;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 4px}
h2{font-size:1.2rem;margin:36px 0 10px;padding-top:12px;border-top:1px solid var(--rule)}
h3{font-size:.95rem;margin:0 0 6px}
p{margin:8px 0;max-width:70ch}
.sub,figcaption,.soft{color:var(--soft)}
.sub{margin:0 0 16px}
.verdict{margin:16px 0;padding:12px 14px;border-left:5px solid;border-radius:4px;background:var(--card);font-weight:600;max-width:none}
.verdict.good{border-color:var(--good)}.verdict.bad{border-color:var(--bad)}
.verdict b{margin-right:.5em}.good b{color:var(--good)}.bad b{color:var(--bad)}
.heads{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,150px),1fr));gap:10px;margin:16px 0}
.heads div{background:var(--card);border-radius:6px;padding:10px 12px}
.heads dt{font-size:.82rem;color:var(--soft)}.heads dd{margin:0;font-size:1.35rem;font-weight:650;line-height:1.25;font-variant-numeric:tabular-nums}
.heads dd+dd{font-size:.82rem;font-weight:400;color:var(--soft)}
.heads,.heads div{margin-block:0}.heads{margin:16px 0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px;margin:12px 0;align-items:start}
figure{margin:0;background:var(--card);border-radius:6px;padding:12px;min-width:0;max-width:640px}
svg{display:block;width:100%;height:auto}
svg text{font-size:13px;fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
.mid{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}
.gate{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:5 4}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.again{stroke-width:5;stroke-opacity:.45}.roof{stroke:var(--soft)}
.span{stroke-width:3;stroke-linecap:round}
.span.good{stroke:var(--good)}.span.bad{stroke:var(--bad)}
.mark.good{fill:var(--good)}.mark.bad{fill:var(--paper);stroke:var(--bad);stroke-width:3}
.l0{stroke:var(--c0)}.l1{stroke:var(--c1);stroke-dasharray:7 3}.l2{stroke:var(--c2);stroke-dasharray:2 3}.l3{stroke:var(--c3);stroke-dasharray:9 3 2 3}.l4{stroke:var(--c4);stroke-dasharray:4 2}.l5{stroke:var(--c5);stroke-dasharray:1 2}
.f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}.f3{fill:var(--c3)}.f4{fill:var(--c4)}.f5{fill:var(--c5)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 14px;margin:0 0 6px;padding:0;font-size:.85rem}
.legend svg{display:inline-block;width:22px;height:10px;margin-right:6px}
.scroll{overflow-x:auto;margin:10px 0;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;width:100%}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--rule);vertical-align:top;overflow-wrap:normal}
td{white-space:pre-wrap}
td.long{overflow-wrap:anywhere;min-width:12em}
th{color:var(--soft);font-weight:600}
.num{text-align:right;white-space:nowrap}
details{margin:8px 0}summary{cursor:pointer;color:var(--soft);font-size:.9rem;padding:4px 0}
ul{padding-left:1.2em;max-width:70ch}
@media(max-width:600px){.stack thead{display:none}.stack,.stack tbody,.stack tr,.stack td{display:block}
.stack tr{padding:8px 0;border-bottom:1px solid var(--rule)}.stack td{border:0;padding:1px 4px;text-align:left;white-space:pre-wrap;min-width:0}
.stack td:first-child{font-weight:600}.stack td:empty{display:none}.stack td[data-h]::before{content:attr(data-h) ": ";color:var(--soft)}}
@media print{body{max-width:none}details{display:none}}
)css";

constexpr size_t kLongCell = 28;  // characters from which a cell may break anywhere
constexpr size_t kWideTable = 4;  // columns from which a table is too wide for a phone

std::string legend(const std::vector<std::string>& names) {
  if (names.size() < 2)
    return names.empty() ? "" : fmt::format("<p class=\"soft\">{}</p>", html_text(names[0]));
  std::string out = "<ul class=\"legend\">";
  for (size_t i = 0; i < names.size(); ++i) {
    out += fmt::format(
        "<li><svg viewBox=\"0 0 22 10\" aria-hidden=\"true\"><rect class=\"f{0}\" x=\"1\" y=\"1\" "
        "width=\"8\" height=\"8\" rx=\"2\"/>"
        "<line class=\"line l{0}{2}\" x1=\"9\" y1=\"5\" x2=\"22\" y2=\"5\"/></svg>{1}</li>",
        i % 6, html_text(names[i]), i >= 6 ? " again" : "");
  }
  return out + "</ul>";
}

// On a phone a wide table's rows are told one under the other, each cell behind its column's title.
std::string table_html(const std::vector<TableColumn>& columns, const std::vector<TableRow>& rows) {
  const bool wide = columns.size() >= kWideTable;
  std::string out = fmt::format("<div class=\"scroll\" tabindex=\"0\"><table{}><thead><tr>",
                                wide ? " class=\"stack\"" : "");
  for (const TableColumn& column : columns)
    out += fmt::format("<th{}>{}</th>", column.number ? " class=\"num\"" : "", html_text(column.title));
  out += "</tr></thead><tbody>";
  for (const TableRow& row : rows) {
    out += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) {
      const bool number = i < columns.size() && columns[i].number;
      const bool titled = wide && i > 0 && i < columns.size() && !columns[i].title.empty() && !row[i].empty();
      out += fmt::format("<td{}{}>{}</td>",
                         number                      ? " class=\"num\""
                         : row[i].size() > kLongCell ? " class=\"long\""
                                                     : "",
                         titled ? fmt::format(" data-h=\"{}\"", html_text(columns[i].title)) : "",
                         html_text(row[i]));
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

// A setting for people: an object's entries one a line, what stands inside of one further in.
std::string value_of(const json::value& value, const std::string& indent = "") {
  if (value.is_string()) return std::string(value.get_string());
  if (value.is_null()) return "not measured";
  if (value.is_double()) return number_text(value.get_double());
  std::string out;
  if (value.is_object()) {
    for (const auto& [key, part] : value.get_object()) {
      const bool nested = part.is_object() || part.is_array();
      out +=
          fmt::format("{}{}{}:{}{}", out.empty() ? "" : "\n", out.empty() ? "" : indent, std::string(key),
                      nested && part.is_object() ? "\n" + indent + "  " : " ", value_of(part, indent + "  "));
    }
    return out;
  }
  if (!value.is_array()) return json_line(value);
  for (const json::value& part : value.get_array()) {
    if (part.is_object())
      out += fmt::format("\n{}– {}", indent, value_of(part, indent + "  "));
    else
      out += (out.empty() ? "" : ", ") + value_of(part, indent + "  ");
  }
  return out;
}

}  // namespace

std::string html_text(std::string_view text) {
  std::string out;
  for (const char c : replace_invalid_utf8(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default: {
        const auto byte = static_cast<unsigned char>(c);
        if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7F) {
          out += kReplacementCharacter;
        } else {
          out += c;
        }
      }
    }
  }
  return out;
}

HtmlPage::HtmlPage(std::string_view title, std::string_view subtitle) : title_(title) {
  body_ = fmt::format("<h1>{}</h1>\n<p class=\"sub\">{}</p>\n", html_text(title), html_text(subtitle));
}

void HtmlPage::verdict(bool good, std::string_view text) {
  close_plots();
  body_ += fmt::format("<p class=\"verdict {}\"><b>{}</b>{}</p>\n", good ? "good" : "bad",
                       good ? "✓ passed" : "✗ failed", html_text(text));
}

void HtmlPage::headlines(const std::vector<Headline>& headlines) {
  close_plots();
  body_ += "<dl class=\"heads\">";
  for (const Headline& one : headlines)
    body_ += fmt::format("<div><dt>{}</dt><dd>{}</dd><dd>{}</dd></div>", html_text(one.label),
                         html_text(one.value), html_text(one.detail));
  body_ += "</dl>\n";
}

void HtmlPage::section(std::string_view title) {
  close_plots();
  body_ += fmt::format("<h2>{}</h2>\n", html_text(title));
}

void HtmlPage::paragraph(std::string_view text) {
  close_plots();
  body_ += fmt::format("<p>{}</p>\n", html_text(text));
}

void HtmlPage::list(const std::vector<std::string>& items) {
  close_plots();
  if (items.empty()) return;
  body_ += "<ul>";
  for (const std::string& item : items) body_ += fmt::format("<li>{}</li>", html_text(item));
  body_ += "</ul>\n";
}

void HtmlPage::table(const std::vector<TableColumn>& columns, const std::vector<TableRow>& rows) {
  close_plots();
  body_ += table_html(columns, rows);
}

void HtmlPage::folded_table(std::string_view summary, const std::vector<TableColumn>& columns,
                            const std::vector<TableRow>& rows) {
  close_plots();
  body_ += fmt::format("<details><summary>{}</summary>{}</details>\n", html_text(summary),
                       table_html(columns, rows));
}

void HtmlPage::plot(const Plot& plot) {
  if (!in_plots_) body_ += "<div class=\"plots\">\n";
  in_plots_ = true;
  body_ += fmt::format("<figure><h3>{}</h3>{}{}", html_text(plot.title), legend(plot.legend), plot.svg);
  if (plot.table.size() > 1) {
    std::vector<TableColumn> columns;
    columns.reserve(plot.table[0].size());
    for (size_t i = 0; i < plot.table[0].size(); ++i) columns.push_back({plot.table[0][i], i > 0});
    body_ += fmt::format("<details><summary>Data</summary>{}</details>",
                         table_html(columns, {plot.table.begin() + 1, plot.table.end()}));
  }
  body_ += "</figure>\n";
}

void HtmlPage::figures(const ResultFile& result) {
  std::vector<TableRow> rows;
  rows.reserve(result.figures.size());
  for (const Figure& figure : result.figures) {
    rows.push_back({figure.name, figure.value ? number_text(*figure.value) : "not measured", figure.unit,
                    figure.ceiling ? number_text(*figure.ceiling) : "",
                    figure.n > 0 ? number_text(static_cast<double>(figure.n)) : "",
                    figure.spread ? fmt::format("{} to {} ({})", number_text(figure.spread->low),
                                                number_text(figure.spread->high), figure.spread->what)
                                  : "",
                    figure.note});
  }
  table({{"figure"}, {"value", true}, {"unit"}, {"ceiling", true}, {"n", true}, {"spread"}, {"note"}}, rows);
}

void HtmlPage::method(const ResultFile& result) {
  section("How it was measured");
  std::vector<TableRow> rows = {
      {"machine", result.machine},
      {"date", result.date},
      {"Jewel", result.version},
      {"joules", result.energy_method == "none" ? "none: no meter was found, and none are estimated"
                                                : result.energy_method}};
  for (const auto& [key, value] : result.settings) rows.push_back({std::string(key), value_of(value)});
  for (const auto& [key, value] : result.ceilings)
    rows.push_back({"ceiling: " + std::string(key), value_of(value)});
  table({{"what"}, {"value"}}, rows);
  list(result.notes);
}

void HtmlPage::close_plots() {
  if (in_plots_) body_ += "</div>\n";
  in_plots_ = false;
}

std::string HtmlPage::text() const {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "img-src data:\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" "
      "content=\"light dark\">\n"
      "<link rel=\"icon\" "
      "href=\"data:,\">\n<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n{}{}</body>\n</html>\n",
      html_text(title_), kStyle, body_, in_plots_ ? "</div>\n" : "");
}

}  // namespace jewel
