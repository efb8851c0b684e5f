#include "energy/rapl_counter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

namespace jewel {
namespace {

namespace fs = std::filesystem;

constexpr double kJoulesPerMicrojoule = 1e-6;

// The first line of a small file; nullopt: it cannot be read, and errno says why.
std::optional<std::string> first_line(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return std::nullopt;
  char text[128];
  const bool read = std::fgets(text, sizeof(text), file) != nullptr;
  const int error = errno;
  std::fclose(file);
  errno = error;
  if (!read) return std::nullopt;
  std::string line(text);
  while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
  return line;
}

std::optional<uint64_t> read_number(const std::string& path) {
  const auto line = first_line(path);
  if (!line) return std::nullopt;
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(line->data(), line->data() + line->size(), number);
  if (error != std::errc() || end != line->data() + line->size()) {
    errno = EINVAL;
    return std::nullopt;
  }
  return number;
}

struct Domain {
  std::string name;  // "package-0"
  std::string energy_file;
  RunningTotal total;
  uint64_t microjoules = 0;
};

class RaplCounter final : public EnergyCounter {
 public:
  explicit RaplCounter(std::vector<Domain> domains) : domains_(std::move(domains)) {}

  std::string method() const override { return "rapl"; }
  std::string device() const override {
    std::string names;
    for (const Domain& domain : domains_) names += (names.empty() ? "" : ", ") + domain.name;
    return names;
  }

  // All of them or none: a sum without one would stand still there and jump later.
  std::optional<MeterReading> read() override {
    std::vector<uint64_t> values;
    for (const Domain& domain : domains_) {
      const auto value = read_number(domain.energy_file);
      if (!value) return std::nullopt;
      values.push_back(*value);
    }
    MeterReading reading{.at = MeterReading::Clock::now()};
    for (size_t i = 0; i < domains_.size(); ++i)
      reading.joules += static_cast<double>(domains_[i].total.add(values[i])) * kJoulesPerMicrojoule;
    return reading;
  }

 private:
  std::vector<Domain> domains_;
};

std::string unreadable(const std::string& file) {
  const int error = errno;
  std::string why = fmt::format("RAPL: {} cannot be read ({})", file, std::strerror(error));
  if (error == EACCES || error == EPERM) why += "; it is root's, unless somebody with its rights opens it";
  return why;
}

}  // namespace

FoundCounter find_rapl_counter(const std::string& powercap) {
  std::error_code error;
  std::vector<Domain> domains;
  for (const fs::directory_entry& entry : fs::directory_iterator(powercap, error)) {
    const std::string path = entry.path().string();
    const auto name = first_line(path + "/name");
    if (!name || !name->starts_with("package-")) continue;
    Domain domain{.name = *name, .energy_file = path + "/energy_uj"};
    if (!read_number(domain.energy_file)) return {.counter = nullptr, .why = unreadable(domain.energy_file)};
    domain.total = RunningTotal(read_number(path + "/max_energy_range_uj").value_or(0));
    domains.push_back(std::move(domain));
  }
  if (domains.empty()) {
    return {.counter = nullptr,
            .why = fmt::format("RAPL: {} shows no package; the processor, the kernel or a container hides it",
                               powercap)};
  }
  std::ranges::sort(domains, {}, &Domain::name);
  return {.counter = std::make_unique<RaplCounter>(std::move(domains)), .why = {}};
}

}  // namespace jewel
