// Where a later request may resume from: positions of a prompt behind which the prefix cache keeps the last
// window of sliding pages (src/engine/request.h, resume_points).
#pragma once

#include <span>
#include <vector>

#include "text/prompt.h"

namespace jewel {

// The end of the first turn (the system turn, when there is one), of every image, and of the latest turns; in
// order. The prompt's own end is the engine's to add.
std::vector<int> resume_points(const Prompt& prompt, const PromptBuilder& prompts);

}  // namespace jewel
