// EnergyMeter: the thread that reads a device's counter, and the engine's way to the joules of a request.
//
// The engine's thread only notes what a step had in it (step_watch.h): a lock that nobody holds for longer
// than a swap, and some bytes a row. Everything else happens on the meter's thread and on those that ask.
// While there is work every tick of the counter is read, or one reading in 20 ms; while there is none, one in
// ten seconds, because a read may take milliseconds of CPU time (tick_follower.h).
//
// close() gives a request's joules at once, as the books have them (energy_books.h), with one exception:
// until the first work was measured it waits for a tick, at most EnergyMeterOptions::most_wait, and calls
// back from the meter's thread. Tokens never wait. No figure is better than a made-up one: then there is
// none.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "energy/counter.h"
#include "energy/energy_books.h"
#include "energy/step_watch.h"
#include "energy/tick_follower.h"

namespace jewel {

struct EnergyMeterOptions {
  std::chrono::milliseconds most_wait{150};
  std::chrono::milliseconds rest{10000};  // between readings while nothing is computed
};

class EnergyMeter final : public StepWatch {
 public:
  explicit EnergyMeter(std::unique_ptr<EnergyCounter> counter, EnergyMeterOptions options = {});
  ~EnergyMeter() override;

  std::string method() const { return counter_->method(); }
  std::string device() const { return counter_->device(); }

  // The engine's thread.
  void work_begins() override;
  void step_done(std::span<const RowWork> rows) override;
  void work_ends() override;

  using Answer = std::function<void(std::optional<RequestJoules>)>;
  // The sequence has ended, but for rows in flight. True: `joules` is the answer. False: `later` gets it,
  // from another thread. Any thread.
  bool close(uint64_t sequence, int rows_in_flight, std::optional<RequestJoules>& joules, Answer later);

  // Whoever waits is answered, and nobody waits from now on. Any thread.
  void stop_waiting();

  struct Totals {
    EnergyTotals joules;
    double tick_s = 0;  // of the counter; 0: not known yet
  };
  Totals totals();

 private:
  using Clock = MeterReading::Clock;
  struct Event {
    enum class What : uint8_t { kBegin, kStep, kEnd };
    What what;
    Clock::time_point at;
    size_t n_rows;
  };
  struct Waiting {
    uint64_t sequence;
    int rows_in_flight;
    Clock::time_point until;
    Answer answer;
  };
  struct Answered {
    Answer answer;
    std::optional<RequestJoules> joules;
  };

  void note(Event::What what, std::span<const RowWork> rows);
  void loop();
  void read_counter();
  Clock::time_point next_reading();
  void wake();
  void take_notes();                                                  // books_mutex_ held
  std::optional<Answered> try_close(Waiting& waiting, bool give_up);  // books_mutex_ held
  void answer_waiting(Clock::time_point now);

  const std::unique_ptr<EnergyCounter> counter_;
  const EnergyMeterOptions options_;

  std::mutex notes_mutex_;
  std::vector<Event> events_;
  std::vector<RowWork> rows_;

  std::mutex books_mutex_;  // taken before notes_mutex_
  EnergyBooks books_;
  TickFollower follower_;
  bool begun_ = false;
  std::vector<Event> taken_events_;
  std::vector<RowWork> taken_rows_;
  std::vector<Waiting> waiting_;
  bool may_wait_ = true;

  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool woken_ = false;
  bool stop_ = false;
  std::thread thread_;  // the last
};

}  // namespace jewel
