// The demo model with a scripted meter: ticks of 10 ms at 100 W.
#pragma once

#include <memory>

#include "api/answers.h"
#include "energy/scripted_counter.h"

namespace jewel {

struct MeteredDemo {
  std::shared_ptr<CounterScript> script;  // nullptr: no meter
  std::unique_ptr<Engine> engine;
};

MeteredDemo metered_demo();
MeteredDemo demo_without_meter();

// Waits until nothing is under way and the books are closed over all but the last ticks.
EnergyStats settled(Engine& engine);

}  // namespace jewel
