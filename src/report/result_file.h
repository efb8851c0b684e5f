// ResultFile: what a measurement found, in the one format of all of Jewel's figures:
//
//   {what, date, version, machine, settings, ceilings, energy: {method}, figures: [{name, value, unit,
//   ceiling, n,
//    spread, note}], notes, details}
//
// A figure that was not measured has no value (JSON null) and says why in `note`; nothing is estimated to
// fill a gap. Joules and watts need a meter: while `energy_method` is "none", a figure in J, Wh or W must
// have no value (checked when the file is written). `details` is the command's own (a list of tasks, of
// requests).
//
// Plain data; one thread at a time.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace jewel {

// Where repeated measurements or an interval lay.
struct Spread {
  double low = 0;
  double high = 0;
  std::string what;  // "min to max of 5 runs", "95 % bootstrap"
};

struct Figure {
  std::string name;
  std::optional<double> value;
  std::string unit;
  std::optional<double> ceiling;  // in the same unit: what the machine could do, measured in the same run
  int64_t n = 0;                  // measurements behind the value
  std::optional<Spread> spread;
  std::string note;
};

struct ResultFile {
  std::string what;     // the command and its subject, one line
  std::string date;     // of the start, UTC: 2026-11-24
  std::string version;  // Jewel's
  std::string machine;
  boost::json::object settings;
  boost::json::object ceilings;
  std::string energy_method = "none";  // "nvml", "rapl", …
  std::vector<Figure> figures;
  std::vector<std::string> notes;  // what a reader must know to judge the figures
  boost::json::object details;

  const Figure* find(std::string_view name) const;  // nullptr when there is none
};

// Date, version and machine filled in.
ResultFile begin_result(std::string what);

// "AMD EPYC 9R14, 2 of 4 cores, 15.6 GiB, Linux 6.1.0 x86_64"
std::string describe_machine();

boost::json::object as_json(const ResultFile& result);
Result<ResultFile> result_from_json(const boost::json::object& object, const std::string& where);

// One line a figure: name,value,unit,ceiling,n,spread_low,spread_high,spread_what,note (RFC 4180). A text
// that a spreadsheet would take for a formula gets an apostrophe before it.
std::string as_csv(const ResultFile& result);

// Writes <directory>/<stem>.json, .csv and, when `html` is not empty, .html; makes the directory.
Result<void> write_result(const ResultFile& result, std::string_view html, const std::string& directory,
                          const std::string& stem);

// A number for people: "0.00123", "12.3", "1,234,567".
std::string number_text(double value);
// "12.3 ms", or "not measured" for a figure without a value.
std::string value_text(const Figure& figure);

}  // namespace jewel
