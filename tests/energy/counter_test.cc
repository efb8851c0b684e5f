// Counters as their sources show them: NVML by a stand-in for the driver's library, RAPL by files.
#include "energy/counter.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "energy/nvml_counter.h"
#include "energy/rapl_counter.h"

namespace jewel {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TEST(RunningTotal, OnlyGrows) {
  RunningTotal total;
  EXPECT_EQ(total.add(5000), 0u) << "what was drawn before is not ours";
  EXPECT_EQ(total.add(5300), 300u);
  EXPECT_EQ(total.add(5300), 300u);
  EXPECT_EQ(total.add(40), 300u) << "a reset: nobody knows what lies between";
  EXPECT_EQ(total.add(100), 360u);
}

TEST(RunningTotal, WrapsWhereItsRangeIsKnown) {
  RunningTotal total(1000);
  total.add(900);
  EXPECT_EQ(total.add(950), 50u);
  EXPECT_EQ(total.add(30), 130u) << "50 to the end, 30 from the beginning";
  EXPECT_EQ(total.add(20), 130u) << "a step back is no way around";
}

class FakeDriver : public testing::Test {
 protected:
  FakeDriver() : library_(::dlopen(JEWEL_FAKE_NVML, RTLD_NOW)) {
    set_ = reinterpret_cast<void (*)(unsigned long long, int)>(::dlsym(library_, "fake_nvml_set"));
    open_ = reinterpret_cast<int (*)()>(::dlsym(library_, "fake_nvml_open"));
    set_(0, 0);
  }
  ~FakeDriver() override { ::dlclose(library_); }
  static NvmlChoice choice(int index = 0) {
    return {.cuda_index = index, .nvml = JEWEL_FAKE_NVML, .cuda_driver = "no such driver"};
  }

  void* library_;
  void (*set_)(unsigned long long, int);
  int (*open_)();
};

TEST_F(FakeDriver, CountsJoulesOfMillijoules) {
  set_(1'000'000, 0);
  FoundCounter found = find_nvml_counter(choice());
  ASSERT_NE(found.counter, nullptr) << found.why;
  EXPECT_EQ(found.counter->method(), "nvml");
  EXPECT_EQ(found.counter->device(), "Fake L4");
  EXPECT_EQ(found.counter->read()->joules, 0);
  set_(1'012'345, 0);
  auto reading = found.counter->read();
  ASSERT_TRUE(reading.has_value());
  EXPECT_DOUBLE_EQ(reading->joules, 12.345);
  EXPECT_FALSE(reading->celsius.has_value());
  found.counter->read_conditions(*reading);
  EXPECT_EQ(reading->celsius, 41);
  EXPECT_EQ(reading->sm_mhz, 1980);
  EXPECT_EQ(reading->memory_mhz, 6251);
}

TEST_F(FakeDriver, FailedReadsAndResetsGiveNothingNegative) {
  set_(500, 0);
  FoundCounter found = find_nvml_counter(choice());
  found.counter->read();
  set_(900, 0);
  EXPECT_DOUBLE_EQ(found.counter->read()->joules, 0.4);
  set_(900, 15);
  EXPECT_FALSE(found.counter->read().has_value());
  set_(100, 0);
  EXPECT_DOUBLE_EQ(found.counter->read()->joules, 0.4) << "the driver was loaded again";
  set_(350, 0);
  EXPECT_DOUBLE_EQ(found.counter->read()->joules, 0.65);
}

TEST_F(FakeDriver, SaysWhyThereIsNone) {
  set_(0, 3);
  EXPECT_THAT(find_nvml_counter(choice()).why, HasSubstr("Not Supported"));
  set_(0, 0);
  EXPECT_THAT(find_nvml_counter(choice(1)).why, HasSubstr("GPU 1: Invalid Argument"));
  EXPECT_EQ(open_(), 0) << "what was begun is ended";
  const FoundCounter missing = find_nvml_counter({.nvml = "libno-such-driver.so.1"});
  EXPECT_EQ(missing.counter, nullptr);
  EXPECT_THAT(missing.why, HasSubstr("comes with the driver"));
}

TEST_F(FakeDriver, IsGivenBack) {
  {
    const FoundCounter found = find_nvml_counter(choice());
    EXPECT_EQ(open_(), 1);
  }
  EXPECT_EQ(open_(), 0);
}

class Powercap : public testing::Test {
 protected:
  Powercap() : root_(fs::temp_directory_path() / fmt::format("jewel-powercap-{}", ::getpid())) {
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  ~Powercap() override { fs::remove_all(root_); }

  void domain(const std::string& directory, const std::string& name, uint64_t microjoules, uint64_t range) {
    fs::create_directories(root_ / directory);
    std::ofstream(root_ / directory / "name") << name << "\n";
    std::ofstream(root_ / directory / "energy_uj") << microjoules << "\n";
    std::ofstream(root_ / directory / "max_energy_range_uj") << range << "\n";
  }
  FoundCounter find() const { return find_rapl_counter(root_.string()); }

  fs::path root_;
};

TEST_F(Powercap, AddsPackagesAndNothingInside) {
  domain("intel-rapl:0", "package-0", 999'000'000, 1'000'000'000);
  domain("intel-rapl:1", "package-1", 5'000'000, 1'000'000'000);
  domain("intel-rapl:0:0", "core", 7, 1'000'000'000);
  domain("intel-rapl:2", "psys", 7, 1'000'000'000);
  const FoundCounter found = find();
  ASSERT_NE(found.counter, nullptr) << found.why;
  EXPECT_EQ(found.counter->method(), "rapl");
  EXPECT_EQ(found.counter->device(), "package-0, package-1");
  EXPECT_EQ(found.counter->read()->joules, 0);
  domain("intel-rapl:0", "package-0", 2'000'000, 1'000'000'000);  // wrapped: 1 J and 2 J
  domain("intel-rapl:1", "package-1", 6'500'000, 1'000'000'000);
  EXPECT_DOUBLE_EQ(found.counter->read()->joules, 4.5);
}

TEST_F(Powercap, AFileThatGoesAwayIsAFailedReading) {
  domain("intel-rapl:0", "package-0", 10, 1'000'000'000);
  domain("intel-rapl:1", "package-1", 10, 1'000'000'000);
  const FoundCounter found = find();
  found.counter->read();
  domain("intel-rapl:0", "package-0", 1'000'010, 1'000'000'000);
  fs::remove(root_ / "intel-rapl:1" / "energy_uj");
  EXPECT_FALSE(found.counter->read().has_value());
  domain("intel-rapl:1", "package-1", 10, 1'000'000'000);
  EXPECT_DOUBLE_EQ(found.counter->read()->joules, 1.0) << "nothing is lost by it";
}

TEST_F(Powercap, SaysWhyThereIsNone) {
  EXPECT_THAT(find().why, HasSubstr("shows no package"));
  domain("intel-rapl:0", "package-0", 10, 1'000'000'000);
  fs::remove(root_ / "intel-rapl:0" / "energy_uj");
  EXPECT_THAT(find().why, HasSubstr("energy_uj cannot be read"));
  EXPECT_THAT(find_rapl_counter("/no/such/directory").why, HasSubstr("shows no package"));
}

TEST(FindCounter, ObeysTheWish) {
  EXPECT_EQ(find_counter({.which = "none"}).counter, nullptr);
  EXPECT_EQ(find_counter({.which = "none"}).why, "--meter none");
  EXPECT_THAT(find_counter({.which = "watts"}).why, HasSubstr("expected auto, none, nvml or rapl"));
}

}  // namespace
}  // namespace jewel
