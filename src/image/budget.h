// The size an image is brought to before the vision tower sees it. The tower cuts the image into patches of
// patch_size² pixels and pools pooling_kernel_size² of them into one soft token; the rule picks the largest
// size of nearly the same aspect ratio whose soft tokens fit the budget. Small images are enlarged: the
// budget is always filled.
//
// The arithmetic is the reference's, in double precision and in its order, since a last bit decides a
// floor(). Pure functions, callable from any thread.
#pragma once

#include "base/result.h"

namespace jewel {

// patch_size and pooling_kernel_size come from the model's config, max_soft_tokens from the request.
struct SoftTokenBudget {
  int max_soft_tokens = 280;    // one of kSoftTokenBudgets
  int patch_size = 16;          // pixels along one side of a patch
  int pooling_kernel_size = 3;  // patches along one side of a soft token
};

// The budgets the model was trained with; the reference refuses all others.
inline constexpr int kSoftTokenBudgets[] = {70, 140, 280, 560, 1120};

// In place of a budget: the smallest one that does not scale the image down (but for rounding to whole soft
// tokens), the largest where all do.
inline constexpr int kAutoBudget = -1;
int auto_budget(int height, int width, int patch_size, int pooling_kernel_size);

struct TargetSize {
  int height = 0;  // pixels, a multiple of patch_size · pooling_kernel_size
  int width = 0;   // likewise
  int soft_tokens = 0;

  bool operator==(const TargetSize&) const = default;
};

// Whether the three numbers make sense; target_size() checks them too.
Result<void> check_budget(const SoftTokenBudget& budget);

// Errors: kInvalid with param "max_soft_tokens" for a budget outside kSoftTokenBudgets; kInvalid for a size
// that is not positive or so narrow that no size fits the budget (the reference refuses those too).
Result<TargetSize> target_size(int height, int width, const SoftTokenBudget& budget);

}  // namespace jewel
