#include "api/resume_points.h"

#include <algorithm>

namespace jewel {
namespace {

// A client goes on from the end of its last request, or from a turn before it when it edits or retries one.
constexpr size_t kLatestTurns = 3;

}  // namespace

std::vector<int> resume_points(const Prompt& prompt, const PromptBuilder& prompts) {
  const SpecialIds& special = prompts.special();
  const int32_t newline = prompts.tokenizer().id_of("\n").value_or(-1);
  std::vector<int> turns;
  for (size_t i = 0; i < prompt.ids.size(); ++i) {
    if (prompt.ids[i] != special.turn_close) continue;
    const bool line_ends = i + 1 < prompt.ids.size() && prompt.ids[i + 1] == newline;
    turns.push_back(static_cast<int>(i) + (line_ends ? 2 : 1));
  }
  std::vector<int> points;
  for (const ImageSpan& image : prompt.images) {
    const auto end = static_cast<size_t>(image.position) + static_cast<size_t>(image.count);
    const bool closed = end < prompt.ids.size() && prompt.ids[end] == special.eoi;
    points.push_back(image.position + image.count + (closed ? 1 : 0));
  }
  if (!turns.empty()) points.push_back(turns.front());
  const size_t latest = std::min(turns.size(), kLatestTurns);
  points.insert(points.end(), turns.end() - static_cast<std::ptrdiff_t>(latest), turns.end());
  std::ranges::sort(points);
  const auto twice = std::ranges::unique(points);
  points.erase(twice.begin(), twice.end());
  return points;
}

}  // namespace jewel
