// A benchmark's result for people and programs: a table for the terminal, the result file that all of Jewel's
// figures share, and a page with plots. Pure functions.
#pragma once

#include <string>

#include "bench/bench.h"
#include "report/html_page.h"
#include "report/result_file.h"

namespace jewel {

// Medians over the runs; plain text, as wide as it must be.
std::string table_text(const BenchResult& result);

// Every figure with its ceiling and the spread of the runs. `details.points` has each run by itself.
ResultFile result_file(const BenchResult& result);

// One self-contained HTML file.
std::string html_text(const BenchResult& result, const ResultFile& file);
// Its plots alone, for a page that has more to say: latency, throughput, energy, roofline.
void add_to_page(HtmlPage& page, const BenchResult& result);

// B's figures over A's for the same requests, pair by pair; empty unless two targets were measured.
struct Comparison {
  std::string what;  // "text:512:128, 1 at once: output tok/s"
  Repeated ratio;
  bool more_is_better = true;
};
std::vector<Comparison> compare(const BenchResult& result);

// One figure of every run of a target at a point; runs in which it was not measured are left out.
using FigureOf = std::function<std::optional<double>(const RunFigures&)>;
std::optional<Repeated> over_runs(const std::vector<RunFigures>& runs, const FigureOf& figure);

// A short name of a point's target: "", or "A" and "B" where two are compared.
std::string letter_of(const BenchResult& result, size_t target);

}  // namespace jewel
