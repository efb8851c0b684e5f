#include "report/result_file.h"

#include <fmt/format.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value_from.hpp>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/threads.h"
#include "checkpoint/safetensors_writer.h"
#include "model/json_reader.h"
#include "model/json_text.h"

namespace jewel {

namespace json = boost::json;

namespace {

bool of_a_meter(std::string_view unit) {
  const std::string_view first = unit.substr(0, unit.find_first_of("/ "));
  return first == "J" || first == "mJ" || first == "kJ" || first == "Wh" || first == "W";
}

// NaN and infinity are no measurements, and JSON has no word for them.
json::value number_or_null(std::optional<double> value) {
  if (!value || !std::isfinite(*value)) return nullptr;
  return *value;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

std::string csv_text(std::string_view text) {
  std::string out = "\"";
  if (!text.empty() && std::string_view("=+-@\t\r").find(text.front()) != std::string_view::npos) out += '\'';
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

std::string csv_number(std::optional<double> value) {
  return value && std::isfinite(*value) ? fmt::format("{}", *value) : "";
}

std::optional<double> number_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  return value->to_number<double>();
}

std::string grouped(double value) {
  std::string text = fmt::format("{:.0f}", value);
  for (auto at = static_cast<ptrdiff_t>(text.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3)
    text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

}  // namespace

const Figure* ResultFile::find(std::string_view name) const {
  const auto found = std::ranges::find(figures, name, &Figure::name);
  return found == figures.end() ? nullptr : &*found;
}

ResultFile begin_result(std::string what) {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return {.what = std::move(what),
          .date = fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday),
          .version = JEWEL_VERSION,
          .machine = describe_machine()};
}

std::string describe_machine() {
  utsname host{};
  uname(&host);
  struct sysinfo memory{};
  sysinfo(&memory);
  const double bytes = static_cast<double>(memory.totalram) * memory.mem_unit;
  return fmt::format("{}, {} of {} cores, {:.1f} GiB, {} {} {}", cpu_name(), usable_cores(),
                     std::max(std::thread::hardware_concurrency(), 1U), bytes / 1073741824.0, host.sysname,
                     host.release, host.machine);
}

json::object as_json(const ResultFile& result) {
  json::array figures;
  for (const Figure& figure : result.figures) {
    JEWEL_CHECK(!figure.value || !of_a_meter(figure.unit) || result.energy_method != "none",
                "figure '{}' has {} {} and nothing measured them", figure.name, *figure.value, figure.unit);
    json::object out = {{"name", figure.name}, {"value", number_or_null(figure.value)},
                        {"unit", figure.unit}, {"ceiling", number_or_null(figure.ceiling)},
                        {"n", figure.n},       {"spread", nullptr}};
    if (figure.spread) {
      out["spread"] = {{"low", number_or_null(figure.spread->low)},
                       {"high", number_or_null(figure.spread->high)},
                       {"what", figure.spread->what}};
    }
    if (!figure.note.empty()) out["note"] = figure.note;
    figures.push_back(std::move(out));
  }
  json::object out = {{"what", result.what},
                      {"date", result.date},
                      {"version", result.version},
                      {"machine", result.machine},
                      {"settings", result.settings},
                      {"ceilings", result.ceilings},
                      {"energy", {{"method", result.energy_method}}},
                      {"figures", std::move(figures)}};
  if (!result.notes.empty()) out["notes"] = json::value_from(result.notes);
  if (!result.details.empty()) out["details"] = result.details;
  return out;
}

Result<ResultFile> result_from_json(const json::object& object, const std::string& where) {
  JsonReader reader(object, where);
  ResultFile result;
  result.what = reader.optional_string("what", "");
  result.date = reader.optional_string("date", "");
  result.version = reader.optional_string("version", "");
  result.machine = reader.optional_string("machine", "");
  if (const json::object* settings = reader.optional_object("settings")) result.settings = *settings;
  if (const json::object* ceilings = reader.optional_object("ceilings")) result.ceilings = *ceilings;
  if (const json::object* details = reader.optional_object("details")) result.details = *details;
  if (const json::object* energy = reader.optional_object("energy"))
    result.energy_method = JsonReader(*energy, where, "energy").optional_string("method", "none");
  if (const json::array* notes = reader.optional_array("notes")) {
    for (const json::value& note : *notes) {
      if (note.is_string()) result.notes.emplace_back(note.get_string());
    }
  }
  const json::array* figures = reader.optional_array("figures");
  if (!reader.failed() && figures == nullptr) reader.fail("figures", "missing, expected an array of figures");
  if (reader.failed()) return reader.error();
  for (size_t i = 0; i < figures->size(); ++i) {
    const std::string at = fmt::format("{}: figures[{}]", where, i);
    if (!(*figures)[i].is_object())
      return invalid(fmt::format("{}: found {}, expected an object", at, describe((*figures)[i])));
    const json::object& in = (*figures)[i].get_object();
    JsonReader fields(in, at);
    Figure figure{.name = fields.optional_string("name", ""),
                  .value = number_at(in, "value"),
                  .unit = fields.optional_string("unit", ""),
                  .ceiling = number_at(in, "ceiling"),
                  .n = fields.optional_int("n", 0, 0, int64_t{1} << 53),
                  .note = fields.optional_string("note", "")};
    const json::value* spread = in.if_contains("spread");
    if (spread != nullptr && spread->is_object()) {
      const json::object& range = spread->get_object();
      const auto low = number_at(range, "low");
      const auto high = number_at(range, "high");
      if (low && high)
        figure.spread = {*low, *high, JsonReader(range, at, "spread").optional_string("what", "")};
    }
    if (fields.failed()) return fields.error();
    result.figures.push_back(std::move(figure));
  }
  return result;
}

std::string as_csv(const ResultFile& result) {
  std::string out = "name,value,unit,ceiling,n,spread_low,spread_high,spread_what,note\r\n";
  for (const Figure& figure : result.figures) {
    const auto spread = [&](double Spread::* end) {
      return figure.spread ? csv_number((*figure.spread).*end) : std::string();
    };
    out += fmt::format("{},{},{},{},{},{},{},{},{}\r\n", csv_text(figure.name), csv_number(figure.value),
                       csv_text(figure.unit), csv_number(figure.ceiling), figure.n, spread(&Spread::low),
                       spread(&Spread::high), csv_text(figure.spread ? figure.spread->what : ""),
                       csv_text(figure.note));
  }
  return out;
}

Result<void> write_result(const ResultFile& result, std::string_view html, const std::string& directory,
                          const std::string& stem) {
  std::error_code trouble;
  std::filesystem::create_directories(directory, trouble);
  if (trouble) return invalid(fmt::format("{}: cannot be made: {}", directory, trouble.message()), "out");
  const std::string path = (std::filesystem::path(directory) / stem).string();
  JEWEL_TRY(write_file(path + ".json", pretty_json(as_json(result))));
  JEWEL_TRY(write_file(path + ".csv", as_csv(result)));
  if (!html.empty()) JEWEL_TRY(write_file(path + ".html", html));
  return {};
}

std::string number_text(double value) {
  if (!std::isfinite(value)) return "–";
  const double size = std::fabs(value);
  if (value == std::round(value) && size < 1e15) return grouped(value);
  if (size >= 1000) return grouped(value);
  if (size >= 100) return fmt::format("{:.1f}", value);
  if (size >= 10) return fmt::format("{:.2f}", value);
  return fmt::format("{:.3g}", value);
}

std::string value_text(const Figure& figure) {
  if (!figure.value || !std::isfinite(*figure.value)) return "not measured";
  return figure.unit.empty() ? number_text(*figure.value)
                             : fmt::format("{} {}", number_text(*figure.value), figure.unit);
}

}  // namespace jewel
