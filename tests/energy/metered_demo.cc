#include "energy/metered_demo.h"

#include <gtest/gtest.h>

#include <thread>

#include "api/engine_parts.h"
#include "base/comes_true.h"

namespace jewel {

using namespace std::chrono_literals;

namespace {

MeteredDemo demo_with(std::shared_ptr<CounterScript> script) {
  EngineOptions options = demo_options();
  options.meter = "none";  // this machine's own
  auto parts = open_parts(kDemo, options);
  EXPECT_TRUE(parts.ok()) << parts.error().message;
  if (script != nullptr) parts->energy = {.counter = std::make_unique<ScriptedCounter>(script), .why = {}};
  parts->meter_options = {.most_wait = 30s, .rest = 50ms};  // a test machine may stop for seconds
  auto engine = make_engine(std::move(*parts), options);
  EXPECT_TRUE(engine.ok()) << engine.error().message;
  return {.script = std::move(script), .engine = std::move(*engine)};
}

}  // namespace

MeteredDemo metered_demo() {
  return demo_with(std::make_shared<CounterScript>());
}

MeteredDemo demo_without_meter() {
  return demo_with(nullptr);
}

EnergyStats settled(Engine& engine) {
  EnergyStats energy;
  EXPECT_TRUE(comes_true(
      [&] {
        const Stats stats = engine.stats();
        energy = stats.energy.value();
        const double booked = energy.image_joules + energy.prefill_joules + energy.decode_joules +
                              energy.idle_joules + energy.unattributed_joules;
        return stats.under_way == 0 && stats.running == 0 && booked > 0.999 * energy.counter_joules;
      },
      std::chrono::seconds(10)))
      << "the books do not close";
  return energy;
}

}  // namespace jewel
