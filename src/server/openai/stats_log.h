// StatsLog: the line that vLLM logs every ten seconds, in its words, so that what reads it goes on reading
// it. Quiet while nothing happens: a last line with zeros, then none.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "jewel/engine.h"

namespace jewel {

// What the lines are made of: the engine's counters from one look to the next. One thread.
class StatsLine {
 public:
  struct Figures {
    double prompt_tok_s = 0;
    double generation_tok_s = 0;
    int running = 0;
    int waiting = 0;
    double kv_usage = 0;         // 0 to 1
    double prefix_hit_rate = 0;  // of the tokens looked up since the last look, or when last there were any
    double image_hit_rate = 0;   // the same, of pictures
    std::string text() const;
  };
  // nullopt: nothing happened, and the line before said so already.
  std::optional<Figures> look(const Stats& now, double seconds);

 private:
  Stats before_;
  Figures last_;
  bool was_quiet_ = true;
};

// Logs on a thread of its own. `stats` is asked there until the StatsLog is gone.
class StatsLog {
 public:
  StatsLog(std::function<Stats()> stats, std::chrono::milliseconds interval);
  ~StatsLog();
  StatsLog(const StatsLog&) = delete;
  StatsLog& operator=(const StatsLog&) = delete;

 private:
  void run();

  const std::function<Stats()> stats_;
  const std::chrono::milliseconds interval_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace jewel
