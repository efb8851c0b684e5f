#include "bench/run_figures.h"

#include <algorithm>
#include <utility>

namespace jewel {
namespace {

using Clock = RunRecord::Clock;

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Of an answered request.
double tokens_of(const ChatAnswer& answer) {
  return answer.usage ? answer.usage->completion_tokens : static_cast<double>(answer.pieces.size());
}

class Summary {
 public:
  Summary(const RunRecord& run, RunFigures& figures) : run_(run), figures_(figures) {}

  void add(const RequestRecord& request) {
    if (!request.ok()) {
      if (figures_.failed++ == 0) figures_.first_error = request.error;
      return;
    }
    add_to_window(request.answer);
    if (!run_.steady || (request.due >= run_.window_begin && request.due <= run_.window_end))
      add_latencies(request);
  }

  void finish(MeterTrace* meter) {
    figures_.first_token_s = distribution(figures_.first_tokens_s);
    figures_.between_tokens_s = distribution(figures_.gaps_s);
    figures_.request_s = distribution(figures_.requests_s);
    const double n = std::max(1, figures_.in_window);
    figures_.prompt_tokens /= n;
    figures_.output_tokens /= n;
    for (std::optional<double>* sum :
         {&figures_.cached_tokens, &figures_.image_tokens, &figures_.reasoning_tokens}) {
      if (*sum) **sum /= n;
    }
    if (figures_.window_s > 0) {
      figures_.output_tokens_per_s = window_output_ / figures_.window_s;
      figures_.prompt_tokens_per_s = window_prompt_ / figures_.window_s;
      figures_.requests_per_s = window_requests_ / figures_.window_s;
    }
    if (energies_ > 0) {
      for (double* sum : {&energy_.joules, &energy_.image_joules, &energy_.prefill_joules,
                          &energy_.decode_joules, &energy_.reasoning_joules, &energy_.idle_share_joules})
        *sum /= energies_;
      figures_.server_energy = energy_;
    }
    if (meter != nullptr) add_joules(*meter);
  }

 private:
  void add_to_window(const ChatAnswer& answer) {
    const auto inside = [&](Clock::time_point at) {
      return at >= run_.window_begin && at <= run_.window_end;
    };
    const auto came = static_cast<double>(std::ranges::count_if(answer.pieces, inside));
    if (!answer.pieces.empty())
      window_output_ += tokens_of(answer) * came / static_cast<double>(answer.pieces.size());
    if (!answer.pieces.empty() && inside(answer.pieces.front()) && answer.usage)
      window_prompt_ += answer.usage->prompt_tokens;
    if (inside(answer.ended)) ++window_requests_;
  }

  void add_latencies(const RequestRecord& request) {
    const ChatAnswer& answer = request.answer;
    ++figures_.in_window;
    figures_.requests_s.push_back(seconds(answer.ended - request.due));
    const double tokens = tokens_of(answer);
    if (!answer.pieces.empty()) {
      figures_.first_tokens_s.push_back(seconds(answer.pieces.front() - request.due));
      const double per_piece = std::max(1.0, tokens / static_cast<double>(answer.pieces.size()));
      for (size_t i = 1; i < answer.pieces.size(); ++i)
        figures_.gaps_s.push_back(seconds(answer.pieces[i] - answer.pieces[i - 1]) / per_piece);
    }
    figures_.output_tokens += tokens;
    if (request.exact_tokens > 0 && answer.usage && answer.usage->completion_tokens != request.exact_tokens)
      ++figures_.wrong_length;
    if (!answer.usage) {
      ++figures_.without_usage;
      return;
    }
    const ServerUsage& usage = *answer.usage;
    figures_.prompt_tokens += usage.prompt_tokens;
    add_count(figures_.cached_tokens, usage.cached_tokens);
    add_count(figures_.image_tokens, usage.image_tokens);
    add_count(figures_.reasoning_tokens, usage.reasoning_tokens);
    if (usage.energy) add_energy(*usage.energy);
  }

  static void add_count(std::optional<double>& sum, const std::optional<int>& count) {
    if (count) sum = sum.value_or(0) + *count;
  }

  void add_energy(const ServerEnergy& energy) {
    ++energies_;
    energy_.method = energy.method;
    energy_.joules += energy.joules;
    energy_.image_joules += energy.image_joules;
    energy_.prefill_joules += energy.prefill_joules;
    energy_.decode_joules += energy.decode_joules;
    energy_.reasoning_joules += energy.reasoning_joules;
    energy_.idle_share_joules += energy.idle_share_joules;
  }

  void add_joules(MeterTrace& meter) {
    figures_.joules = meter.joules(run_.window_begin, run_.window_end);
    if (!figures_.joules) return;
    if (figures_.window_s > 0) figures_.watts = *figures_.joules / figures_.window_s;
    if (window_output_ > 0) {
      figures_.joules_per_token = *figures_.joules / window_output_;
      figures_.joules_per_request = *figures_.joules_per_token * figures_.output_tokens;
    }
    const std::vector<MeterReading> readings = meter.readings(run_.begun, run_.ended);
    const auto keep = [](std::optional<double>& kept, const std::optional<double>& seen, bool most) {
      if (seen && (!kept || (most ? *seen > *kept : *seen < *kept))) kept = seen;
    };
    // A tick is seen up to a reading late, so power between two ticks is off by half: it is taken over
    // several.
    constexpr double kPowerSeconds = 0.5;
    size_t from = 0;
    for (size_t i = 0; i < readings.size(); ++i) {
      keep(figures_.celsius_max, readings[i].celsius, true);
      keep(figures_.sm_mhz_min, readings[i].sm_mhz, false);
      keep(figures_.memory_mhz_min, readings[i].memory_mhz, false);
      const double passed = seconds(readings[i].at - readings[from].at);
      if (passed < kPowerSeconds && (i + 1 < readings.size() || passed == 0)) continue;
      figures_.power.emplace_back(seconds(readings[i].at - run_.begun),
                                  (readings[i].joules - readings[from].joules) / passed);
      from = i;
    }
  }

  const RunRecord& run_;
  RunFigures& figures_;
  double window_output_ = 0, window_prompt_ = 0, window_requests_ = 0;
  ServerEnergy energy_;
  int energies_ = 0;
};

}  // namespace

RunFigures figures_of(const RunRecord& run, MeterTrace* meter) {
  RunFigures figures;
  figures.requests = static_cast<int>(run.requests.size());
  figures.steady = run.steady;
  figures.late_s = run.late_s;
  figures.window_s = seconds(run.window_end - run.window_begin);
  Summary summary(run, figures);
  for (const RequestRecord& request : run.requests) summary.add(request);
  summary.finish(meter);
  return figures;
}

}  // namespace jewel
