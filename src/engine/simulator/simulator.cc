#include "engine/simulator/simulator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <queue>
#include <unordered_map>

#include "backend/fake/fake_model.h"
#include "engine/kv_plan.h"
#include "engine/scheduler.h"

namespace jewel {
namespace {

// Pages and swap are counted in KiB instead of bytes: a preempted page then takes a few hundred bytes of this
// machine's memory, not a few hundred thousand.
constexpr size_t kUnit = 1024;
constexpr int kVocabulary = 1 << 18;
constexpr TokenId kImageToken = kVocabulary - 1;

uint64_t hash_of(std::string_view text) {
  uint64_t hash = 17;
  for (const char c : text) hash = fake_mix(hash, static_cast<uint8_t>(c));
  return hash;
}

size_t units(double gib) {
  return static_cast<size_t>(gib * static_cast<double>(size_t{1} << 30) / kUnit);
}

ModelConfig model_of(const SimulationSettings& settings) {
  ModelConfig config;
  config.model_type = "gemma4";
  config.text.vocab_size = kVocabulary;
  config.text.sliding_window = settings.sliding_window;
  config.text.max_position_embeddings = settings.max_model_len;
  config.text.layers = {{.type = LayerType::kSliding}, {.type = LayerType::kFull}};
  config.text.n_layers = 2;
  config.vision.emplace();
  config.vision->pooling_kernel_size = 3;
  config.vision->patch_size = 16;
  config.image_token_id = kImageToken;
  return config;
}

class Simulation;

// A request of the trace: what it was asked, what it got, when.
class Played : public SequenceSink {
 public:
  Played(Simulation& simulation, size_t number) : simulation_(simulation), number_(number) {}
  Continue on_token(const TokenEvent& event) override;
  void on_finished(const Finished& finished) override;

  SequenceRequest request;      // handed over when it arrives
  std::vector<TokenId> tokens;  // prompt, then answer: what a next turn begins with
  std::vector<PromptImage> images;
  std::vector<int> resume_points;
  double arrival_s = 0;
  double first_token_s = -1;
  double last_token_s = 0;

 private:
  Simulation& simulation_;
  size_t number_;
};

class Simulation {
 public:
  Simulation(const Trace& trace, const CostModel& cost, const SimulationSettings& settings)
      : trace_(trace), cost_(cost), settings_(settings), config_(model_of(settings)) {}

  Result<SimulationResult> run();

  double now_s() const { return backend_->now_seconds(); }
  void token_came(double gap_s) { gaps_s_.push_back(gap_s); }
  void ended(size_t number, const Finished& finished);

 private:
  struct Arrival {
    double at_s;
    size_t number;
    bool operator>(const Arrival& other) const {
      return at_s != other.at_s ? at_s > other.at_s : number > other.number;
    }
  };

  Result<void> make_engine();
  void arrive(const Arrival& arrival);
  void build_prompt(size_t number, SequenceRequest& request);
  double step_s(const StepWork& work);
  SimulationResult figures(double wall_s) const;

