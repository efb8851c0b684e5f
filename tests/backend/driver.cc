#include "driver.h"

#include <algorithm>

#include "backend/cpu/kernels.h"
#include "base/check.h"

namespace jewel {

namespace {

std::unique_ptr<Backend> cpu_backend(const RandomModel& model, const CpuOptions& options) {
  auto backend = make_cpu_backend(model.config, model.weights, options);
  JEWEL_CHECK(backend.ok(), "{}", backend.error().message);
  return std::move(*backend);
}

}  // namespace

Driver::Driver(const RandomModel& model, const CpuOptions& options, int n_full_pages, int n_sliding_pages,
               uint64_t page_seed)
    : Driver(model, cpu_backend(model, options), n_full_pages, n_sliding_pages, page_seed) {}

Driver::Driver(const RandomModel& model, std::unique_ptr<Backend> backend, int n_full_pages,
               int n_sliding_pages, uint64_t page_seed)
    : model_(model),
      backend_(std::move(backend)),
      random_(page_seed),
      live_(static_cast<size_t>(backend_->info().max_slots)) {
  auto allocated = backend_->allocate_kv({.n_full_pages = n_full_pages, .n_sliding_pages = n_sliding_pages});
  JEWEL_CHECK(allocated.ok(), "{}", allocated.error().message);
  sequences_.resize(live_.size());
  for (PageId page = 0; page < n_full_pages; ++page) free_full_.push_back(page);
  for (PageId page = 0; page < n_sliding_pages; ++page) free_sliding_.push_back(page);
  const auto poison = [&](LayerType type, const std::vector<PageId>& pages, size_t page_bytes) {
    const std::vector<std::byte> bytes(pages.size() * page_bytes, std::byte{0xff});
    JEWEL_CHECK(backend_->write_pages(type, pages, bytes).ok());
  };
  poison(LayerType::kFull, free_full_, backend_->info().full_page_bytes);
  poison(LayerType::kSliding, free_sliding_, backend_->info().sliding_page_bytes);
  std::shuffle(free_full_.begin(), free_full_.end(), random_);
  std::shuffle(free_sliding_.begin(), free_sliding_.end(), random_);
}

int Driver::begin(const SamplingParams& params, std::span<const TokenId> prompt) {
  const auto free = std::find(live_.begin(), live_.end(), false);
  JEWEL_CHECK(free != live_.end(), "no free slot");
  const auto slot = static_cast<int>(free - live_.begin());
  *free = true;
  sequences_[static_cast<size_t>(slot)] = {
      .slot = slot, .position = 0, .full_pages = {}, .sliding_pages = {}};
  backend_->begin_sequence(slot, params, prompt, {});
  return slot;
}

void Driver::end(int sequence) {
  Sequence& s = sequences_[static_cast<size_t>(sequence)];
  for (PageId page : s.full_pages) free_full_.push_back(page);
  for (PageId page : s.sliding_pages) {
    if (page != kNoPage) free_sliding_.push_back(page);
  }
  live_[static_cast<size_t>(sequence)] = false;
  backend_->end_sequence(s.slot);
}

void Driver::grow(Sequence& sequence, int end) {
  const auto take = [](std::vector<PageId>& free) {
    JEWEL_CHECK(!free.empty(), "no free page");
    const PageId page = free.back();
    free.pop_back();
    return page;
  };
  while (static_cast<int>(sequence.full_pages.size()) * kPageTokens < end) {
    sequence.full_pages.push_back(take(free_full_));
    sequence.sliding_pages.push_back(take(free_sliding_));
  }
}

void Driver::free_behind_window(Sequence& sequence) {
  // The next query sees keys from here on.
  const int first = std::max(0, sequence.position - model_.config.text.sliding_window + 1);
  for (int i = 0; i < first / kPageTokens; ++i) {
    PageId& page = sequence.sliding_pages[static_cast<size_t>(i)];
    if (page != kNoPage) free_sliding_.insert(free_sliding_.begin(), page);
    page = kNoPage;
  }
}

StepResult Driver::step(std::span<const Part> parts) {
  std::vector<StepChunk> chunks;
  for (const Part& part : parts) {
    Sequence& s = sequences_[static_cast<size_t>(part.sequence)];
    StepChunk chunk;
    chunk.slot = s.slot;
    chunk.phase = part.tokens.empty() ? Phase::kDecode : Phase::kPrefill;
    chunk.position = s.position;
    chunk.tokens = part.tokens;
    chunk.soft_tokens = part.soft_tokens;
    chunk.sample = part.sample;
    chunk.n_prompt_logprobs = part.n_prompt_logprobs;
    chunk.allowed_tokens = part.allowed_tokens;
    grow(s, s.position + chunk.n_tokens());
    chunk.full_pages = s.full_pages;
    chunk.sliding_pages = s.sliding_pages;
    chunks.push_back(chunk);
  }
  backend_->submit(chunks);
  auto result = backend_->collect();
  JEWEL_CHECK(result.ok(), "{}", result.error().message);
  for (size_t i = 0; i < parts.size(); ++i) {
    Sequence& s = sequences_[static_cast<size_t>(parts[i].sequence)];
    s.position += chunks[i].n_tokens();
    free_behind_window(s);
  }
  return std::move(*result);
}

void Driver::move_pages(int sequence) {
  Sequence& s = sequences_[static_cast<size_t>(sequence)];
  const auto move = [&](LayerType type, std::vector<PageId>& pages, std::vector<PageId>& free,
                        size_t page_bytes) {
    std::vector<PageId> from, to;
    for (PageId& page : pages) {
      if (page == kNoPage) continue;
      from.push_back(page);
      page = free.back();
      free.pop_back();
      to.push_back(page);
    }
    std::vector<std::byte> bytes(from.size() * page_bytes), poison(bytes.size(), std::byte{0xff});
    JEWEL_CHECK(backend_->read_pages(type, from, bytes).ok());
    JEWEL_CHECK(backend_->write_pages(type, from, poison).ok());
    JEWEL_CHECK(backend_->write_pages(type, to, bytes).ok());
    free.insert(free.end(), from.begin(), from.end());
  };
  move(LayerType::kFull, s.full_pages, free_full_, backend_->info().full_page_bytes);
  move(LayerType::kSliding, s.sliding_pages, free_sliding_, backend_->info().sliding_page_bytes);
}

std::vector<std::vector<float>> Driver::all_logprobs(std::span<const TokenId> tokens, int chunk,
                                                     std::span<const SoftTokenRun> soft_tokens) {
  const int sequence = begin({}, tokens);
  std::vector<std::vector<float>> rows;
  const int n = static_cast<int>(tokens.size());
  for (int first = 0; first < n; first += chunk) {
    const int count = std::min(chunk, n - first);
    Part part{.sequence = sequence,
              .tokens = tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
              .soft_tokens = {},
              .sample = false,
              .n_prompt_logprobs = model_.config.text.vocab_size,
              .allowed_tokens = {}};
    for (const SoftTokenRun& run : soft_tokens) {  // the part of the run inside this chunk
      const int from = std::max(run.offset, first), to = std::min(run.offset + run.count, first + count);
      if (from < to)
        part.soft_tokens.push_back({run.feature, run.row + from - run.offset, from - first, to - from});
    }
    const StepResult result = step(part);
    for (const auto& top : result.prompt_logprobs.at(0).top) rows.push_back(by_id(top));
  }
  end(sequence);
  return rows;
}

std::vector<float> Driver::last_logprobs(std::span<const TokenId> tokens, int chunk) {
  SamplingParams params;
  params.temperature = 0;
  params.n_logprobs = model_.config.text.vocab_size;
  const int sequence = begin(params, tokens);
  StepResult result;
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(chunk)) {
    Part part;
    part.sequence = sequence;
    part.tokens = tokens.subspan(first, std::min(static_cast<size_t>(chunk), tokens.size() - first));
    part.sample = first + part.tokens.size() == tokens.size();
    result = step(part);
  }
  end(sequence);
  return by_id(result.sampled.at(0).top);
}

std::vector<float> by_id(std::span<const TokenLogprob> top) {
  std::vector<float> values(top.size());
  for (const TokenLogprob& entry : top) values.at(static_cast<size_t>(entry.id)) = entry.logprob;
  return values;
}

std::vector<CpuIsa> runnable_isas() {
  std::vector<CpuIsa> isas;
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512Bf16}) {
    if (kernels_for(isa) != nullptr) isas.push_back(isa);
  }
  return isas;
}

const char* isa_name(CpuIsa isa) {
  return kernels_for(isa)->name;
}

}  // namespace jewel