  const Trace& trace_;
  const CostModel& cost_;
  const SimulationSettings& settings_;
  ModelConfig config_;
  std::unique_ptr<FakeBackend> backend_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::shared_ptr<Played>> played_;
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals_;
  std::unordered_map<std::string, size_t> by_id_;
  std::unordered_map<size_t, std::vector<size_t>> followers_;  // that come after a request's end
  std::vector<int> uses_left_;                                 // turns that still need a request's tokens
  std::vector<double> gaps_s_, ttft_s_, request_s_, queue_s_;
  std::optional<Error> first_refusal_;
  int refused_ = 0;
  double busy_s_ = 0;
  int64_t rows_ = 0, output_tokens_ = 0, prompt_tokens_ = 0, cached_tokens_ = 0;
};

Continue Played::on_token(const TokenEvent& event) {
  const double now_s = simulation_.now_s();
  if (first_token_s < 0) {
    first_token_s = now_s;
  } else {
    simulation_.token_came(now_s - last_token_s);
  }
  last_token_s = now_s;
  tokens.push_back(event.token.id);
  return Continue::kYes;
}

void Played::on_finished(const Finished& finished) {
  simulation_.ended(number_, finished);
}

double Simulation::step_s(const StepWork& work) {
  const double seconds = cost_.step_s(work);
  busy_s_ += seconds;
  rows_ += work.decode_rows;
  return seconds;
}

Result<void> Simulation::make_engine() {
  FakeOptions options;
  options.max_slots = settings_.max_num_seqs;
  options.max_step_tokens = std::max(settings_.max_num_batched_tokens, settings_.max_num_seqs);
  options.sliding_window = settings_.sliding_window;
  options.vocab_size = kVocabulary;
  options.check = false;
  options.time = FakeOptions::Time::kVirtual;
  options.step_cost = [this](const StepWork& work) { return step_s(work); };
  if (cost_.copy_bytes_per_s > 0) {
    options.copy_cost = [this](size_t bytes) {
      return static_cast<double>(bytes) * kUnit / cost_.copy_bytes_per_s;
    };
  }
  options.full_page_bytes = static_cast<size_t>(settings_.full_kib_per_token) * kPageTokens * 1024 / kUnit;
  options.sliding_page_bytes =
      static_cast<size_t>(settings_.sliding_kib_per_token) * kPageTokens * 1024 / kUnit;
  backend_ = std::make_unique<FakeBackend>(options);

  const KvBudget budget{.memory_bytes = units(settings_.kv_gib),
                        .prefix_cache_bytes = units(settings_.kv_gib),
                        .max_num_seqs = settings_.max_num_seqs,
                        .max_model_len = 0,
                        .max_num_batched_tokens = settings_.max_num_batched_tokens};
  JEWEL_ASSIGN(const KvPlan plan, plan_kv(budget, backend_->info(), config_.text));
  SchedulerOptions scheduler;
  scheduler.kv = plan.sizes;
  scheduler.max_model_len = std::min(plan.max_model_len, settings_.max_model_len);
  scheduler.max_num_seqs = settings_.max_num_seqs;
  scheduler.max_num_batched_tokens = settings_.max_num_batched_tokens;
  scheduler.long_prefill_chunk = settings_.long_prefill_chunk;
  scheduler.max_waiting = static_cast<int>(trace_.requests.size()) + 1;
  scheduler.one_ahead = settings_.one_ahead;
  scheduler.prefix_cache = settings_.prefix_cache;
  scheduler.swap_bytes = units(settings_.swap_gib);
  scheduler.now = [this] { return EngineTime(static_cast<int64_t>(backend_->now_seconds() * 1e9)); };
  JEWEL_ASSIGN(scheduler_, Scheduler::make(*backend_, config_, std::move(scheduler)));
  return {};
}

void Simulation::build_prompt(size_t number, SequenceRequest& request) {
  Played& played = *played_[number];
  int part_number = 0;
  for (const TracePart& part : trace_.requests[number].prompt) {
    const auto begin = static_cast<int>(played.tokens.size());
    ++part_number;
    switch (part.kind) {
      case TracePart::Kind::kHistory: {
        Played& last = *played_[by_id_.at(part.name)];
        const bool mine = --uses_left_[by_id_.at(part.name)] == 0;  // nobody else will ask for it
        played.tokens.insert(played.tokens.end(), last.tokens.begin(), last.tokens.end());
        played.images.insert(played.images.end(), last.images.begin(), last.images.end());
        played.resume_points = last.resume_points;
        if (mine) last.tokens = {}, last.images = {};
        break;
      }
      case TracePart::Kind::kImage: {
        PromptImage& image = played.images.emplace_back();
        const uint64_t content = hash_of(part.name);
        std::memcpy(image.content.data(), &content, sizeof content);
        image.budget = image.count = part.tokens;
        image.position = begin;
        image.patches = std::make_shared<const ImagePatches>(
            ImagePatches{.grid_h = 3 * part.tokens, .grid_w = 3, .pixels = {}});
        played.tokens.insert(played.tokens.end(), static_cast<size_t>(part.tokens), kImageToken);
        break;
      }
      case TracePart::Kind::kIds:
        for (const TokenId id : part.ids) played.tokens.push_back(id % (kVocabulary - 1));
        break;
      case TracePart::Kind::kShared:
      case TracePart::Kind::kOwn: {
        const uint64_t text = part.kind == TracePart::Kind::kShared
                                  ? hash_of(part.name)
                                  : fake_mix(number + 1, static_cast<uint64_t>(part_number));
        for (int i = 0; i < part.tokens; ++i)
          played.tokens.push_back(
              static_cast<TokenId>(fake_mix(text, static_cast<uint64_t>(i)) % (kVocabulary - 1)));
        break;
      }
    }
    if (part.kind == TracePart::Kind::kShared || part.kind == TracePart::Kind::kImage)
      played.resume_points.push_back(static_cast<int>(played.tokens.size()));
  }
  request.prompt = played.tokens;
  request.images = played.images;
  request.resume_points = played.resume_points;
}

void Simulation::arrive(const Arrival& arrival) {
  const TraceRequest& planned = trace_.requests[arrival.number];
  Played& played = *played_[arrival.number];
  played.arrival_s = arrival.at_s;
  SequenceRequest request;
  build_prompt(arrival.number, request);
  request.sampling.temperature = 0;
  request.sampling.never = {kImageToken};
  request.max_tokens = planned.max_tokens;
  request.priority = planned.priority;
  request.cache_salt = planned.salt;
  const auto id = scheduler_->add(std::move(request), played_[arrival.number]);
  if (id.ok()) return;
  if (!first_refusal_) first_refusal_ = id.error();
  ++refused_;
  // Who waits for its end goes on all the same, from the prompt alone.
  for (const size_t follower : followers_[arrival.number])
    arrivals_.push({now_s() + trace_.requests[follower].arrival_s, follower});
}

void Simulation::ended(size_t number, const Finished& finished) {
  const Played& played = *played_[number];
  const SequenceStats& stats = finished.stats;
  output_tokens_ += stats.output_tokens;
  prompt_tokens_ += stats.prompt_tokens;
  cached_tokens_ += stats.cached_tokens;
  ttft_s_.push_back(played.first_token_s - played.arrival_s);
  request_s_.push_back(now_s() - played.arrival_s);
  queue_s_.push_back(std::chrono::duration<double>(stats.queue).count());
  const auto followers = followers_.find(number);
  if (followers != followers_.end()) {
    for (const size_t follower : followers->second)
      arrivals_.push({now_s() + trace_.requests[follower].arrival_s, follower});
  }
  if (uses_left_[number] == 0) played_[number]->tokens = {}, played_[number]->images = {};
}

Result<SimulationResult> Simulation::run() {
  const auto start = std::chrono::steady_clock::now();
  JEWEL_TRY(make_engine());
  uses_left_.assign(trace_.requests.size(), 0);
  for (size_t i = 0; i < trace_.requests.size(); ++i) {
    const TraceRequest& request = trace_.requests[i];
    played_.push_back(std::make_shared<Played>(*this, i));
    if (!request.id.empty()) by_id_[request.id] = i;
    for (const TracePart& part : request.prompt) {
      if (part.kind == TracePart::Kind::kHistory) ++uses_left_[by_id_.at(part.name)];
    }
    if (request.after.empty()) {
      arrivals_.push({request.arrival_s, i});
    } else {
      followers_[by_id_.at(request.after)].push_back(i);
    }
  }
  while (true) {
    while (!arrivals_.empty() && arrivals_.top().at_s <= now_s()) {
      const Arrival arrival = arrivals_.top();
      arrivals_.pop();
      arrive(arrival);
    }
    if (scheduler_->has_work()) {
      scheduler_->step();
      backend_->advance_to(now_s() + cost_.host_s);
    } else if (!arrivals_.empty()) {
      backend_->advance_to(arrivals_.top().at_s);
    } else {
      break;
    }
  }
  if (first_refusal_ && request_s_.empty()) return *first_refusal_;
  return figures(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

SimulationResult Simulation::figures(double wall_s) const {
  const SchedulerStats& stats = scheduler_->stats();
  const FakeCounters& counters = backend_->counters();
  double first_s = now_s();
  for (const auto& played : played_) first_s = std::min(first_s, played->arrival_s);
  SimulationResult result{.settings = settings_};
  result.requests = static_cast<int>(request_s_.size());
  result.refused = refused_;
  result.seconds = now_s() - first_s;
  const double seconds = std::max(result.seconds, 1e-9);
  result.busy_share = busy_s_ / seconds;
  result.steps = counters.steps;
  result.rows_per_step =
      static_cast<double>(rows_) / static_cast<double>(std::max<int64_t>(counters.steps, 1));
  result.output_tokens_per_s = static_cast<double>(output_tokens_) / seconds;
  result.prompt_tokens_per_s = static_cast<double>(prompt_tokens_) / seconds;
  result.hit_rate =
      static_cast<double>(cached_tokens_) / static_cast<double>(std::max<int64_t>(prompt_tokens_, 1));
  result.images_encoded = counters.images;
  result.preemptions = static_cast<int64_t>(stats.preemptions);
  result.ttft_s = percentiles(ttft_s_);
  result.inter_token_s = percentiles(gaps_s_);
  result.request_s = percentiles(request_s_);
  result.queue_s = percentiles(queue_s_);
  result.wall_s = wall_s;
  result.output_tokens_per_s_ceiling =
      settings_.max_num_seqs / cost_.step_s({.decode_rows = settings_.max_num_seqs});
  return result;
}

}  // namespace

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  // The smallest value that at least this share of all are not above.
  const auto at = [&](double share) {
    const auto n = static_cast<size_t>(share * static_cast<double>(values.size()));
    return values[std::min(n, values.size() - 1)];
  };
  return {.n = static_cast<int64_t>(values.size()),
          .p50 = at(0.5),
          .p90 = at(0.9),
          .p99 = at(0.99),
          .max = values.back(),
          .mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size())};
}

Result<SimulationResult> simulate(const Trace& trace, const CostModel& cost,
                                  const SimulationSettings& settings) {
  return Simulation(trace, cost, settings).run();
}

}  // namespace jewel
